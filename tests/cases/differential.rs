//! nixenv's snapshotter beside containerd's own: the same images, pulled from the same registry, and the same
//! changes in their containers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use e2e::command::Outcome;
use e2e::containerd::{Release, Snapshotter};
use e2e::node::{Node, On, Parts, on_a_node, on_a_node_of};
use e2e::recipe::Recipe;
use e2e::tree::Tree;
use rstest::rstest;
use serde_json::Value;

/// The blocks of the disk that the tests are on.
const BLOCK_BYTES: u64 = 4096;

/// Debian packages, one a layer. Their shells and tools take the place of busybox's.
fn debian() -> Recipe {
    let packages = [
        "libc6",
        "libgcc-s1",
        "libacl1",
        "libattr1",
        "libpcre2-8-0",
        "libgmp10",
        "libselinux1",
        "bash",
        "coreutils",
        "findutils",
        "diffutils",
        "sed",
        "grep",
        "tar",
        "gzip",
        "bzip2",
        "xz-utils",
        "make",
        "jq",
    ];
    packages.into_iter().fold(Recipe::busybox("debian"), Recipe::package)
}

/// As many layers as Docker allows, each with a file of its own, a new version of one file, and a whiteout of an
/// older one.
fn many_layers() -> Recipe {
    let base = "mkdir own; echo 0 > version; echo 0 > own/0".to_owned();
    let layers = (1..=126).map(|layer| {
        let mut script = format!("mkdir own; echo {layer} > version; echo {layer} > own/{layer}\n");
        if layer % 4 == 0 {
            writeln!(script, "touch own/.wh.{}", layer - 3).expect("a string grows");
        }
        script
    });
    [base].into_iter().chain(layers).fold(Recipe::busybox("many"), |recipe, script| recipe.script(&script))
}

/// Whatever a layer may hold.
fn odd() -> Recipe {
    Recipe::busybox("odd")
        .script(
            r#"
            mkdir -p whiteouts/tree/deep opaque/below kinds modes owners devices links names attributes times gone/all
            echo 1 > whiteouts/gone; echo 2 > whiteouts/kept; echo 3 > whiteouts/tree/deep/file; echo 4 > gone/all/of-it
            echo old > opaque/old; echo old > opaque/below/old; echo old > opaque/both
            mkdir kinds/directory; echo > kinds/directory/file; echo file > kinds/file
            ln -s directory kinds/link; ln -s nowhere kinds/dangling

            touch modes/{none,execute,setuid,setgid,all}; chmod 000 modes/none; chmod 111 modes/execute
            chmod 4755 modes/setuid; chmod 2755 modes/setgid; chmod 7777 modes/all
            mkdir modes/{sticky,setgid-directory,closed}; chmod 1777 modes/sticky; chmod 2775 modes/setgid-directory
            chmod 000 modes/closed
            touch owners/{user,nobody,large}; chown 1000:1001 owners/user; chown 65534:65534 owners/nobody
            chown 2000000000:3000000000 owners/large; mkdir owners/directory; chown 7:8 owners/directory
            mknod devices/null c 1 3; mknod -m 640 devices/loop b 7 200; mknod devices/large c 4000 1000000
            mkfifo devices/fifo

            echo linked > links/a; ln links/a links/b; ln links/a whiteouts/c
            ln -s ../names links/relative; ln -s /etc/passwd links/absolute
            ln -s "$(printf 'long/%.0s' {1..200})" links/long
            ln -s . links/self; ln links/relative links/relative-too

            touch names/"$(printf 'x%.0s' {1..255})" names/' ' names/-r names/a:b,c=d names/back\\slash names/'new
            line' names/'"quoted"' names/%41 names/'$(id)' names/wh.not names/.whiteout
            touch names/naïve-日本語-🙂 names/$'\xff\xfe-not-utf8' names/$'\x01\x7f'
            deep=names/deep; for level in {1..12}; do deep=$deep/$(printf 'd%.0s' {1..120}); done
            mkdir -p "$deep"; (cd names/deep; while cd d* 2> /dev/null; do :; done; echo deep > file)

            touch attributes/{user,binary,capability,many,lost}; mkdir attributes/directory
            setfattr -n user.comment -v 'a text' attributes/user
            setfattr -n user.binary -v 0x0001ff00 attributes/binary; setfattr -n user.empty attributes/binary
            setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 attributes/capability
            setfattr -n user.directory -v yes attributes/directory
            setfattr -n user.lost -v yes attributes/lost
            for number in {1..30}; do setfattr -n "user.number.$number" -v "$number" attributes/many; done

            : > empty; printf x > one-byte; head -c 4096 /bin/busybox > block; head -c 4097 /bin/busybox > block-and-byte
            truncate -s 40M sparse; printf middle | dd of=sparse bs=1 seek=20M conv=notrunc status=none
            touch -d '1969-07-20 20:17:40.123456789 UTC' times/old; touch -d '2112-01-01 UTC' times/late
            touch -h -d '2001-02-03 04:05:06.7 UTC' links/relative; touch -d '2001-02-03 UTC' times modes
            "#,
        )
        // What was there changes its kind, its mode, its owner, and goes.
        .script(
            r#"
            mkdir -p whiteouts opaque/below kinds/file kinds/link kinds/dangling modes/closed links attributes owners/directory
            touch whiteouts/.wh.gone whiteouts/.wh.tree .wh.gone
            touch opaque/.wh..wh..opq; echo new > opaque/new; echo new > opaque/both; echo new > opaque/below/new
            echo now-a-file > kinds/directory; echo x > kinds/file/inside; echo y > kinds/link/inside; echo z > kinds/dangling/inside
            chmod 700 kinds; chmod 4711 modes/closed; chown 9:10 owners/directory; chmod 2700 owners/directory
            echo parted > links/b; rm -rf links/a
            echo other > attributes/lost
            "#,
        )
        .script("")
        // What went comes again, as something else or with other content.
        .script(
            r#"
            mkdir -p whiteouts/tree/new gone; echo again > whiteouts/gone; echo new > whiteouts/tree/new/file; echo again > gone/again
            touch whiteouts/.wh.never-was; touch whiteouts/.wh.kept; echo same-layer > whiteouts/kept
            mkdir opaque; touch opaque/.wh.both
            "#,
        )
        .package("libc6")
        .script("mkdir modes etc; chmod 1733 modes; chmod 711 etc; touch .wh.one-byte")
}

