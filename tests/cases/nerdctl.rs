//! nerdctl and ctr with `--snapshotter nixenv`, as people use them; and nothing is left of it.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use e2e::command::Outcome;
use e2e::containerd::Snapshotter;
use e2e::node::{Node, On, Parts, on_a_node, on_a_node_of};
use e2e::recipe::Recipe;
use e2e::registry::Registry;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

/// containerd's garbage collector runs in the background.
const COLLECTED: Duration = Duration::from_secs(20);

/// Levels of directories: more than a path can name, and than a thread's stack may hold frames for.
const DEPTH: usize = 5_000;

/// An image of three layers.
fn recipe() -> Recipe {
    Recipe::busybox("small")
        .script("mkdir data; echo first > data/first; echo old > data/changed")
        .script("mkdir data; echo second > data/second; echo new > data/changed; touch data/.wh.first")
}

fn push(node: &Node) -> (Registry, String) {
    let registry = node.start_registry();
    let reference = registry.push(&recipe());
    (registry, reference)
}

/// What is left of nixenv's snapshots: those that the daemon knows itself, directories, mounts.
fn left(node: &Node) -> Vec<String> {
    let on = node.on(Snapshotter::Nixenv);
    let mut left = on.keys();
    // containerd's own list lacks what it has forgotten.
    let known = node.ctr(["--address", "/run/nixenv/snapshotter.sock", "snapshots", "list"]).succeeds();
    left.extend(known.lines().skip(1).map(str::to_owned));
    let snapshots = on.snapshotter().snapshots();
    let directories = fs::read_dir(&snapshots).expect("the snapshotter has a directory");
    left.extend(directories.map(|entry| entry.expect("it is listed").path().display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let ours = mounts.lines().filter(|mount| mount.contains(snapshots.to_str().expect("ASCII")));
    left.extend(ours.map(str::to_owned));
    left
}

#[track_caller]
fn eventually(told: impl Fn() -> Vec<String>, expected: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + COLLECTED;
    loop {
        let now = told();
        if expected(&now) {
            return;
        }
        assert!(Instant::now() < deadline, "there is:\n{}", now.join("\n"));
        thread::sleep(Duration::from_millis(100));
    }
}

#[track_caller]
fn nothing_is_left(node: &Node) {
    eventually(|| left(node), <[_]>::is_empty);
}

/// Expects that there are so many snapshots: nerdctl leaves a view for the garbage collector at each start.
#[track_caller]
fn snapshots_are(on: On, count: usize) {
    eventually(|| on.keys(), |keys| keys.len() == count);
}

#[test]
fn an_image_is_pulled_run_committed_and_removed() {
    on_a_node(|node| {
        nothing_is_left(node);
        let (registry, image) = push(node);
        let on = node.on(Snapshotter::Nixenv);
        on.nerdctl(["pull", "--quiet", &image]).succeeds();
        snapshots_are(on, 3);
        let directories = left(node).into_iter().filter(|what| what.starts_with('/'));
        assert_eq!(directories.count(), 3);

        let run = ["run", "--detach", "--net", "none", "--name", "one", &image, "sleep", "600"];
        on.nerdctl(run).succeeds();
        on.tell("one", "ls /data; cat /data/changed").prints("changed\nsecond\nnew");
        on.nerdctl(["exec", "one", "sh", "-c", "rm -r /data; echo kept > /kept"]).succeeds();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        assert!(mounts.contains("/var/lib/nixenv/snapshotter/snapshots/"), "{mounts}");
        // The image is as it was.
        on.nerdctl(["run", "--detach", "--net", "none", "--name", "two", &image, "sleep", "600"]).succeeds();
        on.tell("two", "cat /data/changed").prints("new");

        on.nerdctl(["commit", "one", "committed"]).succeeds();
        on.nerdctl(["run", "--detach", "--net", "none", "--name", "three", "committed", "sleep", "600"])
            .succeeds();
        on.tell("three", "cat /kept; test ! -e /data").prints("kept");

        // A container that has stopped starts again with what it wrote.
        on.nerdctl(["restart", "--time", "0", "one"]).succeeds();
        on.tell("one", "cat /kept").prints("kept");
        on.nerdctl(["rmi", &image]).fails();
        on.tell("two", "cat /data/second").prints("second");

        on.nerdctl(["rm", "--force", "one", "two", "three"]).succeeds();
        on.nerdctl(["rmi", "committed"]).succeeds();
        // The image that was pulled is still there.
        snapshots_are(on, 3);
        on.nerdctl(["rmi", &image]).succeeds();
        nothing_is_left(node);
        drop(registry);
    });
}

/// As `while mkdir d && cd d` makes it.
#[test]
fn a_tree_deeper_than_any_path_is_removed() {
    on_a_node(|node| {
        let (registry, image) = push(node);
        let on = node.on(Snapshotter::Nixenv);
        let run = ["run", "--quiet", "--detach", "--net", "none", "--name", "deep", &image, "sleep", "600"];
        let container = on.nerdctl(run).succeeds();
        let first = on.nerdctl(["inspect", "--format", "{{.State.Pid}}", "deep"]).succeeds();
        let root = format!("/proc/{}/root", first.trim());
        let mut directory = rustix::fs::open(root, OFlags::PATH, Mode::empty()).expect("the container runs");
        for _ in 0..DEPTH {
            mkdirat(&directory, "d", Mode::RWXU).expect("there is room");
            directory = openat(&directory, "d", OFlags::PATH, Mode::empty()).expect("it was just made");
        }
        drop(directory);
        let usage = on.ctr(["snapshots", "usage", container.trim()]).succeeds();
        let files = usage.split_whitespace().last().and_then(|files| files.parse().ok());
        assert!(files.is_some_and(|files: usize| files > DEPTH), "{usage}");
        on.nerdctl(["rm", "--force", "deep"]).succeeds();
        on.nerdctl(["rmi", &image]).succeeds();
        nothing_is_left(node);
        drop(registry);
    });
}

#[test]
fn prune_leaves_nothing() {
    on_a_node(|node| {
        let (registry, image) = push(node);
        let on = node.on(Snapshotter::Nixenv);
        on.nerdctl(["run", "--net", "none", "--name", "stopped", &image, "touch", "/written"]).succeeds();
        on.nerdctl(["run", "--detach", "--net", "none", "--name", "running", &image, "sleep", "600"])
            .succeeds();
        on.nerdctl(["commit", "stopped", "committed"]).succeeds();
        on.nerdctl(["system", "prune", "--all", "--force"]).succeeds();
        on.nerdctl(["ps", "--all", "--format", "{{.Names}}"]).prints("running");
        on.tell("running", "cat /data/second").prints("second");
        on.nerdctl(["rm", "--force", "running"]).succeeds();
        on.nerdctl(["system", "prune", "--all", "--force"]).succeeds();
        nothing_is_left(node);
        drop(registry);
    });
}

#[test]
fn compose_brings_services_up_and_down() {
    on_a_node(|node| {
        let (registry, image) = push(node);
        let on = node.on(Snapshotter::Nixenv);
        let service = format!("image: {image}, command: sleep 600");
        node.write(
            "compose.yaml",
            &format!("services:\n  web: {{ {service} }}\n  worker: {{ {service} }}\n"),
        );
        on.nerdctl(["compose", "up", "--detach"]).succeeds();
        let services = on.nerdctl(["compose", "ps", "--services"]).succeeds();
        let mut services: Vec<_> = services.lines().collect();
        services.sort_unstable();
        assert_eq!(services, ["web", "worker"]);
        on.nerdctl(["compose", "exec", "--no-TTY", "web", "cat", "/data/changed"]).prints("new");
        snapshots_are(on, 3 + 2);
        on.nerdctl(["compose", "down"]).succeeds();
        snapshots_are(on, 3);
        on.nerdctl(["rmi", &image]).succeeds();
        nothing_is_left(node);
        drop(registry);
    });
}

#[test]
fn ctr_imports_exports_and_looks() {
    on_a_node_of(Parts { transfer: true, ..Parts::default() }, |node| {
        let on = node.on(Snapshotter::Nixenv);
        let archive = node.work().join("small.tar");
        let layout = format!("oci:{}:latest", recipe().layout().display());
        let to = format!("oci-archive:{}:small:latest", archive.display());
        Outcome::of(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &layout, &to]))
            .succeeds();
        on.ctr(["images", "import", "--snapshotter", "nixenv", "--index-name", "small", "small.tar"])
            .succeeds();
        let chain = on.ctr(["snapshots", "tree"]).succeeds();
        let names: Vec<_> = chain.lines().map(|line| line.trim_start_matches([' ', '\\', '_'])).collect();
        assert_eq!(names.len(), 3, "{chain}");
        let images = on.ctr(["images", "list", "--quiet"]).succeeds();
        let image = images.lines().find(|image| image.contains("small")).expect("it was imported");
        let usage = on.ctr(["images", "usage", "--snapshotter", "nixenv", image]).succeeds();
        assert!(usage.contains(names[2]), "{usage}");

        on.ctr(["snapshots", "prepare", "mine", names[2]]).succeeds();
        on.ctr(["run", "--detach", "--snapshotter", "nixenv", image, "running", "sleep", "600"]).succeeds();
        on.ctr([
            "tasks",
            "exec",
            "--exec-id",
            "a",
            "running",
            "sh",
            "-c",
            "cat /data/changed; rm /data/second",
        ])
        .prints("new");
        let listed = on.ctr(["snapshots", "list"]).succeeds();
        let has = |row: [&str; 3]| listed.lines().any(|line| line.split_whitespace().eq(row));
        assert!(has(["mine", names[2], "Active"]) && has(["running", names[2], "Active"]), "{listed}");
        assert!(has([names[2], names[1], "Committed"]), "{listed}");
        let (archive, diff) = (node.work().join("diff.tar"), "snapshots diff running > diff.tar");
        let ctr = format!("exec {}/ctr {diff}", e2e::artifacts::engines().display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &ctr]).current_dir(node.work()).env("CONTAINERD_SNAPSHOTTER", "nixenv");
        Outcome::of(&mut shell).succeeds();
        let told = Outcome::of(Command::new("tar").arg("--list").arg("--file").arg(archive)).succeeds();
        assert!(told.contains("data/.wh.second"), "{told}");

        on.ctr(["images", "export", "out.tar", image]).succeeds();
        on.nerdctl(["load", "--quiet", "--input", "out.tar"]).succeeds();

        // Who has children stays.
        on.ctr(["snapshots", "remove", names[2]]).fails_saying(&["with child: failed precondition"]);
        on.ctr(["snapshots", "remove", "mine"]).succeeds();
        on.ctr(["tasks", "delete", "--force", "running"]).succeeds();
        on.ctr(["containers", "delete", "running"]).succeeds();
        for image in images.lines().filter(|image| image.contains("small")) {
            on.ctr(["images", "remove", "--sync", image]).succeeds();
        }
        nothing_is_left(node);
    });
}

