//! The runtime wrapper against a runtime that only writes down how it was started. Needs root, for `chroot`.

mod node;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use environment::hold;
use environment::manifest::ShellHook;
use node::{Node, RECORDED, texts};
use rstest::rstest;
use serde_json::json;

/// An annotation for an environment that needs no view.
fn shared() -> serde_json::Value {
    json!({ "nixenv": "config.nix", "nixenv.store": "shared" })
}

#[rstest]
#[case::nothing(&[])]
#[case::a_version(&["--version"])]
#[case::features(&["features"])]
#[case::a_state(&["--root", "/r", "state", "c"])]
#[case::a_deletion(&["--root=/r", "delete", "--force", "create"])]
#[case::what_no_runtime_knows(&["--unknown", "word", "a b", ""])]
#[case::a_container_without_bundle(&["create", "--bundle", "/absent", "c"])]
#[case::an_exec_in_a_container_without_environment(&["exec", "--process", "/absent", "c"])]
fn is_passed_through(#[case] args: &[&str]) {
    let node = Node::new();
    let mut child = node.command("/own/nixenv-runc", args);
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"input").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(RECORDED));
    assert_eq!(output.stdout, b"runtime's output\n");
    assert!(output.stderr.ends_with(b"runtime's error\n"));
    assert_eq!(node.read("out/stdin"), "input");
    assert_eq!(
        node.read("out/args"),
        args.iter().map(|arg| format!("{arg}\n")).collect::<String>()
            + if args.is_empty() { "\n" } else { "" }
    );
}

#[rstest]
#[case::no_annotation(json!({}))]
#[case::annotations_of_others(json!({ "nerdctl/name": "nixenv", "nixenvironment": "x" }))]
#[case::a_pods_sandbox(json!({ "nixenv": "config.nix", "io.kubernetes.cri.container-type": "sandbox" }))]
fn a_container_that_asks_for_nothing_is_left_alone(#[case] annotations: serde_json::Value) {
    let node = Node::new();
    node.spec(annotations, &["A=1"]);
    node.write("etc/nixenv/config.toml", "not read, or this is an error");
    let before = (node.read("bundle/config.json"), fs::metadata(node.at("bundle/config.json")).unwrap());
    let output = node.engine(&["create", "--bundle", "/bundle", "c"]);
    assert_eq!(output.status.code(), Some(RECORDED), "{:?}", node.log());
    let after = (node.read("bundle/config.json"), fs::metadata(node.at("bundle/config.json")).unwrap());
    assert_eq!(before.0, after.0);
    assert_eq!((before.1.ino(), before.1.mtime_nsec()), (after.1.ino(), after.1.mtime_nsec()));
    assert_eq!(fs::read_dir(node.at("bundle")).unwrap().count(), 2, "only config.json and rootfs");
    assert!(node.log().is_empty());
    assert!(!node.at("run/nixenv").exists());
}

#[rstest]
#[case::create(&["create", "--bundle", "/bundle", "--pid-file", "/p", "c"])]
#[case::run(&["run", "--bundle", "/bundle", "c"])]
fn a_container_that_asks_gets_its_environment(#[case] args: &[&str]) {
    let node = Node::new();
    let original = node.spec(shared(), &["B=container", "PATH=/bin"]);
    let key = node.publish("{}", &[("A", "ü \"x\"\n"), ("B", "env"), ("PATH", "/nix/bin")], None);
    let output = node.engine(args);
    assert_eq!(output.status.code(), Some(RECORDED), "{:?}", node.log());

    let spec = node.recorded("config");
    assert_eq!(texts(&spec["process"]["env"]), ["B=container", "PATH=/nix/bin:/bin", "A=ü \"x\"\n"]);
    assert_eq!(spec["mounts"][0]["source"], "/nix/store");
    assert_eq!(spec["hooks"]["poststop"][0]["path"], "/own/nixenv-runc");
    assert_eq!(node.recorded_args()[6..], *args);

    let record = node.record();
    assert_eq!((record.key, record.original), (key, original));
    let container = hold::name_of(Some("/state".as_ref()), "c");
    let held = hold::find(&node.layout(), &container).unwrap().unwrap();
    assert_eq!((held.bundle, held.key), ("/bundle".into(), key));
    let warnings: Vec<_> = node.log().into_iter().map(|entry| entry["level"].clone()).collect();
    assert_eq!(warnings, ["warning"], "nobody knew the image");
}