/// A file of more than 4 GiB.
fn huge() -> Recipe {
    Recipe::busybox("huge").script(
        r"
        truncate -s 4200M sparse
        for offset in 0 64 2048 4096 4160; do printf '%s' $offset | dd of=sparse bs=1 seek=${offset}M conv=notrunc status=none; done
        printf end >> sparse
        ",
    )
}

fn both(node: &Node) -> [On<'_>; 2] {
    [node.on(Snapshotter::Overlayfs), node.on(Snapshotter::Nixenv)]
}

/// The tree of an image, as a View of it shows it.
fn tree(node: &Node, on: On, reference: &str) -> Tree {
    let target = node.directory(&format!("mounted-{}", on.snapshotter().name()));
    let target = target.to_str().expect("ASCII");
    on.ctr(["images", "mount", reference, target]).succeeds();
    let tree = Tree::of(Path::new(target));
    on.ctr(["images", "unmount", "--rm", target]).succeeds();
    tree
}

/// Bytes and files of each committed snapshot, by its name.
fn usage(on: On) -> BTreeMap<String, (u64, u64)> {
    let usage = on.ctr(["snapshots", "usage", "-b"]).succeeds();
    let rows = usage.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.map(|row| match row[..] {
        [name, bytes, files] => {
            (name.into(), (bytes.parse().expect("a number"), files.parse().expect("a number")))
        }
        _ => panic!("not a row of snapshots' usage: {row:?}"),
    })
    .collect()
}

#[track_caller]
fn same_usage(nixenv: (u64, u64), overlayfs: (u64, u64)) {
    let ((bytes, files), (expected_bytes, expected_files)) = (nixenv, overlayfs);
    assert_eq!(files, expected_files);
    assert!(bytes.abs_diff(expected_bytes) <= files * BLOCK_BYTES, "{bytes}, not {expected_bytes}");
}

