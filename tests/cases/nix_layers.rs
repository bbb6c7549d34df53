//! Images whose layers name store paths.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::command::Outcome;
use e2e::containerd::Snapshotter;
use e2e::nix_image::{Closure, build};
use e2e::node::{Node, On, on_a_node};
use e2e::recipe::Recipe;
use e2e::registry::Registry;
use e2e::tree::Tree;
use environment::layout::Layout;
use rstest::rstest;
use serde_json::{Value, json};

const CLOSURE: &str = "containerd.io/snapshot/nix-closure";
const STORE_ONLY: &str = "containerd.io/snapshot/nixenv-store-only";

fn nixenv(node: &Node) -> On<'_> {
    node.on(Snapshotter::Nixenv)
}

/// Runs a command in a container of an image, and removes it.
fn run(node: &Node, image: &str, command: &[&str]) -> Outcome {
    let run = ["run", "--rm", "--quiet", "--net", "none", image];
    nixenv(node).nerdctl(run.into_iter().chain(command.iter().copied()))
}

/// A container that sleeps, by its name, which is also its image's.
fn start(node: &Node, image: &str, name: &str) {
    let run = ["run", "--detach", "--quiet", "--net", "none", "--name", name, image, "sleep", "600"];
    nixenv(node).nerdctl(run).succeeds();
}

fn pull(node: &Node, image: &str) -> Outcome {
    nixenv(node).nerdctl(["pull", "--quiet", image])
}

/// The root of the node's only running container, as the node sees it.
fn rootfs() -> PathBuf {
    let tasks = Path::new("/run/containerd/io.containerd.runtime.v2.task/default");
    let mut tasks = fs::read_dir(tasks).expect("a container runs");
    tasks.next().expect("a container runs").expect("it can be listed").path().join("rootfs")
}

/// The layers of an image, lowest first, that the registry was asked for.
fn fetched(registry: &Registry, image: &str) -> BTreeSet<usize> {
    let requests = registry.requests();
    let name = image.trim_start_matches("127.0.0.1:5000/").trim_end_matches(":latest");
    let is_fetched = |digest: &str| {
        let path = format!("/v2/{name}/blobs/{digest}");
        requests.iter().any(|request| request.method == "GET" && request.path == path)
    };
    let layers = layers(image);
    (0..layers.len()).filter(|layer| is_fetched(&layers[*layer])).collect()
}

/// The digests of the layers of an image in the registry, lowest first.
fn layers(image: &str) -> Vec<String> {
    let inspect = |reference: &str| -> Value {
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
        serde_json::from_str(&Outcome::of(&mut command).succeeds()).expect("a manifest is JSON")
    };
    let digest = |descriptor: &Value| descriptor["digest"].as_str().expect("it has a digest").to_owned();
    let mut manifest = inspect(image);
    if let Some(manifests) = manifest["manifests"].as_array() {
        let repository = image.trim_end_matches(":latest");
        manifest = inspect(&format!("{repository}@{}", digest(&manifests[0])));
    }
    manifest["layers"].as_array().expect("a manifest has layers").iter().map(digest).collect()
}

/// The store paths in `closure` that the node has.
fn valid(closure: &Closure) -> BTreeSet<String> {
    let is_valid = |path: &&String| {
        let mut command = Command::new("nix-store");
        Outcome::of(command.args(["--check-validity", path])).status.success()
    };
    closure.store_paths.iter().filter(is_valid).cloned().collect()
}

fn collect_garbage() -> String {
    let outcome = Outcome::of(&mut Command::new("nix-collect-garbage"));
    let messages = outcome.stderr.clone();
    outcome.succeeds();
    messages
}

/// How many snapshots of Nix layers there are.
fn stubs() -> usize {
    let snapshots = Snapshotter::Nixenv.snapshots();
    let entries = fs::read_dir(snapshots).expect("the snapshotter has started");
    entries.filter(|entry| entry.as_ref().expect("it can be listed").path().join("stub").exists()).count()
}