#[test]
fn the_bundle_may_be_named_create_and_the_container_exec() {
    let node = Node::new();
    node.spec(shared(), &[]);
    node.publish("{}", &[("A", "1")], None);
    fs::rename(node.at("bundle"), node.at("create")).unwrap();
    let output = node.engine(&["create", "--bundle", "create", "exec"]);
    assert_eq!(output.status.code(), Some(RECORDED), "{:?}", node.log());
    assert_eq!(texts(&node.recorded("config")["process"]["env"]), ["A=1"]);
}

#[test]
fn a_bundle_that_is_used_again_gets_the_current_environment() {
    let node = Node::new();
    node.spec(shared(), &["C=1"]);
    node.publish("{}", &[("A", "old"), ("B", "old")], None);
    node.engine(&["run", "--bundle", "/bundle", "c"]);
    assert_eq!(texts(&node.recorded("config")["process"]["env"]), ["C=1", "A=old", "B=old"]);
    node.publish("{ }", &[("A", "new")], None);
    node.engine(&["run", "--bundle", "/bundle", "c"]);
    let spec = node.recorded("config");
    assert_eq!(texts(&spec["process"]["env"]), ["C=1", "A=new"]);
    assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
    assert_eq!(spec["hooks"]["poststop"].as_array().unwrap().len(), 1);
    assert_eq!(node.holds(), 1);
}

#[rstest]
#[case::run("run", &["/nix/sh", "--noprofile"])]
#[case::skip("skip", &["sh"])]
fn the_shell_hook_is_what_the_annotation_says(#[case] mode: &str, #[case] expected: &[&str]) {
    let node = Node::new();
    node.spec(json!({ "nixenv": "config.nix", "nixenv.store": "shared", "nixenv.shell-hook": mode }), &[]);
    node.publish("{}", &[], Some(ShellHook { shell: "/nix/sh".into(), script: "echo".into() }));
    node.engine(&["create", "--bundle", "/bundle", "c"]);
    let spec = node.recorded("config");
    assert_eq!(texts(&spec["process"]["args"])[..expected.len()], *expected);
    assert_eq!(texts(&spec["process"]["args"]).last(), Some(&"sh"));
}

#[rstest]
#[case::no_config(json!({ "nixenv": "absent.nix" }), "there is no config absent.nix")]
#[case::an_unknown_annotation(json!({ "nixenv": "config.nix", "nixenv.atr": "x" }), "nixenv.atr")]
#[case::no_daemon(json!({ "nixenv": "config.nix" }), "nixenv-snapshotter")]
fn an_error_is_in_the_log_and_nowhere_else(#[case] annotations: serde_json::Value, #[case] expected: &str) {
    let node = Node::new();
    node.spec(annotations, &[]);
    node.write("bundle/rootfs/config.nix", "{}");
    let before = node.read("bundle/config.json");
    let output = node.engine(&["create", "--bundle", "/bundle", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
    let log = node.log();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0]["level"], "error");
    assert!(log[0]["msg"].as_str().unwrap().contains(expected), "{log:?}");
    assert!(log[0]["time"].as_str().unwrap().ends_with('Z'));
    assert!(!node.at("out/args").exists(), "the runtime was started");
    assert_eq!(node.read("bundle/config.json"), before);
    assert_eq!(fs::read_dir(node.at("bundle")).unwrap().count(), 2);
    assert_eq!(node.holds(), 0);
}

#[test]
fn a_mount_in_the_store_is_an_error_before_anything_is_resolved() {
    let node = Node::new();
    let mut spec = node.spec(json!({ "nixenv": "absent.nix" }), &[]);
    spec["mounts"] = json!([{ "destination": "/nix/store/own", "type": "tmpfs" }]);
    node.write("bundle/config.json", spec.to_string());
    assert_eq!(node.engine(&["create", "--bundle", "/bundle", "c"]).status.code(), Some(1));
    assert!(node.log()[0]["msg"].as_str().unwrap().contains("/nix/store/own"), "{:?}", node.log());
}

