//! A warm start needs nothing but the files of the node.

use std::fs;
use std::process::Command;

use e2e::command::Outcome;
use e2e::containerd::Release;
use e2e::node::{EXAMPLE, Parts, on_a_node, on_a_node_of};
use environment::layout::Layout;
use rstest::rstest;
use rustix::mount::{UnmountFlags, unmount};

const SCRIPT: &str = "python3 -c 'print(6 * 7)' && echo $GREETING";

#[rstest]
#[case::pinned_containerd(Release::Pinned)]
#[case::debians_containerd(Release::Debian)]
fn a_warm_start_runs_no_nix_and_needs_no_daemon_and_no_network(#[case] release: Release) {
    on_a_node_of(Parts { release, traced: true, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", SCRIPT).prints("42\nhello");

        node.kill_daemon();
        node.stop_nix();
        Outcome::of(Command::new("ip").args(["link", "set", "lo", "down"])).succeeds();
        fs::remove_dir_all("/nix/var/nix/daemon-socket").expect("the Nix daemon has run");
        let before = node.execs().len();
        node.boot("config.nix", SCRIPT).prints("42\nhello");

        let execs = &node.execs()[before..];
        assert!(
            execs.iter().any(|exec| exec.program.ends_with("runc")),
            "the trace saw the start: {execs:?}"
        );
        let nix: Vec<_> = execs.iter().filter(|exec| exec.is_nix()).collect();
        assert!(nix.is_empty(), "{nix:?}");
    });
}

#[test]
fn a_start_after_a_reboot_mounts_the_view_again() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", SCRIPT).prints("42\nhello");
        node.kill_daemon();

        let views = fs::read_dir(Layout::node().mount_points()).expect("a view is mounted");
        let mut unmounted = 0;
        for view in views {
            let view = view.expect("it can be listed").path();
            unmount(&view, UnmountFlags::empty()).expect("nothing uses the view");
            unmounted += 1;
        }
        assert_eq!(unmounted, 1);
        fs::remove_dir_all(Layout::node().run()).expect("a reboot empties /run");

        node.boot("config.nix", SCRIPT).prints("42\nhello");
        assert_eq!(node.evaluations(), 1);
    });
}
