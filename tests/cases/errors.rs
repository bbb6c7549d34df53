//! What goes wrong is said by `nerdctl run`, leaves nothing, and does not keep the next start from working.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use e2e::command::Outcome;
use e2e::inventory::Changes;
use e2e::node::{EXAMPLE, Node, on_a_node};
use environment::layout::Layout;
use rstest::rstest;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

fn the_next_start_works(node: &Node) {
    node.write("good.nix", EXAMPLE);
    node.boot("good.nix", "echo $GREETING; jq -n 42").prints("hello\n42");
}

/// Writes a config that is its whole directory.
fn text(node: &Node, body: &str) {
    node.write("config.nix", &format!("{{ pkgs ? import <nixpkgs> {{}} }}:\n{body}\n"));
}

fn no_such_file(_: &mut Node) {}

fn a_syntax_error(node: &mut Node) {
    text(node, "pkgs.mkShell { A = ; }");
}

fn an_unknown_attribute(node: &mut Node) {
    text(node, "pkgs.mkShell { packages = [ pkgs.no-such-package ]; }");
}

fn an_error_of_the_users_own(node: &mut Node) {
    text(node, "throw \"the config is not ready\"");
}

fn something_else_than_an_environment(node: &mut Node) {
    text(node, "42");
}

fn a_failing_build(node: &mut Node) {
    text(
        node,
        "pkgs.mkShell { packages = [ (pkgs.runCommand \"broken\" {} \"echo the last words >&2; exit 3\") ]; }",
    );
}

fn an_evaluation_that_loops(node: &mut Node) {
    node.set("[evaluation]\ntimeout-seconds = 3\n");
    node.start_daemon();
    text(
        node,
        "let sum = start: builtins.foldl' (a: b: a + b) start (builtins.genList (n: n) 100000); in builtins.foldl' (a: b: sum a) 0 (builtins.genList (n: n) 1000000)",
    );
}

fn an_evaluation_that_eats_memory(node: &mut Node) {
    node.set("[evaluation]\nmemory-mib = 512\n");
    node.start_daemon();
    text(node, "builtins.foldl' (a: b: a + a) \"memory\" (builtins.genList (n: n) 40)");
}

fn a_file_over_the_size_limit(node: &mut Node) {
    text(node, "pkgs.mkShell { A = builtins.readFile ./large; }");
    let large = fs::File::create(node.work().join("large")).expect("a file can be made");
    large.set_len(1 << 40).expect("a file can be sparse");
}

fn too_many_files(node: &mut Node) {
    text(node, "pkgs.mkShell { A = toString ./many; }");
    for number in 0..1001 {
        node.write(&format!("many/{number}"), "");
    }
}

fn a_fifo(node: &mut Node) {
    text(node, "pkgs.mkShell { A = builtins.readFile ./fifo; }");
    Outcome::of(Command::new("mkfifo").arg(node.work().join("fifo"))).succeeds();
}

fn a_daemon_that_is_absent(node: &mut Node) {
    text(node, "pkgs.mkShell { }");
    node.kill_daemon();
}

fn settings_that_are_wrong(node: &mut Node) {
    text(node, "pkgs.mkShell { }");
    node.set("[evaluation]\nmemroy-mib = 512\n");
}

