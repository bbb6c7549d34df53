//! Many first starts at once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use e2e::node::{Node, on_a_node};

const STARTS: usize = 20;

/// Where builders note their start and end; they run as other users.
const BUILDS: &str = "/run/builds";

fn config(name: &str) -> String {
    format!(
        r#"{{ pkgs ? import <nixpkgs> {{}} }}:
        pkgs.mkShell {{
          NAME = "{name}";
          DATA = pkgs.runCommand "built-{name}" {{}} ''
            echo "+ {name}" >> {BUILDS}/log
            sleep 0.5
            echo {name} > $out
            echo "- {name}" >> {BUILDS}/log
          '';
        }}"#
    )
}

fn prepare() {
    fs::create_dir(BUILDS).expect("/run is the node's own");
    fs::write(format!("{BUILDS}/log"), "").expect("/run is the node's own");
    fs::set_permissions(format!("{BUILDS}/log"), fs::Permissions::from_mode(0o666)).expect("it is ours");
}

fn start(node: &Node, config: &str) -> Child {
    let annotation = format!("nixenv={config}");
    let run = ["run", "--rm", "--net", "none", "--annotation", &annotation, "busybox"];
    let mut command: Command =
        node.nerdctl_command(run.into_iter().chain(["sh", "-c", "echo $NAME; cat $DATA"]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nerdctl starts")
}

fn prints(container: Child, expected: &str) {
    let output = container.wait_with_output().expect("it is our child");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn builds() -> (usize, usize) {
    let log = fs::read_to_string(format!("{BUILDS}/log")).expect("made before");
    let (mut builds, mut running, mut most) = (0, 0_usize, 0);
    for line in log.lines() {
        if line.starts_with('+') {
            builds += 1;
            running += 1;
            most = most.max(running);
        } else {
            running -= 1;
        }
    }
    (builds, most)
}

#[test]
fn twenty_first_starts_of_one_config_share_one_evaluation_and_one_build() {
    on_a_node(|node| {
        prepare();
        node.write("config.nix", &config("one"));
        let containers: Vec<Child> = (0..STARTS).map(|_| start(node, "config.nix")).collect();
        for container in containers {
            prints(container, "one\none");
        }
        assert_eq!(node.evaluations(), 1);
        assert_eq!(builds().0, 1);
    });
}

#[test]
fn twenty_first_starts_of_different_configs_run_a_few_at_a_time() {
    on_a_node(|node| {
        prepare();
        node.set("[evaluation]\nparallel = 3\n");
        node.start_daemon();
        let names: Vec<String> = (0..STARTS).map(|number| format!("number-{number}")).collect();
        for name in &names {
            node.write(&format!("{name}.nix"), &config(name));
        }
        let containers: Vec<Child> = names.iter().map(|name| start(node, &format!("{name}.nix"))).collect();
        for (container, name) in containers.into_iter().zip(&names) {
            prints(container, &format!("{name}\n{name}"));
        }
        assert_eq!(node.evaluations(), STARTS);
        let (builds, at_once) = builds();
        assert_eq!(builds, STARTS);
        assert!((2..=3).contains(&at_once), "{at_once} builds at once");
        let evaluations_at_once = node.evaluations_at_once();
        assert!(evaluations_at_once <= 3, "{evaluations_at_once} evaluations at once");
    });
}
