//! A container without the annotation.

use std::fs;
use std::path::Path;

use e2e::node::{EXAMPLE, Parts, on_a_node_of};

#[test]
fn its_spec_is_not_touched_and_nothing_of_nixenv_runs() {
    on_a_node_of(Parts { recorded: true, ..Parts::default() }, |node| {
        node.kill_daemon();
        node.stop_nix();
        for path in ["/etc/nixenv", "/var/lib/nixenv"] {
            for entry in fs::read_dir(path).expect("nixenv is installed") {
                let entry = entry.expect("it can be listed").path();
                if entry.is_dir() { fs::remove_dir_all(entry) } else { fs::remove_file(entry) }
                    .expect("it is ours");
            }
        }
        fs::remove_dir_all("/run/nixenv").expect("the daemon has run");
        node.nerdctl(["run", "--rm", "--net", "none", "busybox", "echo", "plain"]).prints("plain");

        let specs = node.specs();
        assert!(!specs.before.is_empty());
        assert_eq!(String::from_utf8_lossy(&specs.before), String::from_utf8_lossy(&specs.after));
        assert_eq!(specs.identities[0], specs.identities[1]);
        assert!(!Path::new("/run/nixenv").exists());
        assert_eq!(fs::read_dir("/var/lib/nixenv").expect("it is a mount").count(), 0);
    });
}

#[test]
fn the_recording_of_specs_sees_an_injection() {
    on_a_node_of(Parts { recorded: true, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", "echo $GREETING").prints("hello");
        let specs = node.specs();
        assert!(String::from_utf8_lossy(&specs.after).contains("GREETING=hello"));
        assert!(!String::from_utf8_lossy(&specs.before).contains("GREETING=hello"));
        assert_ne!(specs.identities[0], specs.identities[1]);
    });
}