#[test]
fn a_start_that_fails_after_it_resolved_leaves_nothing() {
    let node = Node::new();
    let spec = node.spec(shared(), &[]);
    node.publish("{}", &[("LD_PRELOAD", "x")], None);
    assert_eq!(node.engine(&["create", "--bundle", "/bundle", "c"]).status.code(), Some(1));
    assert!(node.log()[0]["msg"].as_str().unwrap().contains("LD_PRELOAD"), "{:?}", node.log());
    assert_eq!(serde_json::from_str::<serde_json::Value>(&node.read("bundle/config.json")).unwrap(), spec);
    assert_eq!(node.holds(), 0);
    assert_eq!(fs::read_dir(node.at("run/nixenv/containers")).unwrap().count(), 0);
}

#[test]
fn an_image_with_a_store_of_its_own_refuses_the_shared_one() {
    let node = Node::new();
    node.spec(shared(), &[]);
    node.publish("{}", &[], None);
    node.write("bundle/rootfs/nix/store/own", "");
    assert_eq!(node.engine(&["create", "--bundle", "/bundle", "c"]).status.code(), Some(1));
    assert!(node.log()[0]["msg"].as_str().unwrap().contains("nixenv.store=shared"), "{:?}", node.log());
}

#[test]
fn without_a_log_errors_are_on_standard_error() {
    let node = Node::new();
    node.spec(json!({ "nixenv": "absent.nix" }), &[]);
    let output = node.run("/own/nixenv-runc", &["run", "--bundle", "/bundle", "c"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("time=\"") && stderr.contains("level=error msg=\"nixenv: there is no config"),
        "{stderr}"
    );
}

#[test]
fn a_fifo_that_nobody_reads_does_not_stop_anything() {
    let node = Node::new();
    node.spec(json!({ "nixenv": "absent.nix" }), &[]);
    assert!(Command::new("mkfifo").arg(node.at("out/log.json")).status().unwrap().success());
    let before = Instant::now();
    let output = node.engine(&["create", "--bundle", "/bundle", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    assert!(before.elapsed() < Duration::from_secs(5));
}

mod recursion {
    use super::*;

    #[test]
    fn copies_and_links_of_the_wrapper_are_passed_over() {
        let mut node = Node::new();
        node.spec(shared(), &[]);
        node.publish("{}", &[("A", "1")], None);
        for directory in ["a", "b", "c"] {
            fs::create_dir(node.at(directory)).unwrap();
        }
        symlink("/own/nixenv-runc", node.at("a/runc")).unwrap();
        fs::copy(node.at("own/nixenv-runc"), node.at("b/runc")).unwrap();
        node.program("c/runc", "#!/bin/sh\nexec /own/nixenv-runc \"$@\"\n");
        node.path = "/a:/b:/c:/engine:/usr/bin:/bin".into();
        let output = node.run("runc", &["create", "--bundle", "/bundle", "c"]);
        assert_eq!(output.status.code(), Some(RECORDED), "{}", String::from_utf8_lossy(&output.stderr));
        let spec = node.recorded("config");
        assert_eq!(texts(&spec["process"]["env"]), ["A=1"]);
        assert_eq!(node.holds(), 1);
    }

    #[test]
    fn a_script_that_starts_the_wrapper_as_a_child_ends_with_an_error() {
        let node = Node::new();
        node.program("engine/runc", "#!/bin/sh\n/own/nixenv-runc \"$@\"\nexit $?\n");
        let output = node.run("/own/nixenv-runc", &["state", "c"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("again and again") && stderr.contains("NIXENV_RUNTIME"), "{stderr}");
    }

    #[rstest]
    #[case::a_runtime("NIXENV_RUNTIME=/engine/runc", RECORDED)]
    #[case::the_wrapper_itself("NIXENV_RUNTIME=/own/nixenv-runc", 1)]
    #[case::nothing("NIXENV_RUNTIME=/absent", 1)]
    #[case::a_name("NIXENV_RUNTIME=runc", 1)]
    fn a_configured_runtime_is_used_or_an_error(#[case] configured: &'static str, #[case] expected: i32) {
        let mut node = Node::new();
        node.env.push(configured);
        assert_eq!(node.run("/own/nixenv-runc", &["state", "c"]).status.code(), Some(expected));
    }

    #[test]
    fn without_any_runtime_the_error_says_so() {
        let mut node = Node::new();
        fs::remove_file(node.at("engine/runc")).unwrap();
        node.path = "/engine".into();
        let output = node.run("/own/nixenv-runc", &["state", "c"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("no runc and no crun"));
    }
}

mod exec {
    use super::*;

    fn created() -> Node {
        let node = Node::new();
        node.spec(shared(), &["B=container"]);
        node.publish("{}", &[("A", "env"), ("B", "env"), ("PATH", "/nix/bin")], None);
        assert_eq!(node.engine(&["create", "--bundle", "/bundle", "c"]).status.code(), Some(RECORDED));
        node
    }

    #[rstest]
    #[case::apart(&["exec", "--process", "/tmp/process", "--detach", "c"])]
    #[case::behind_other_options(&["exec", "--console-socket", "/s", "--process", "/tmp/process", "c"])]
    fn a_process_gets_the_containers_environment(#[case] args: &[&str]) {
        let node = created();
        node.write(
            "tmp/process",
            json!({ "args": ["env"], "env": ["B=container", "PATH=/bin", "A=own"] }).to_string(),
        );
        let output = node.engine(args);
        assert_eq!(output.status.code(), Some(RECORDED), "{:?}", node.log());
        let process = node.recorded("process");
        assert_eq!(texts(&process["env"]), ["B=container", "PATH=/nix/bin:/bin", "A=own"]);
        assert_eq!(node.recorded_args()[6..], *args);
        assert_eq!(fs::read_dir(node.at("tmp")).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_process_of_another_container_is_left_alone() {
        let node = created();
        node.write("tmp/process", "not even JSON");
        let output = node.engine(&["exec", "--process", "/tmp/process", "other"]);
        assert_eq!(output.status.code(), Some(RECORDED));
        assert_eq!(node.read("out/process.json"), "not even JSON");
    }

    #[test]
    fn a_record_that_is_gone_is_an_error_and_not_a_process_without_environment() {
        let node = created();
        fs::remove_file(node.at("bundle/nixenv.json")).unwrap();
        node.write("tmp/process", "{}");
        assert_eq!(node.engine(&["exec", "--process", "/tmp/process", "c"]).status.code(), Some(1));
        assert!(node.log().last().unwrap()["msg"].as_str().unwrap().contains("/bundle/nixenv.json"));
    }
}

mod poststop {
    use super::*;

    #[test]
    fn the_hook_in_the_spec_releases_the_hold() {
        let node = Node::new();
        node.spec(shared(), &[]);
        node.publish("{}", &[], None);
        node.engine(&["create", "--bundle", "/bundle", "c"]);
        assert_eq!(node.holds(), 1);
        let hook = node.recorded("config")["hooks"]["poststop"][0].clone();
        let args = texts(&hook["args"]);
        let output = node.run(hook["path"].as_str().unwrap(), &args[1..]);
        assert!(output.status.success());
        assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
        assert_eq!(node.holds(), 0);
        assert!(node.run(hook["path"].as_str().unwrap(), &args[1..]).status.success(), "again");
    }

    #[test]
    fn the_hook_releases_what_a_container_held_that_never_came_to_be() {
        let node = Node::new();
        node.spec(shared(), &[]);
        node.publish("{}", &[], None);
        node.engine(&["create", "--bundle", "/bundle", "failed"]);
        fs::rename(node.at("bundle"), node.at("other")).unwrap();
        node.engine(&["create", "--bundle", "/other", "c"]);
        assert_eq!(node.holds(), 2);
        let another = hold::name_of(None, "another").to_string();
        assert!(node.run("/own/nixenv-runc", &["poststop", &another]).status.success());
        assert_eq!(node.holds(), 1);
    }

    #[test]
    fn the_hook_takes_the_state_and_does_not_wait_for_its_end() {
        let node = Node::new();
        let container = hold::name_of(None, "c").to_string();
        let mut child = node.command("/own/nixenv-runc", &["poststop", &container]);
        let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&[b' '; 256 << 10]).unwrap();
        let before = Instant::now();
        assert!(child.wait().unwrap().success());
        assert!(before.elapsed() < Duration::from_secs(9));
    }
}

#[test]
fn no_async_runtime_is_linked() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "nixenv-runc", "--edges", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("serde_json"), "{tree}");
    for banned in ["tokio", "tonic", "async-std", "smol"] {
        assert!(!tree.lines().any(|line| line.split(' ').next() == Some(banned)), "{banned} is linked");
    }
}
