//! Never stale, never wasteful: an edit is seen at the next start, and nothing but an edit costs an evaluation.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use e2e::command::Outcome;
use e2e::nix;
use e2e::node::{Node, on_a_node};
use environment::layout::Layout;
use rstest::rstest;

/// Reads something in every way that a config can.
const CONFIG: &str = r#"
{ pkgs ? import <nixpkgs> {} }:
pkgs.mkShell {
  OWN = "first";
  IMPORTED = import ./imported.nix;
  READ = builtins.readFile ./text;
  NAMES = toString (builtins.attrNames (builtins.readDir ./directory));
  EXISTS = if builtins.pathExists ./absent then "yes" else "no";
  LINKED = builtins.readFile ./link;
  SET = toString <nixpkgs>;
}
"#;

const SHOW: &str = "for name in OWN IMPORTED READ NAMES EXISTS LINKED SET; do eval echo $name=\\$$name; done";

fn write_config(node: &Node) {
    node.write("config.nix", CONFIG);
    node.write("imported.nix", "\"first\"");
    node.write("text", "first");
    node.write("directory/first", "");
    node.write("one", "first");
    node.write("two", "second");
    symlink("one", node.work().join("link")).expect("a link can be made");
}

/// Does or undoes an edit, and names the variable in which it shows.
type Edit = fn(&Node, bool) -> &'static str;

fn the_config(node: &Node, edited: bool) -> &'static str {
    node.write(
        "config.nix",
        &CONFIG.replace("OWN = \"first\"", if edited { "OWN = \"second\"" } else { "OWN = \"first\"" }),
    );
    "OWN=second"
}

fn an_imported_file(node: &Node, edited: bool) -> &'static str {
    node.write("imported.nix", if edited { "\"second\"" } else { "\"first\"" });
    "IMPORTED=second"
}

fn a_file_that_is_read(node: &Node, edited: bool) -> &'static str {
    node.write("text", if edited { "second" } else { "first" });
    "READ=second"
}

fn a_new_file_in_a_listed_directory(node: &Node, edited: bool) -> &'static str {
    if edited {
        node.write("directory/second", "");
    } else {
        fs::remove_file(node.work().join("directory/second")).expect("written before");
    }
    "NAMES=first second"
}

fn a_path_that_did_not_exist(node: &Node, edited: bool) -> &'static str {
    if edited {
        node.write("absent", "");
    } else {
        fs::remove_file(node.work().join("absent")).expect("written before");
    }
    "EXISTS=yes"
}

fn a_link_that_points_elsewhere(node: &Node, edited: bool) -> &'static str {
    let link = node.work().join("link");
    fs::remove_file(&link).expect("it is there");
    symlink(if edited { "two" } else { "one" }, link).expect("a link can be made");
    "LINKED=second"
}

fn the_pin_of_the_package_set(node: &Node, edited: bool) -> &'static str {
    if edited {
        let copy = node.directory("sets").join("edited-nixpkgs");
        Outcome::of(Command::new("cp").arg("-r").arg(nix::package_set()).arg(&copy)).succeeds();
        fs::write(copy.join("edited"), "").expect("a file can be written");
        fs::write(Layout::node().settings(), nix::add_package_set(&copy)).expect("/etc can be written");
    } else {
        node.set("");
    }
    "-edited-nixpkgs"
}

fn the_nodes_settings(node: &Node, edited: bool) -> &'static str {
    node.set(if edited { "[variables]\nallow = [\"LD_AUDIT\"]\n" } else { "" });
    "" // No variable shows it.
}

#[rstest]
#[case::the_config(the_config)]
#[case::an_imported_file(an_imported_file)]
#[case::a_file_that_is_read(a_file_that_is_read)]
#[case::a_new_file_in_a_listed_directory(a_new_file_in_a_listed_directory)]
#[case::a_path_that_did_not_exist(a_path_that_did_not_exist)]
#[case::a_link_that_points_elsewhere(a_link_that_points_elsewhere)]
#[case::the_pin_of_the_package_set(the_pin_of_the_package_set)]
#[case::the_nodes_settings(the_nodes_settings)]
fn an_edit_costs_one_evaluation_and_its_undoing_none(#[case] edit: Edit) {
    on_a_node(|node| {
        write_config(node);
        let before = node.boot("config.nix", SHOW).succeeds();
        assert_eq!(node.evaluations(), 1);

        let shows = edit(node, true);
        for _ in 0..2 {
            let after = node.boot("config.nix", SHOW).succeeds();
            assert!(
                after.contains(shows) && (shows.is_empty() || !before.contains(shows)),
                "{before}{after}"
            );
            assert_eq!(node.evaluations(), 2);
        }

        edit(node, false);
        assert_eq!(node.boot("config.nix", SHOW).succeeds(), before);
        assert_eq!(node.evaluations(), 2);
    });
}

#[test]
fn another_attribute_costs_one_evaluation() {
    on_a_node(|node| {
        node.write(
            "config.nix",
            "{ pkgs ? import <nixpkgs> {} }: { a = pkgs.mkShell { V = \"a\"; }; b = pkgs.mkShell { V = \"b\"; }; }",
        );
        for (attribute, evaluations) in [("a", 1), ("b", 2), ("a", 2), ("b", 2)] {
            let option = format!("nixenv.attr={attribute}");
            node.boot_with("config.nix", &["--annotation", &option], "echo $V").prints(attribute);
            assert_eq!(node.evaluations(), evaluations);
        }
    });
}

fn touch_everything(node: &Node) -> &'static str {
    let all = "touch -h -d 2001-02-03 config.nix imported.nix text directory directory/first one two link .";
    Outcome::of(Command::new("sh").args(["-c", all]).current_dir(node.work())).succeeds();
    "config.nix"
}

fn copy_everything(node: &Node) -> &'static str {
    let copy = "mkdir copy && cp -r config.nix imported.nix text directory one two link copy";
    Outcome::of(Command::new("sh").args(["-c", copy]).current_dir(node.work())).succeeds();
    "copy/config.nix"
}

fn add_a_file_that_nothing_reads(node: &Node) -> &'static str {
    node.write("unrelated", "");
    "config.nix"
}

fn replace_a_file_by_an_equal_one(node: &Node) -> &'static str {
    fs::remove_file(node.work().join("text")).expect("it is there");
    node.write("text", "first");
    "config.nix"
}

#[rstest]
#[case::touch(touch_everything)]
#[case::the_same_content_at_another_path(copy_everything)]
#[case::a_file_that_nothing_reads(add_a_file_that_nothing_reads)]
#[case::the_same_content_in_another_file(replace_a_file_by_an_equal_one)]
fn what_is_no_edit_costs_nothing(#[case] change: fn(&Node) -> &'static str) {
    on_a_node(|node| {
        write_config(node);
        let before = node.boot("config.nix", SHOW).succeeds();
        let config = change(node);
        assert_eq!(node.boot(config, SHOW).succeeds(), before);
        assert_eq!(node.evaluations(), 1);
    });
}
