//! The other annotations of the README's table.

use std::fs;
use std::process::Command;

use e2e::command::Outcome;
use e2e::node::{EXAMPLE, on_a_node};
use rstest::rstest;

const RUN: [&str; 4] = ["run", "--rm", "--net", "none"];

#[test]
fn packages_need_no_file() {
    on_a_node(|node| {
        let command = [
            "--annotation",
            "nixenv.packages=jq,python3",
            "busybox",
            "sh",
            "-c",
            "jq -n 42; python3 -c 'print(6)'",
        ];
        node.nerdctl(RUN.into_iter().chain(command)).prints("42\n6");
        node.nerdctl(RUN.into_iter().chain(command)).prints("42\n6");
        assert_eq!(node.evaluations(), 1);
    });
}

#[rstest]
#[case::by_default(&[], "set by the hook; arguments: one two  three")]
#[case::when_asked_for(&["--annotation", "nixenv.shell-hook=run"], "set by the hook; arguments: one two  three")]
#[case::unless_it_is_skipped(&["--annotation", "nixenv.shell-hook=skip"], "unset; arguments: one two  three")]
fn the_shell_hook_runs_before_the_process(#[case] options: &[&str], #[case] expected: &str) {
    on_a_node(|node| {
        node.write(
            "config.nix",
            "{ pkgs ? import <nixpkgs> {} }: pkgs.mkShell { shellHook = \"export HOOKED='set by the hook'\"; }",
        );
        let script = r#"echo "${HOOKED-unset}; arguments: $*""#;
        let run = RUN.into_iter().chain(["--annotation", "nixenv=config.nix"]).chain(options.iter().copied());
        node.nerdctl(run.chain(["busybox", "sh", "-c", script, "sh", "one", "two  three"])).prints(expected);
    });
}

#[test]
fn the_nodes_whole_store_is_shared_on_request() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        let other = node.directory("other").join("another-path");
        fs::write(&other, "of the node").expect("a file can be written");
        let other = Outcome::of(Command::new("nix-store").arg("--add").arg(&other)).succeeds();
        let script = format!("cat {} && jq -n 42", other.trim());
        node.boot("config.nix", &script).fails_saying(&["No such file or directory"]);
        node.boot_with("config.nix", &["--annotation", "nixenv.store=shared"], &script)
            .prints("of the node42");
    });
}

#[rstest]
#[case::an_unknown_one("nixenv.shellhook=run", "nixenv.shellhook")]
#[case::a_wrong_value("nixenv.store=everything", "closure")]
fn a_mistake_in_an_annotation_is_named(#[case] annotation: &str, #[case] says: &str) {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        node.boot_with("config.nix", &["--annotation", annotation], "echo it started").fails_saying(&[says]);
    });
}
