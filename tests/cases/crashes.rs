//! kill -9 of the daemon and of the runtime wrapper at each step of a cold start.
//!
//! A step is a system call that changes something. strace kills the process when it enters the Nth such call of
//! a kind, for N = 1, 2, 3... 8, 12, 19... until a start comes through; after each kill the next start has to work, and the
//! node has to have what it has after an undisturbed start, no more and no less.

use e2e::inventory::Changes;
use e2e::nixenv::Threads;
use e2e::node::{Node, on_a_node};
use rstest::rstest;

/// Configs differ, so that each start is a cold one; and each has its own build.
fn write_config(node: &Node, number: usize) -> String {
    let name = format!("config-{number}.nix");
    let text = format!(
        "{{ pkgs ? import <nixpkgs> {{}} }}:\npkgs.mkShell {{ packages = [ pkgs.jq ]; NUMBER = \"{number}\"; \
         DATA = pkgs.runCommand \"data\" {{}} \"echo {number} > $out\"; }}\n"
    );
    node.write(&name, &text);
    name
}

const SCRIPT: &str = "jq -n $NUMBER; cat $DATA";

fn start_works(node: &Node, config: &str, number: usize) {
    node.boot(config, SCRIPT).prints(&format!("{number}\n{number}"));
}

/// What an undisturbed cold start leaves.
fn undisturbed(node: &Node) -> Changes {
    // The first start makes what is made once for all configs.
    let config = write_config(node, 0);
    start_works(node, &config, 0);
    let before = node.inventory();
    let config = write_config(node, 100);
    start_works(node, &config, 100);
    node.inventory().since(&before)
}

/// Kills at the Nth call of a kind, for more and more, until a start comes through, and returns how often it killed.
fn kill_at_each(node: &mut Node, calls: &str, kill: fn(&mut Node, Option<&str>)) -> usize {
    let expected = undisturbed(node);
    let mut kills = 0;
    let mut occurrence = 1;
    loop {
        let number = 1000 + occurrence;
        let before = node.inventory();
        let config = write_config(node, number);
        kill(node, Some(&format!("{calls}:signal=KILL:when={occurrence}")));
        let outcome = node.boot(&config, SCRIPT);
        kill(node, None);
        start_works(node, &config, number);
        println!("after the kill at {calls} {occurrence}: {}", outcome.stderr);
        node.changed_only(&before, &expected);
        if outcome.status.success() {
            return kills;
        }
        kills += 1;
        occurrence = if occurrence < 8 { occurrence + 1 } else { occurrence * 8 / 5 };
    }
}

#[rstest]
#[case::when_it_makes_a_directory("mkdir,mkdirat", 3)]
#[case::when_it_opens_a_file("openat,openat2,creat", 5)]
#[case::when_it_writes("write,pwrite64,writev", 2)]
#[case::when_it_makes_a_link("symlink,symlinkat,link,linkat", 1)]
#[case::when_it_marks_a_directory("setxattr,lsetxattr,fsetxattr", 5)]
#[case::when_it_renames("rename,renameat,renameat2", 3)]
#[case::when_it_synchronises("fsync,fdatasync,syncfs", 3)]
#[case::when_it_removes("unlink,unlinkat,rmdir", 1)]
#[case::when_it_starts_a_process("clone,clone3,vfork", 1)]
#[case::when_it_waits_for_a_process("wait4,waitid", 1)]
#[case::when_it_sends("sendmsg,sendto", 1)]
#[case::when_it_receives("recvmsg,recvfrom", 1)]
fn a_daemon_that_is_killed_leaves_nothing(#[case] calls: &str, #[case] least: usize) {
    on_a_node(|node| {
        let kills =
            kill_at_each(node, calls, |node, fault| node.restart_daemon_to_be_killed(fault, Threads::All));
        assert!(kills >= least, "{kills}");
    });
}

/// strace counts the calls of each thread, so those that follow another thread's are for this test.
#[rstest]
#[case::when_it_opens_a_file("openat,openat2,creat", 3)]
#[case::when_it_writes("write,pwrite64,writev", 1)]
#[case::when_it_synchronises("fsync,fdatasync,syncfs", 2)]
#[case::when_it_renames("rename,renameat,renameat2", 1)]
fn a_daemon_that_is_killed_in_the_thread_that_answers_leaves_nothing(
    #[case] calls: &str,
    #[case] least: usize,
) {
    on_a_node(|node| {
        let kills = kill_at_each(node, calls, |node, fault| {
            node.restart_daemon_to_be_killed(fault, Threads::Present)
        });
        assert!(kills >= least, "{kills}");
    });
}

#[rstest]
#[case::when_it_makes_a_directory("mkdir,mkdirat", 1)]
#[case::when_it_opens_a_file("openat,openat2,creat", 5)]
#[case::when_it_writes("write,pwrite64,writev", 1)]
#[case::when_it_renames("rename,renameat,renameat2", 1)]
#[case::when_it_mounts("mount,fsmount,move_mount,open_tree", 1)]
#[case::when_it_sends("sendmsg,sendto", 1)]
#[case::when_it_waits_for_the_daemon("recvmsg,recvfrom", 1)]
#[case::when_it_becomes_the_runtime("execve", 1)]
fn a_wrapper_that_is_killed_leaves_nothing(#[case] calls: &str, #[case] least: usize) {
    on_a_node(|node| {
        let kills = kill_at_each(node, calls, Node::let_wrapper_be_killed);
        assert!(kills >= least, "{kills}");
    });
}
