//! The command `nixenv` on a node.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::command::Outcome;
use e2e::containerd::{Release, Snapshotter};
use e2e::nix_image::{Closure, build};
use e2e::node::{EXAMPLE, Node, Parts, on_a_node, on_a_node_of};
use rstest::rstest;
use serde_json::json;

#[test]
fn what_was_resolved_ahead_starts_warm() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        node.nixenv(["warm", "config.nix"]).succeeds();
        assert_eq!(node.evaluations(), 1);
        node.boot("config.nix", "echo $GREETING").prints("hello");
        assert_eq!(node.evaluations(), 1);
    });
}

#[test]
fn show_tells_what_the_next_start_will_be_and_why() {
    on_a_node(|node| {
        let show = || node.nixenv(["show", "config.nix"]).succeeds();
        node.write("config.nix", EXAMPLE);
        assert!(show().contains("next start cold"), "{}", show());
        node.boot("config.nix", "true").succeeds();
        let shown = show();
        for expected in ["next start warm", "GREETING=hello", "-python3-", "closure"] {
            assert!(shown.contains(expected), "'{expected}' is missing in:\n{shown}");
        }
        node.write("config.nix", &EXAMPLE.replace("hello", "good evening"));
        assert!(show().contains("next start cold"), "{}", show());
        assert_eq!(node.evaluations(), 1);
    });
}

#[test]
fn list_tells_which_environments_there_are_and_who_uses_them() {
    on_a_node(|node| {
        let list = || -> serde_json::Value {
            serde_json::from_str(&node.nixenv(["list", "--json"]).succeeds()).expect("it is JSON")
        };
        assert_eq!(list().as_array().map(Vec::len), Some(0));
        node.write("config.nix", EXAMPLE);
        let run = ["run", "--detach", "--name", "user", "--net", "none", "--annotation", "nixenv=config.nix"];
        node.nerdctl(run.into_iter().chain(["busybox", "sleep", "600"])).succeeds();
        let listed = list();
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
        assert_eq!(
            (&listed[0]["config"], &listed[0]["containers"]),
            (&"config.nix".into(), &1.into()),
            "{listed}"
        );
        node.nerdctl(["rm", "--force", "user"]).succeeds();
        assert_eq!(list()[0]["containers"], 0);
    });
}

#[test]
fn status_and_metrics_tell_what_the_node_does() {
    on_a_node(|node| {
        let status = || -> serde_json::Value {
            serde_json::from_str(&node.nixenv(["status", "--json"]).succeeds()).expect("it is JSON")
        };
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", "true").succeeds();
        node.boot("config.nix", "true").succeeds();
        node.on(Snapshotter::Nixenv).nerdctl(["run", "--rm", "--net", "none", "busybox", "true"]).succeeds();
        let told = status();
        assert_eq!(told["containerd"]["snapshotter"], "ok", "{told}");
        assert_eq!(told["snapshots"]["committed"], 1, "{told}");
        assert_eq!(told["environments"]["count"], 1, "{told}");
        let (hits, misses) = (&told["environments"]["hits"], &told["environments"]["misses"]);
        assert_eq!((misses, &told["evaluations"]), (&1.into(), &1.into()), "{told}");
        assert!(hits.as_u64() >= Some(1), "{told}");

        let scrape = || metrics("/run/nixenv/metrics.sock");
        let text = scrape();
        for line in [
            format!("nixenv_environment_hits_total {hits}"),
            "nixenv_environment_misses_total 1".to_owned(),
            "nixenv_evaluation_duration_seconds_count{outcome=\"success\"} 1".to_owned(),
            "nixenv_build_duration_seconds_count{outcome=\"success\"} 1".to_owned(),
            "nixenv_snapshots{kind=\"committed\"} 1".to_owned(),
            "nixenv_snapshot_operations_total{operation=\"Commit\",code=\"Ok\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|known| known == line), "'{line}' is missing in:\n{text}");
        }

        node.write("config.nix", "throw \"not today\"");
        node.boot("config.nix", "true").fails();
        let table = node.nixenv(["status"]).succeeds();
        assert!(table.contains("the snapshotter nixenv is registered"), "{table}");
        assert!(table.contains("last warnings and errors") && table.contains("not today"), "{table}");
    });
}