fn gc_roots() -> usize {
    fs::read_dir(Layout::node().snapshot_gc_roots()).map_or(0, Iterator::count)
}

/// Removes images, and waits until containerd has removed their snapshots.
fn remove_image(node: &Node, image: &str) {
    nixenv(node).nerdctl(["rmi", "--force", image]).succeeds();
}

/// Everything that a container can tell of a store path.
#[derive(Debug, PartialEq)]
enum Seen {
    Directory(Tree),
    /// With mode, length and time.
    File(u32, u64, i64, Vec<u8>),
    Link(PathBuf),
}

fn see(path: &Path) -> Seen {
    let metadata = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if metadata.is_dir() {
        Seen::Directory(Tree::of(path).without_links_of_directories())
    } else if metadata.is_symlink() {
        Seen::Link(fs::read_link(path).expect("it is a link"))
    } else {
        let content = fs::read(path).expect("it is a file");
        Seen::File(metadata.mode(), metadata.len(), metadata.mtime(), content)
    }
}

/// Expects that a container sees these store paths, all that is in them, and no others.
fn shows(rootfs: &Path, closure: &Closure) {
    let store = rootfs.join("nix/store");
    let entries = fs::read_dir(&store).expect("there is a store");
    let seen: BTreeSet<String> =
        entries.map(|entry| format!("/nix/store/{}", entry.expect("listed").file_name().display())).collect();
    assert_eq!(seen, closure.store_paths);
    for path in &closure.store_paths {
        assert_eq!(see(&rootfs.join(&path[1..])), see(Path::new(path)), "{path}");
    }
}

#[rstest]
#[case::of_10_store_paths(10)]
#[case::of_1000_store_paths(1000)]
#[case::of_5000_store_paths(5000)]
fn an_image_of_nix_snapshotter_runs_unchanged(#[case] paths: usize) {
    on_a_node(|node| {
        let chain = build(&format!("chains.n{paths}"));
        let closure = Closure::of(&format!("chains.n{paths}"));
        assert_eq!(closure.store_paths.len(), paths);
        let base = node.image("base").archive();
        let archive = closure.nix2container(&node.directory("image"), &[&chain], Some(&base), &json!({}));
        let registry = node.start_registry();
        let image = registry.push_nix(&archive, "chain");
        pull(node, &image).succeeds();
        assert_eq!((stubs(), gc_roots()), (1, 1));
        run(node, &image, &[&format!("chain-{paths}")]).prints(&paths.to_string());
        start(node, &image, "chain");
        shows(&rootfs(), &closure);
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mounts = mounts.lines().filter(|line| line.contains("/rootfs")).count();
        assert_eq!(mounts, 1, "one mount, however many store paths");
    });
}

/// What a program of the image's own sees of its user.
fn passwd() -> String {
    build(
        r#"runCommand "users" { } ''
            mkdir -p $out/etc
            echo 'root:x:0:0:root:/root:/bin/sh' > $out/etc/passwd
            echo 'someone:x:1234:5678::/home:/bin/sh' >> $out/etc/passwd
            echo 'some:x:5678:' > $out/etc/group
        ''"#,
    )
}

#[test]
fn a_user_whose_name_only_a_store_path_knows_is_found() {
    on_a_node(|node| {
        let users = passwd();
        let closure = Closure::of(&format!("bash coreutils (builtins.storePath {users})"));
        let [bash, coreutils] = ["bash", "coreutils"].map(build);
        let config = json!({ "User": "someone", "Entrypoint": ["/bin/bash", "-c"] });
        let directory = node.directory("image");
        let archive = closure.nix2container(&directory, &[&users, &bash, &coreutils], None, &config);
        let registry = node.start_registry();
        let image = registry.push_nix(&archive, "users");
        pull(node, &image).succeeds();
        run(node, &image, &["id -u; id -g; readlink /etc/passwd; ls /"]).prints(&format!(
            "1234\n5678\n{users}/etc/passwd\nbin\ndev\netc\nlibexec\nnix\nproc\nshare\nsys"
        ));
    });
}