#[test]
fn a_dockerfile_is_built() {
    on_a_node(|node| {
        let (registry, image) = push(node);
        let on = node.on(Snapshotter::Nixenv);
        let buildkit = node.start_buildkit(Snapshotter::Nixenv);
        node.write("context/added", "added\n");
        node.write(
            "context/Dockerfile",
            &format!(
                "FROM {image} AS base\nRUN rm /data/second && echo built > /built\n\
                 FROM {image}\nCOPY added /added\nCOPY --from=base /built /built\nRUN cat /built /data/second > /both\n"
            ),
        );
        on.nerdctl(["build", "--tag", "built", "context"]).succeeds();
        on.nerdctl(["run", "--detach", "--net", "none", "--name", "one", "built", "sleep", "600"]).succeeds();
        on.tell("one", "cat /both /added").prints("built\nsecond\nadded");
        assert!(on.keys().len() > 3 + 1, "BuildKit has no snapshots of its own: {:?}", on.keys());
        on.nerdctl(["rm", "--force", "one"]).succeeds();
        on.nerdctl(["rmi", "built"]).succeeds();
        on.nerdctl(["builder", "prune", "--all", "--force"]).succeeds();
        on.nerdctl(["system", "prune", "--all", "--force"]).succeeds();
        nothing_is_left(node);
        drop((registry, buildkit));
    });
}