#[test]
fn status_tells_what_layers_show_of_the_store_instead_of_holding_it() {
    on_a_node(|node| {
        let chain = build("chains.n10");
        let closure = Closure::of("chains.n10");
        let registry = node.start_registry();
        // Two images, each with a layer of its own for the same store paths.
        for name in ["one", "other"] {
            let base = node.image(name).file("name", name).archive();
            let directory = node.directory(name);
            let archive = closure.nix2container(&directory, &[&chain], Some(&base), &json!({}));
            let image = registry.push_nix(&archive, name);
            node.on(Snapshotter::Nixenv).nerdctl(["pull", "--quiet", &image]).succeeds();
        }
        let size = |path: &String| -> u64 {
            let printed = Outcome::of(Command::new("nix-store").args(["--query", "--size", path])).succeeds();
            printed.trim().parse().expect("it is a number")
        };
        let bytes: u64 = closure.store_paths.iter().map(size).sum();
        let told = node.nixenv(["status", "--json"]).succeeds();
        let told: serde_json::Value = serde_json::from_str(&told).expect("it is JSON");
        let store = &told["snapshots"]["store"];
        let layers = store["layers"].as_u64().expect("it is a number");
        assert_eq!(store["paths"], 10 * layers, "{told}");
        assert_eq!(store["bytes"], bytes * layers, "{told}");
        assert_eq!(
            (&store["distinct_paths"], &store["distinct_bytes"]),
            (&10.into(), &bytes.into()),
            "{told}"
        );
        assert_eq!(layers, 2, "{told}");
    });
}

#[test]
fn metrics_are_told_to_this_machine_alone_unless_the_settings_allow_more() {
    on_a_node(|node| {
        node.set("[metrics]\nlisten = \"0.0.0.0:9750\"\n");
        node.kill_daemon();
        let refused = Outcome::of(&mut Command::new("/usr/local/bin/nixenv-snapshotter"));
        refused.fails_saying(&["0.0.0.0:9750", "allow-remote = true"]);
        node.set("[metrics]\nlisten = \"127.0.0.1:9750\"\n");
        node.start_daemon();
        let curl = ["--silent", "--fail", "http://127.0.0.1:9750/metrics"];
        let text = Outcome::of(Command::new("curl").args(curl)).succeeds();
        assert!(text.contains("nixenv_build_info"), "{text}");
        assert!(!Path::new("/run/nixenv/metrics.sock").exists());
    });
}

/// What the daemon tells at a Unix socket.
fn metrics(socket: &str) -> String {
    let mut command = Command::new("curl");
    Outcome::of(command.args(["--silent", "--fail", "--unix-socket", socket, "http://localhost/metrics"]))
        .succeeds()
}

#[rstest]
#[case::pinned_containerd(Release::Pinned)]
#[case::debians_containerd(Release::Debian)]
fn doctor_finds_nothing_wrong_until_something_is(#[case] release: Release) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        node.nixenv(["doctor"]).succeeds();
        let finds = |node: &Node, check: &str| {
            let outcome = node.nixenv(["doctor"]);
            assert!(!outcome.status.success());
            let mut lines = outcome.stdout.lines().skip_while(|line| !line.starts_with("FAILED"));
            let (failed, remedy) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            assert_eq!(failed.split_whitespace().nth(1), Some(check), "{}", outcome.stdout);
            assert!(remedy.trim_start().starts_with("-> "), "{}", outcome.stdout);
        };
        node.kill_daemon();
        finds(node, "daemon");
        node.start_daemon();
        node.stop_nix();
        finds(node, "nix-daemon");
    });
}

#[rstest]
#[case::pinned_containerd(Release::Pinned)]
#[case::debians_containerd(Release::Debian)]
fn uninstall_leaves_the_node_as_it_was(#[case] release: Release) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", "true").succeeds();
        node.kill_daemon();
        node.nixenv(["uninstall", "--purge"]).succeeds();
        for gone in [
            "/usr/local/bin/nixenv",
            "/usr/local/libexec/nixenv",
            "/etc/nixenv",
            "/run/nixenv/views",
            "/nix/var/nix/gcroots/nixenv",
        ] {
            assert!(!Path::new(gone).exists(), "{gone}");
        }
        assert_eq!(fs::read_dir("/var/lib/nixenv").map_or(0, Iterator::count), 0);
        let config = fs::read_to_string("/etc/containerd/config.toml").expect("containerd is configured");
        assert_eq!(config, release.configuration());
        assert!(!fs::read_to_string("/etc/passwd").expect("it is there").contains("nixenv"));
        // containerd has found its runtime through a PATH that had our directory first.
        node.nerdctl(["run", "--rm", "--net", "none", "busybox", "echo", "plain"]).prints("plain");
    });
}