#[test]
fn a_container_changes_its_store_and_not_the_nodes() {
    on_a_node(|node| {
        let closure = Closure::of("chains.n100");
        let base = node.image("base").archive();
        let archive = closure.nix2container(&node.directory("image"), &[], Some(&base), &json!({}));
        let registry = node.start_registry();
        let image = registry.push_nix(&archive, "chain");
        let in_store = || closure.store_paths.iter().map(|path| see(Path::new(path))).collect::<Vec<_>>();
        let before = in_store();
        start(node, &image, "chain");
        let script = r#"
            set -- /nix/store/*-chain-100
            chmod -R u+w "$1"
            echo changed > "$1/bin/chain-100"
            echo added > "$1/added"
            set -- /nix/store/*-p7
            mv "$1" /nix/store/renamed
            rm -r /nix/store/*-p8 /nix/store/*-p3 /nix/store/*-p5
            ls -d /nix/store/*-p7 /nix/store/*-p8 2> /dev/null
            cat /nix/store/*-chain-100/bin/chain-100 /nix/store/*-chain-100/added
            ls /nix/store/renamed
            ls /nix/store | wc -l"#;
        // Three paths are gone and one has another name.
        let expected = "changed\nadded\nshare\n97\n";
        let exec = ["exec", "chain", "sh", "-c", script];
        assert_eq!(nixenv(node).nerdctl(exec).stdout, expected);
        assert!(in_store() == before, "the container has changed the node's store");
        nixenv(node).nerdctl(["commit", "chain", "changed"]).succeeds();
        nixenv(node).nerdctl(["rm", "--force", "chain"]).succeeds();
        let look =
            "cat /nix/store/*-chain-100/added; ls /nix/store | wc -l; cat /nix/store/renamed/share/chain/*";
        let seen = run(node, "changed", &["sh", "-c", look]).succeeds();
        assert!(seen.starts_with("added\n97\nn100 "), "{seen}");
        shows_all_of(node, &image, &closure);
    });
}

/// Expects that a new container of `image` is as the image was made.
fn shows_all_of(node: &Node, image: &str, closure: &Closure) {
    start(node, image, "new");
    shows(&rootfs(), closure);
    nixenv(node).nerdctl(["rm", "--force", "new"]).succeeds();
}

#[test]
fn the_nodes_collector_keeps_what_an_image_uses_and_nothing_longer() {
    on_a_node(|node| {
        let closure = Closure::of("chains.n100");
        let base = node.image("base").archive();
        let directory = node.directory("image");
        let registry = node.start_registry();
        let push = |copy_to_root: &[&str], name: &str| {
            let archive = closure.nix2container(&directory, copy_to_root, Some(&base), &json!({}));
            registry.push_nix(&archive, name)
        };
        // One is unpacked, the other is not.
        for image in [push(&[&build("chains.n100")], "links"), push(&[], "none")] {
            start(node, &image, "chain");
            collect_garbage();
            assert_eq!(valid(&closure), closure.store_paths);
            shows(&rootfs(), &closure);
            node.kill_daemon();
            collect_garbage();
            assert_eq!(valid(&closure), closure.store_paths, "without the daemon");
            node.start_daemon();
            shows(&rootfs(), &closure);
            nixenv(node).nerdctl(["rm", "--force", "chain"]).succeeds();
            collect_garbage();
            assert_eq!(valid(&closure), closure.store_paths, "the image alone");
            remove_image(node, &image);
            assert_eq!((stubs(), gc_roots()), (0, 0));
            collect_garbage();
            assert_eq!(valid(&closure), BTreeSet::new());
            // For the next image: from the binary cache.
            assert_eq!(Closure::of("chains.n100").path, closure.path);
        }
    });
}

#[test]
fn a_layer_of_store_paths_alone_is_not_downloaded() {
    on_a_node(|node| {
        let closure = Closure::of("bash coreutils chains.n1000");
        let bash = build("bash");
        let base = node.image("base").archive();
        let config = json!({ "Entrypoint": [format!("{bash}/bin/bash"), "-c"] });
        let registry = node.start_registry();
        let push = |copy_to_root: &[&str], base: Option<&Path>, name: &str| {
            let archive = closure.nix2container(&node.directory(name), copy_to_root, base, &config);
            registry.push_nix(&archive, name)
        };
        for (image, expected) in [
            (push(&[], None, "alone"), vec![]),
            // The links of `copyToRoot` are in the layer. containerd fetches all layers from the first missing one on.
            (push(&[&bash], Some(&base), "with-links"), vec![0, 1]),
            // Now the base is there.
            (push(&[], Some(&base), "upon-base"), vec![]),
        ] {
            pull(node, &image).succeeds();
            assert_eq!(fetched(&registry, &image), BTreeSet::from_iter(expected), "{image}");
            run(node, &image, &["echo /nix/store/*-chain-1000"]).prints(&build("chains.n1000"));
        }
        assert_eq!((stubs(), gc_roots()), (3, 3));
    });
}

/// A layer with everything that is in some store paths, so that it runs on any node.
fn complete(recipe: Recipe, closure: &Closure) -> Recipe {
    let paths: Vec<&str> = closure.store_paths.iter().map(String::as_str).collect();
    recipe.script(&format!("cp --archive --parents {} .\nchmod u+w nix/store", paths.join(" ")))
}

/// The same with the annotations of nixenv's own images.
fn store_only(recipe: Recipe, closure: &Closure) -> Recipe {
    complete(recipe, closure).annotation(CLOSURE, &closure.path).annotation(STORE_ONLY, "true")
}

/// Lets the daemon believe images.
fn believe(node: &mut Node) {
    node.set("[snapshotter]\nbelieve-store-only = true\n");
    node.start_daemon();
    nixenv(node).await_reconnection();
}

#[test]
fn only_the_layers_come_whose_store_paths_are_missing() {
    on_a_node(|node| {
        believe(node);
        let [old, jq, chain, bash] = ["chains.n10", "jq", "chains.n100", "bash coreutils"].map(Closure::of);
        // nix-snapshotter's older form names each path, which here is in the binary cache.
        let annotation = |recipe: Recipe, (number, path): (usize, &String)| {
            recipe.annotation(&format!("containerd.io/snapshot/nix-store-path.{number}"), path)
        };
        let recipe = complete(Recipe::empty("half"), &old)
            .annotation("containerd.io/snapshot/nix-layer", "true")
            .annotation(STORE_ONLY, "true");
        let recipe = old.store_paths.iter().enumerate().fold(recipe, annotation);
        // containerd fetches all layers from the first on that must be unpacked, hence the missing ones are on top.
        let recipe = [&jq, &chain, &bash].into_iter().fold(recipe, store_only);
        let registry = node.start_registry();
        let image = registry.push(&recipe);
        for closure in [&old, &chain, &bash] {
            // The closures were built here, so they are not in the binary cache.
            let paths = if closure.path == old.path { closure.store_paths.clone() } else { BTreeSet::new() };
            let paths = paths.iter().chain([&closure.path]);
            Outcome::of(Command::new("nix-store").arg("--delete").args(paths)).succeeds();
        }
        assert_eq!(valid(&old), BTreeSet::new());
        pull(node, &image).succeeds();
        assert_eq!(fetched(&registry, &image), BTreeSet::from([2, 3]));
        assert_eq!((stubs(), gc_roots()), (2, 2));
        assert_eq!(valid(&old), old.store_paths);
        let script = r#"
            PATH=$(echo /nix/store/*-coreutils-*)/bin
            for n in 10 100; do cat /nix/store/*-chain-$n/bin/chain-$n; done
            echo '{"answer": 42}' | /nix/store/*-jq-*/bin/jq .answer
            ls /nix"#;
        let shell = format!("{}/bin/bash", build("bash"));
        let chain = |n: u32| format!("#!/bin/sh\necho {n}\n");
        run(node, &image, &[&shell, "-c", script]).prints(&format!("{}{}42\nstore", chain(10), chain(100)));
    });
}