#[rstest]
#[case::of_twenty_debian_packages(Release::Pinned, debian())]
#[case::of_128_layers(Release::Pinned, many_layers())]
#[case::of_128_layers_in_debians_containerd(Release::Debian, many_layers())]
#[case::of_whatever_a_layer_may_hold(Release::Pinned, odd())]
#[case::of_whatever_a_layer_may_hold_in_debians_containerd(Release::Debian, odd())]
#[case::with_a_file_of_more_than_4_gib(Release::Pinned, huge())]
fn an_image_is_the_same(#[case] release: Release, #[case] recipe: Recipe) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        let registry = node.start_registry();
        let reference = registry.push(&recipe);
        let [overlayfs, nixenv] = both(node).map(|on| {
            on.nerdctl(["pull", "--quiet", &reference]).succeeds();
            let size = on.nerdctl(["images", "--format", "{{.Size}}", &reference]).succeeds();
            (tree(node, on, &reference), size)
        });
        nixenv.0.is(&overlayfs.0);
        assert!(nixenv.0.entries().len() > 250, "that is no image: {:?}", nixenv.0);
        assert_eq!(nixenv.1, overlayfs.1, "nerdctl tells of other sizes");
        let [overlayfs, nixenv] = both(node).map(usage);
        assert!(!nixenv.is_empty());
        // The built-in snapshotter has the fixture's image besides.
        for (name, usage) in nixenv {
            same_usage(usage, overlayfs[&name]);
        }
    });
}

/// Of every kind of change that overlayfs knows.
const ODD_CHANGES: &str = r"
    echo new > /new; mkdir -p /new-directory/below; echo file > /new-directory/below/file
    echo changed > /whiteouts/kept; echo more >> /block; chmod 600 /empty; chown 5:6 /owners/user; chmod u+s /bin/busybox
    rm /whiteouts/gone; rm -r /names /gone
    rm -r /kinds/file; echo file > /kinds/file; rm /kinds/directory; mkdir /kinds/directory; touch /kinds/directory/new
    rm -r /opaque; mkdir /opaque; echo reborn > /opaque/reborn
    mv /links/b /links/moved; mv /kinds/link /moved; ln /whiteouts/c /links/another; ln -s /new /link
    mkfifo /fifo; mknod /device c 1 5
    echo more >> /attributes/user; echo more >> /attributes/capability; chmod 640 /attributes/many
    touch -d 2001-02-03 /times/old; truncate -s 20M /sparse-too; rm /one-byte 2> /dev/null || echo back > /one-byte";

const MANY_CHANGES: &str = "
    echo changed > /version; echo changed > /own/100; rm /own/0 /own/2; mv /own/3 /own/three; echo new > /own/1
    chmod 700 /own; rm -r /tmp";

/// The digests of an image's layers.
fn layers(on: On, image: &str) -> Vec<String> {
    let inspected = on.nerdctl(["image", "inspect", "--mode", "native", image]).succeeds();
    let inspected: Value = serde_json::from_str(&inspected).expect("it is JSON");
    let layers = inspected[0]["Manifest"]["layers"].as_array().expect("an image has layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a descriptor has a digest").into()).collect()
}

/// What is in a layer, whiteouts included.
fn content(node: &Node, layer: &str) -> Tree {
    let blob =
        Path::new("/var/lib/containerd/io.containerd.content.v1.content/blobs").join(layer.replace(':', "/"));
    let directory = node.directory(layer);
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    Outcome::of(tar.arg("--file").arg(blob).arg("--directory").arg(&directory)).succeeds();
    Tree::of(&directory).without_times()
}

#[rstest]
#[case::of_every_kind(odd(), ODD_CHANGES)]
#[case::on_128_layers(many_layers(), MANY_CHANGES)]
fn changes_are_told_and_committed_the_same(#[case] recipe: Recipe, #[case] changes: &str) {
    on_a_node(|node| {
        let registry = node.start_registry();
        let reference = registry.push(&recipe);
        let [overlayfs, nixenv] = both(node).map(|on| {
            let name = on.snapshotter().name();
            let run =
                ["run", "--quiet", "--detach", "--net", "none", "--name", name, &reference, "sleep", "600"];
            let container = on.nerdctl(run).succeeds();
            on.nerdctl(["exec", name, "sh", "-euc", changes]).succeeds();
            let diff = on.nerdctl(["diff", name]).succeeds();
            on.nerdctl(["commit", name, name]).succeeds();
            let committed = format!("docker.io/library/{name}:latest");
            let mut layers = layers(on, &committed);
            let layer = layers.pop().expect("one was added");
            let tree = tree(node, on, &committed).without_times();
            (diff, layers, content(node, &layer), tree, usage(on)[container.trim()])
        });
        assert_eq!(nixenv.0, overlayfs.0);
        assert!(nixenv.0.contains("\nD "), "nothing was removed:\n{}", nixenv.0);
        assert_eq!(nixenv.1, overlayfs.1);
        nixenv.2.is(&overlayfs.2);
        assert!(nixenv.2.entries().keys().any(|name| name.to_string_lossy().contains(".wh.")));
        nixenv.3.is(&overlayfs.3);
        same_usage(nixenv.4, overlayfs.4);
    });
}
