//! Who wins among variables, and how they arrive.

use e2e::node::{Node, on_a_node};
use rstest::rstest;

/// What busybox images here have as PATH.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn shell(attributes: &str) -> String {
    format!("{{ pkgs ? import <nixpkgs> {{}} }}: pkgs.mkShell {{ {attributes} }}")
}

fn load_image_with_variables(node: &Node) {
    node.load(node.image("variables").variable("COLOUR", "image").variable("SHAPE", "image"));
}

#[rstest]
#[case::the_environment_beats_the_image(&[], "echo $COLOUR", "config")]
#[case::the_user_beats_the_environment(&["-e", "COLOUR=user"], "echo $COLOUR", "user")]
#[case::what_the_config_does_not_set_stays(&[], "echo $SHAPE", "image")]
#[case::an_override_beats_the_user(&["-e", "COLOUR=user", "--annotation", "nixenv.override=COLOUR"], "echo $COLOUR", "config")]
fn who_wins(#[case] options: &[&str], #[case] script: &str, #[case] expected: &str) {
    on_a_node(|node| {
        load_image_with_variables(node);
        node.write("config.nix", &shell("COLOUR = \"config\";"));
        let run = ["run", "--rm", "--net", "none", "--annotation", "nixenv=config.nix"];
        let run = run.into_iter().chain(options.iter().copied()).chain(["variables", "sh", "-c", script]);
        node.nerdctl(run).prints(expected);
    });
}

#[rstest]
#[case::before_the_images(&[], IMAGE_PATH)]
#[case::before_the_users(&["-e", "PATH=/mine:/bin"], "/mine:/bin")]
fn path_is_prepended(#[case] options: &[&str], #[case] own: &str) {
    on_a_node(|node| {
        node.write("config.nix", &shell("packages = [ pkgs.jq ];"));
        let path = node.boot_with("config.nix", options, "echo $PATH").succeeds();
        let environment =
            path.trim_end().strip_suffix(&format!(":{own}")).unwrap_or_else(|| panic!("{path}"));
        assert!(environment.split(':').all(|path| path.starts_with("/nix/store/")), "{path}");
        assert!(environment.contains("-jq-"), "{path}");
    });
}

#[test]
fn a_value_arrives_byte_by_byte() {
    on_a_node(|node| {
        let value = " spaces  and\ttabs, \"double\" and 'single' quotes, $dollars `ticks` \\back, \nlines\n\nand UTF-8: äöü 雪 🦀 ";
        let quoted = serde_json::to_string(value).expect("a string").replace('$', "\\$");
        node.write("config.nix", &shell(&format!("WEIRD = {quoted};")));
        let output = node.boot("config.nix", r#"printf "[%s]" "$WEIRD""#).succeeds();
        assert_eq!(output, format!("[{value}]"));
    });
}

#[rstest]
#[case::preload("LD_PRELOAD")]
#[case::audit("LD_AUDIT")]
#[case::library_path("LD_LIBRARY_PATH")]
fn what_would_change_the_loader_is_refused_until_the_nodes_owner_allows_it(#[case] name: &str) {
    on_a_node(|node| {
        node.write("config.nix", &shell(&format!("{name} = \"/x\";")));
        let print =
            ["run", "--rm", "--net", "none", "--annotation", "nixenv=config.nix", "busybox", "/bin/env"];
        node.nerdctl(print).fails_saying(&[name, "refused", "variables.allow", "/etc/nixenv/config.toml"]);
        node.set(&format!("[variables]\nallow = [\"{name}\"]\n"));
        let environment = node.nerdctl(print).succeeds();
        assert!(environment.contains(&format!("\n{name}=/x\n")), "{environment}");
    });
}

#[test]
fn nothing_but_the_configs_variable_is_added() {
    on_a_node(|node| {
        node.write("config.nix", &shell("ONE = \"1\";"));
        let run = ["run", "--rm", "--net", "none", "--hostname", "here"];
        let plain = node.nerdctl(run.into_iter().chain(["busybox", "/bin/env"])).succeeds();
        let annotation = ["--annotation", "nixenv=config.nix"];
        let environment =
            node.nerdctl(run.into_iter().chain(annotation).chain(["busybox", "/bin/env"])).succeeds();
        let plain: Vec<&str> = plain.lines().filter(|line| !line.starts_with("PATH=")).collect();
        let more: Vec<&str> =
            environment.lines().filter(|line| !plain.contains(line) && !line.starts_with("PATH=")).collect();
        let less: Vec<&&str> =
            plain.iter().filter(|line| !environment.lines().any(|other| other == **line)).collect();
        assert_eq!(more, ["ONE=1"]);
        assert!(less.is_empty(), "{less:?}");
    });
}