#[test]
fn an_image_is_not_believed_that_a_layer_holds_nothing_else() {
    on_a_node(|node| {
        let closure = Closure::of("chains.n10");
        let registry = node.start_registry();
        let recipe = store_only(Recipe::empty("lie"), &closure);
        let image = registry.push(&recipe);
        pull(node, &image).succeeds();
        assert_eq!(fetched(&registry, &image), BTreeSet::from([0]));
        assert_eq!((stubs(), gc_roots()), (0, 0));
    });
}

/// A layer of mount points, annotated.
fn annotated(name: &str, value: &str) -> Recipe {
    let path = value.strip_prefix("/nix/store/").filter(|name| name.len() < 99).unwrap_or("no-store-path");
    Recipe::busybox("hostile")
        .script(&format!("mkdir -p 'nix/store/{path}'"))
        .annotation(&format!("containerd.io/snapshot/{name}"), value)
}

/// Expects that an image cannot be pulled, for this reason, and that nothing of the layer is left.
fn is_refused(node: &Node, registry: &Registry, recipe: &Recipe, reason: &[&str]) {
    let image = registry.push(recipe);
    let before = nixenv(node).keys();
    pull(node, &image).fails_saying(reason);
    assert_eq!((stubs(), gc_roots()), (0, 0));
    // The lower layer is committed until containerd's collector comes; the other is neither committed nor active.
    let mut new = nixenv(node).keys();
    new.retain(|key| !before.contains(key));
    assert!(new.len() <= 1 && new.iter().all(|key| key.starts_with("sha256:")), "{new:?}");
}

