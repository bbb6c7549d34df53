//! containerd and nixenv's daemon end and come back while containers run.

use std::time::Instant;

use e2e::containerd::{Release, Snapshotter};
use e2e::node::{Node, On, Parts, RECONNECTED, on_a_node_of};
use e2e::recipe::Recipe;
use e2e::registry::Registry;
use e2e::service::Signal;
use rstest::rstest;

fn start(on: On, name: &str, image: &str) {
    let run = ["run", "--quiet", "--detach", "--net", "none", "--name", name, image, "sleep", "600"];
    on.nerdctl(run).succeeds();
}

/// A container that has written something.
fn running(node: &Node) -> (Registry, String) {
    let registry = node.start_registry();
    let image = registry.push(&Recipe::busybox("small").script("echo image > file"));
    let on = node.on(Snapshotter::Nixenv);
    start(on, "before", &image);
    on.nerdctl(["exec", "before", "sh", "-c", "echo mine > /mine"]).succeeds();
    (registry, image)
}

/// Expects that the container goes on, that it and others can be had as before, and that they go.
fn works(node: &Node, image: &str) {
    let on = node.on(Snapshotter::Nixenv);
    on.tell("before", "cat /mine /file").prints("mine\nimage");
    start(on, "after", image);
    on.tell("after", "cat /file; test ! -e /mine").prints("image");
    on.nerdctl(["commit", "before", "committed"]).succeeds();
    on.nerdctl(["stop", "--time", "0", "before"]).succeeds();
    on.nerdctl(["start", "before"]).succeeds();
    on.tell("before", "cat /mine").prints("mine");
    on.nerdctl(["rm", "--force", "before", "after"]).succeeds();
    start(on, "last", "committed");
    on.tell("last", "cat /mine").prints("mine");
}

/// The first process of the container, as the node has it.
fn process(on: On) -> String {
    on.nerdctl(["inspect", "--format", "{{.State.Pid}}", "before"]).succeeds()
}

#[rstest]
#[case::is_told_to_stop(Release::Pinned, Signal::TERM)]
#[case::is_killed(Release::Pinned, Signal::KILL)]
#[case::of_debian_is_killed(Release::Debian, Signal::KILL)]
fn containers_go_on_when_containerd(#[case] release: Release, #[case] signal: Signal) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        let (_registry, image) = running(node);
        let first = process(node.on(Snapshotter::Nixenv));
        node.restart_containerd(signal);
        assert_eq!(process(node.on(Snapshotter::Nixenv)), first);
        works(node, &image);
    });
}

#[rstest]
#[case::is_told_to_stop(Release::Pinned, Signal::TERM)]
#[case::is_killed(Release::Pinned, Signal::KILL)]
#[case::is_killed_below_debians_containerd(Release::Debian, Signal::KILL)]
fn containers_go_on_when_the_daemon(#[case] release: Release, #[case] signal: Signal) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        let (_registry, image) = running(node);
        let first = process(node.on(Snapshotter::Nixenv));
        node.end_daemon(signal);
        let on = node.on(Snapshotter::Nixenv);
        on.tell("before", "cat /mine /file").prints("mine\nimage");
        // Nothing waits for ever, and what is said names the socket that nobody answers at, once containerd knows.
        let asked = Instant::now();
        let run = ["run", "--detach", "--net", "none", "--name", "refused", &image, "true"];
        on.nerdctl(run).fails_saying(&["failed to stat snapshot", "connection"]);
        assert!(asked.elapsed() < RECONNECTED, "{:?}", asked.elapsed());
        // Until containerd has tried to connect again, it says that the connection was closed.
        while !on.ctr(["snapshots", "list"]).fails().contains("/run/nixenv/snapshotter.sock") {
            assert!(asked.elapsed() < RECONNECTED, "nothing names the socket");
        }
        // What does not need it works.
        node.on(Snapshotter::Overlayfs)
            .nerdctl(["run", "--rm", "--net", "none", "busybox", "true"])
            .succeeds();

        node.start_daemon();
        let on = node.on(Snapshotter::Nixenv);
        on.await_reconnection();
        assert_eq!(process(on), first);
        works(node, &image);
        on.nerdctl(["ps", "--all", "--format", "{{.Names}}"]).prints("last");
    });
}

#[test]
fn a_container_stops_and_is_removed_after_both_have_restarted() {
    on_a_node_of(Parts::default(), |node| {
        let (_registry, image) = running(node);
        node.end_daemon(Signal::KILL);
        node.restart_containerd(Signal::KILL);
        // containerd serves without its plugin.
        node.on(Snapshotter::Nixenv).tell("before", "cat /mine").prints("mine");
        node.start_daemon();
        node.on(Snapshotter::Nixenv).await_reconnection();
        works(node, &image);
    });
}
