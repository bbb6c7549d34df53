//! The example of the README, in every place where a config may lie.

use std::fs;
use std::os::unix::fs::symlink;

use e2e::containerd::Release;
use e2e::nix::Store;
use e2e::node::{EXAMPLE, Node, Parts, Runtime, on_a_node, on_a_node_of};
use environment::layout::Layout;
use rstest::rstest;

/// Uses the environment: where its programs are, that they run, and its variable.
const SCRIPT: &str = r#"
    command -v python3
    command -v jq
    python3 -c 'import json, ssl; print(json.dumps({"answer": 42}))' | jq .answer
    echo "$GREETING"
"#;

#[track_caller]
fn is_the_example(output: &str) {
    let lines: Vec<&str> = output.lines().collect();
    let [python, jq, "42", "hello"] = lines[..] else { panic!("not the example: {output}") };
    assert!(python.starts_with("/nix/store/") && python.ends_with("/bin/python3"), "{output}");
    assert!(jq.starts_with("/nix/store/") && jq.ends_with("/bin/jq"), "{output}");
}

#[rstest]
#[case::pinned_containerd_with_runc(Release::Pinned, Runtime::Runc)]
#[case::pinned_containerd_with_crun(Release::Pinned, Runtime::Crun)]
#[case::debians_containerd_with_runc(Release::Debian, Runtime::Runc)]
#[case::debians_containerd_with_crun(Release::Debian, Runtime::Crun)]
fn an_unmodified_image_boots_into_the_config_in_the_current_directory(
    #[case] release: Release,
    #[case] runtime: Runtime,
) {
    on_a_node_of(Parts { release, runtime, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        let run = ["run", "--rm", "--annotation", "nixenv=config.nix", "busybox", "sh", "-c", SCRIPT];
        is_the_example(&node.nerdctl(run).succeeds());
        is_the_example(&node.nerdctl(run).succeeds());
        assert_eq!(node.evaluations(), 1);
        node.nerdctl(["ps", "-aq"]).prints("");
    });
}

#[test]
fn what_the_store_lacks_comes_from_the_binary_cache() {
    on_a_node_of(Parts { store: Store::Fresh, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        is_the_example(&node.boot("config.nix", SCRIPT).succeeds());
    });
}

#[test]
fn the_config_may_lie_in_a_bind_mount() {
    on_a_node(|node| {
        let mounted = node.directory("mounted");
        fs::write(mounted.join("config.nix"), EXAMPLE).expect("a file can be written");
        let volume = format!("{}:/project", mounted.display());
        is_the_example(&node.boot_with("config.nix", &["-v", &volume, "-w", "/project"], SCRIPT).succeeds());
    });
}

#[test]
fn the_config_may_be_baked_into_the_image() {
    on_a_node(|node| {
        node.load(node.image("baked").file("project/config.nix", EXAMPLE));
        let run =
            ["run", "--rm", "--net", "none", "-w", "/project", "--annotation", "nixenv=config.nix", "baked"];
        is_the_example(&node.nerdctl(run.into_iter().chain(["sh", "-c", SCRIPT])).succeeds());
    });
}

#[test]
fn the_config_may_lie_behind_the_links_of_a_config_map() {
    on_a_node(|node| {
        let mounted = node.directory("mounted");
        // As the kubelet's AtomicWriter lays a volume out.
        fs::create_dir(mounted.join("..2026_01_01")).expect("a directory can be made");
        fs::write(mounted.join("..2026_01_01/config.nix"), EXAMPLE).expect("a file can be written");
        symlink("..2026_01_01", mounted.join("..data")).expect("a link can be made");
        symlink("..data/config.nix", mounted.join("config.nix")).expect("a link can be made");
        let volume = format!("{}:/etc/environment.d:ro", mounted.display());
        is_the_example(&node.boot_with("/etc/environment.d/config.nix", &["-v", &volume], SCRIPT).succeeds());
    });
}

#[test]
fn the_config_may_be_one_of_the_nodes_own() {
    on_a_node(|node| {
        fs::write(Layout::node().configs().join("tools"), EXAMPLE).expect("/etc can be written");
        is_the_example(&node.boot("@tools", SCRIPT).succeeds());
    });
}

#[rstest]
#[case::pinned_containerd(Release::Pinned)]
#[case::debians_containerd(Release::Debian)]
fn ctr_passes_the_annotation_too(#[case] release: Release) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        node.write("config.nix", EXAMPLE);
        is_the_example(&ctr(node, "config.nix"));
    });
}

fn ctr(node: &Node, config: &str) -> String {
    let mount = format!("type=bind,src={},dst=/project,options=rbind:ro", node.work().display());
    let annotation = format!("nixenv={config}");
    let options = ["run", "--rm", "--mount", &mount, "--cwd", "/project", "--annotation", &annotation];
    let command = ["docker.io/library/busybox:latest", "example", "sh", "-c", SCRIPT];
    node.ctr(options.into_iter().chain(command)).succeeds()
}

#[rstest]
#[case::by_name("guest")]
#[case::by_number("1000:1000")]
fn the_containers_user_may_be_anyone(#[case] user: &str) {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        let output = node.boot_with("config.nix", &["--user", user], &format!("{SCRIPT}\nid -u >&2"));
        assert!(output.stderr.lines().any(|line| line == "1000"), "{output:?}");
        is_the_example(&output.succeeds());
    });
}