const FREE: &str = "/nix/store/00000000000000000000000000000000-free";

#[test]
fn a_layer_is_refused_whose_label_names_no_store_path() {
    on_a_node(|node| {
        let registry = node.start_registry();
        let reason = ["failed to prepare extraction snapshot", "the label", "containerd.io/snapshot/nix-"];
        for (label, value) in [
            ("nix-closure", "/etc".into()),
            ("nix-closure", "/nix/store/../../etc".into()),
            ("nix-closure", format!("{FREE}/../../../etc")),
            ("nix-closure", format!("{FREE}/etc")),
            ("nix-closure", FREE.replace("/nix/", "/gnu/")),
            ("nix-closure", format!("{FREE}.drv")),
            ("nix-closure", format!("{FREE}{}", "e".repeat(4000))),
            ("nix-store-path.0", "/root".into()),
            ("nix-store-path.one", FREE.into()),
        ] {
            is_refused(node, &registry, &annotated(label, &value), &reason);
        }
    });
}

#[test]
fn a_layer_is_refused_whose_store_paths_are_none() {
    on_a_node(|node| {
        let registry = node.start_registry();
        let precondition = ["failed to commit snapshot", "this node can neither find nor substitute it"];
        is_refused(node, &registry, &annotated("nix-closure", FREE), &precondition);
        // It is there, and Nix does not know it.
        fs::create_dir_all(FREE).expect("the node is ours");
        fs::write(format!("{FREE}/store-paths"), format!("{FREE}\n")).expect("the node is ours");
        is_refused(node, &registry, &annotated("nix-closure", FREE), &precondition);

        let add = |name: &str, make: &dyn Fn(&Path)| {
            let directory = node.directory("strange").join(name);
            fs::create_dir_all(&directory).expect("the node is ours");
            make(&directory.join("store-paths"));
            let path = Outcome::of(Command::new("nix-store").arg("--add").arg(directory)).succeeds();
            path.trim().to_owned()
        };
        let bash = build("bash");
        let jq = build("jq");
        let write = |text: String| move |list: &Path| fs::write(list, &text).expect("the node is ours");
        let no_list = |_: &Path| ();
        let link = |list: &Path| std::os::unix::fs::symlink("/etc/passwd", list).expect("the node is ours");
        for (path, reason) in [
            (add("empty", &no_list), "cannot read"),
            (add("link", &link), "cannot read"),
            (add("words", &write("/etc\n".into())), "must list store paths"),
            // Nothing would keep these.
            (add("strangers", &write(format!("{bash}\n{jq}\n"))), "does not refer"),
        ] {
            let invalid = ["failed to prepare extraction snapshot", reason];
            is_refused(node, &registry, &annotated("nix-closure", &path), &invalid);
        }
    });
}