#[rstest]
#[case::no_such_file(no_such_file, &["there is no config config.nix", "the container (/config.nix)"])]
#[case::a_syntax_error(a_syntax_error, &["syntax error, unexpected ';'", "config.nix:2:20", "             ^"])]
#[case::an_unknown_attribute(an_unknown_attribute, &["attribute 'no-such-package' missing", "config.nix:2:29"])]
#[case::an_error_of_the_users_own(an_error_of_the_users_own, &["the config is not ready"])]
#[case::something_else_than_an_environment(something_else_than_an_environment, &["derivation"])]
#[case::a_failing_build(a_failing_build, &["the last words", "broken"])]
#[case::an_evaluation_that_loops(an_evaluation_that_loops, &["3 s"])]
#[case::an_evaluation_that_eats_memory(an_evaluation_that_eats_memory, &["memory"])]
#[case::a_file_over_the_size_limit(a_file_over_the_size_limit, &["large", "16"])]
#[case::too_many_files(too_many_files, &["1000"])]
#[case::a_fifo(a_fifo, &["fifo", "regular files"])]
#[case::a_daemon_that_is_absent(a_daemon_that_is_absent, &["does not answer", "systemctl start nixenv-snapshotter"])]
#[case::settings_that_are_wrong(settings_that_are_wrong, &["/etc/nixenv/config.toml", "memroy-mib"])]
fn a_start_that_fails_says_why_and_leaves_nothing(#[case] break_it: fn(&mut Node), #[case] says: &[&str]) {
    on_a_node(|node| {
        break_it(node);
        let before = node.inventory();
        node.boot("config.nix", "echo it started").fails_saying(says);
        node.changed_only(&before, &Changes::default());
        node.set("");
        node.start_daemon();
        the_next_start_works(node);
    });
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    const STATE: &str = "/var/lib/nixenv";
    on_a_node(|node| {
        node.kill_daemon();
        mount("tmpfs", STATE, "tmpfs", MountFlags::empty(), Some(c"size=10m,mode=700"))
            .expect("it can be mounted");
        node.start_daemon();
        the_next_start_works(node);
        let filler = Path::new(STATE).join("filler");
        let mut failures = 0;
        // More and more is free, until a start comes through: it fails at one step after the other.
        for free_pages in 0.. {
            let config = format!("config-{free_pages}.nix");
            node.write(&config, &EXAMPLE.replace("hello", &config));
            fill(&filler, free_pages);
            let before = node.inventory();
            let outcome = node.boot(&config, "echo $GREETING");
            if outcome.status.success() {
                break;
            }
            outcome.fails_saying(&["no space left on device", STATE]);
            node.changed_only(&before, &Changes::default());
            failures += 1;
            fs::remove_file(&filler).expect("it is ours");
            node.boot(&config, "echo $GREETING").prints(&config);
        }
        assert!(failures >= 5, "{failures}");
        node.kill_daemon();
        unmount(STATE, UnmountFlags::DETACH).expect("it is mounted");
    });
}

/// Fills a tmpfs, but for some pages.
fn fill(filler: &Path, free_pages: usize) {
    const PAGE: usize = 4096;
    let mut file = fs::File::create(filler).expect("a file needs no page");
    let mut pages = 0;
    while file.write_all(&[0; PAGE]).is_ok() {
        pages += 1;
    }
    file.set_len(((pages - free_pages) * PAGE) as u64).expect("it can shrink");
}

fn cut_short(path: &Path) {
    let length = fs::metadata(path).expect("it is published").len();
    fs::File::options().write(true).open(path).and_then(|file| file.set_len(length / 2)).expect("it is ours");
}

fn change_one_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("it is published");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("it is ours");
}

fn let_others_write(path: &Path) {
    Outcome::of(Command::new("chmod").arg("666").arg(path)).succeeds();
}

#[rstest]
#[case::cut_short(cut_short, "damaged")]
#[case::one_byte_is_another(change_one_byte, "damaged")]
#[case::others_may_write(let_others_write, "not trusted")]
fn a_manifest_that_does_not_verify_is_a_warning_and_a_miss(#[case] damage: fn(&Path), #[case] warning: &str) {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        node.boot("config.nix", "echo $GREETING").prints("hello");
        let environments = fs::read_dir(Layout::node().environments()).expect("an environment is published");
        for environment in environments {
            damage(&environment.expect("it can be listed").path().join("manifest.json"));
        }
        let run = [
            "run",
            "--detach",
            "--net",
            "none",
            "--annotation",
            "nixenv=config.nix",
            "busybox",
            "sleep",
            "60",
        ];
        let container = node.nerdctl(run).succeeds();
        let log = node.runtime_log(container.trim());
        assert!(log.contains("\"level\":\"warning\"") && log.contains(warning), "{log}");
        node.nerdctl(["exec", container.trim(), "sh", "-c", "echo $GREETING"]).prints("hello");
        assert_eq!(node.evaluations(), 2);
        node.boot("config.nix", "echo $GREETING").prints("hello");
        assert_eq!(node.evaluations(), 2);
    });
}
