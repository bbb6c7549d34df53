//! What happens to a container after its start: exec, restart, commit.

use e2e::node::{EXAMPLE, Node, on_a_node};

const DETACHED: [&str; 8] =
    ["run", "--detach", "--net", "none", "--name", "long", "--annotation", "nixenv=config.nix"];

fn start(node: &Node) {
    node.nerdctl(DETACHED.into_iter().chain(["busybox", "sleep", "600"])).succeeds();
}

#[test]
fn exec_sees_the_same_environment() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        start(node);
        // The first process's own, as the kernel keeps it.
        let first = node.nerdctl(["exec", "long", "cat", "/proc/1/environ"]).succeeds();
        let mut first: Vec<&str> = first.split_terminator('\0').collect();
        let exec = node.nerdctl(["exec", "long", "env"]).succeeds();
        let mut exec: Vec<&str> = exec.lines().filter(|line| !line.starts_with("SHLVL=")).collect();
        first.retain(|variable| !variable.starts_with("SHLVL="));
        first.sort_unstable();
        exec.sort_unstable();
        assert!(first.contains(&"GREETING=hello"), "{first:?}");
        assert_eq!(first, exec);
        node.nerdctl(["exec", "long", "sh", "-c", "echo '[42]' | jq '.[0]'; python3 -c 'print(1)'"])
            .prints("42\n1");
        node.nerdctl(["exec", "-e", "GREETING=mine", "long", "sh", "-c", "echo $GREETING"]).prints("mine");
    });
}

#[test]
fn an_exec_into_a_container_without_an_environment_gets_none() {
    on_a_node(|node| {
        node.nerdctl(["run", "--detach", "--net", "none", "--name", "plain", "busybox", "sleep", "600"])
            .succeeds();
        node.nerdctl(["exec", "plain", "sh", "-c", "echo $PATH; test ! -e /nix"])
            .prints("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    });
}

#[test]
fn restart_looks_at_the_config_again() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        start(node);
        node.nerdctl(["restart", "--time", "0", "long"]).succeeds();
        node.nerdctl(["exec", "long", "sh", "-c", "echo $GREETING"]).prints("hello");
        assert_eq!(node.evaluations(), 1);
        node.write("config.nix", &EXAMPLE.replace("hello", "good evening"));
        node.nerdctl(["restart", "--time", "0", "long"]).succeeds();
        node.nerdctl(["exec", "long", "sh", "-c", "echo $GREETING"]).prints("good evening");
        assert_eq!(node.evaluations(), 2);
    });
}

#[test]
fn commit_does_not_bake_the_environment_in() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        start(node);
        node.nerdctl(["exec", "long", "touch", "/kept"]).succeeds();
        node.nerdctl(["commit", "long", "committed"]).succeeds();
        let script =
            "ls /kept; ! env | grep GREETING; ! command -v jq; ! ls -A /nix/store 2> /dev/null | grep .";
        node.nerdctl(["run", "--rm", "--net", "none", "committed", "sh", "-c", script]).prints("/kept");
        let image = node.nerdctl(["image", "inspect", "committed"]).succeeds();
        assert!(!image.contains("GREETING") && !image.contains("/nix/store"), "{image}");
    });
}

#[test]
fn a_stopped_container_holds_nothing() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        start(node);
        assert_eq!(node.holds(), 1);
        node.nerdctl(["rm", "--force", "long"]).succeeds();
        assert_eq!(node.holds(), 0);
    });
}