/// The command that mounts a snapshot at `target`.
fn mount_command(node: &Node, target: &Path, key: &str) -> String {
    nixenv(node).ctr(["snapshots", "mounts", target.to_str().expect("ASCII"), key]).succeeds()
}

#[test]
fn a_plain_layer_cannot_lead_overlayfs_to_the_nodes_store() {
    on_a_node(|node| {
        believe(node);
        let secret = node.directory("secret").join("secret");
        fs::create_dir_all(&secret).expect("the node is ours");
        fs::write(secret.join("key"), "the node's key\n").expect("the node is ours");
        let secret = Outcome::of(Command::new("nix-store").arg("--add").arg(&secret)).succeeds();
        let secret = secret.trim().trim_start_matches("/nix");
        let closure = Closure::of("chains.n10");
        let registry = node.start_registry();
        pull(node, &registry.push(&store_only(Recipe::empty("leak"), &closure))).succeeds();
        let layer = nixenv(node).keys().pop().expect("a layer was pulled");
        // containerd's own unpacker sets no trusted attributes (`setxattr` in its `pkg/archive`); others may.
        nixenv(node).ctr(["snapshots", "prepare", "unpacked", &layer]).succeeds();
        let target = node.directory("mounted");
        let mount = mount_command(node, &target, "unpacked");
        let upper = mount.split("upperdir=").nth(1).and_then(|rest| rest.split([',', ' ']).next());
        let hostile = format!(
            r#"
            mkdir -p leak state nix/store/leak deep/leak
            for leak in leak nix/store/leak deep/leak; do setfattr -n trusted.overlay.redirect -v {secret} $leak; done
            setfattr -n trusted.overlay.redirect -v /var state
            setfattr -n user.kept -v yes leak
            truncate -s 15 file
            setfattr -n trusted.overlay.metacopy file; setfattr -n trusted.overlay.redirect -v {secret}/key file"#
        );
        let mut bash = Command::new("bash");
        bash.args(["-euc", &hostile]).current_dir(upper.expect("an overlay has an upper directory"));
        Outcome::of(&mut bash).succeeds();
        nixenv(node).ctr(["snapshots", "commit", "hostile", "unpacked"]).succeeds();
        nixenv(node).ctr(["snapshots", "view", "seen", "hostile"]).succeeds();
        Outcome::of(Command::new("sh").args(["-euc", &mount_command(node, &target, "seen")])).succeeds();
        let seen = Tree::of(&target);
        let below =
            |directory: &str| seen.entries().keys().filter(|name| name.starts_with(directory)).count();
        for leak in ["leak", "state", "nix/store/leak", "deep/leak"] {
            assert_eq!(below(leak), 1, "{leak} is not empty");
        }
        assert_eq!(fs::read(target.join("file")).expect("it is there"), [0; 15]);
        assert_eq!(seen.entries()[Path::new("leak")].attributes.len(), 1);
        assert!(below("nix/store") > closure.store_paths.len(), "the layer below is shown");
    });
}
