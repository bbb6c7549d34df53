//! What a container sees of store paths, in real overlays, against what lies in the store.
//!
//! Every mount is made in a mount namespace of the test's own.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::thread;
use std::time::Instant;

use environment::digest::Digest;
use environment::settings;
use rstest::rstest;
use rustix::fs::{CWD, Mode, XattrFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use self::Made::{Directory, File, Link, Opaque, Whiteout};
use super::*;
use crate::snapshots::info::Kind;
use crate::snapshots::metadata::Ancestor;
use crate::snapshots::mounts::{Mountable, Mounting};

/// A node with a store of every kind of store path, and snapshots.
struct Node {
    directory: TempDir,
    layers: StoreLayers,
    paths: Vec<StorePath>,
    chain: Vec<Ancestor>,
}

/// Everything that a process sees of a file.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    modified: i64,
    bytes: u64,
    content: Digest,
}

/// What nix2container makes for a path that is a directory.
fn mount_point(path: &Path) {
    fs::create_dir(path).unwrap();
}

impl Node {
    fn new() -> Self {
        let mut node = Self::empty();
        node.add("package", |path| {
            fs::create_dir_all(path.join("share/deep/deeper")).unwrap();
            fs::write(path.join("share/deep/deeper/text"), "deep").unwrap();
            fs::create_dir(path.join("share/empty")).unwrap();
            fs::create_dir(path.join("bin")).unwrap();
            fs::copy("/bin/sh", path.join("bin/shell")).unwrap();
            symlink("shell", path.join("bin/sh")).unwrap();
        });
        node.add("library", |path| {
            fs::create_dir_all(path.join("lib")).unwrap();
            fs::write(path.join("lib/one.so"), "one").unwrap();
        });
        node.add("empty-directory", |path| fs::create_dir(path).unwrap());
        node.add("empty-file", |path| fs::write(path, "").unwrap());
        node.add("file", |path| fs::write(path, "a file").unwrap());
        node.add("program", |path| assert_ne!(fs::copy("/bin/sh", path).unwrap(), 0));
        node.add("link", |path| symlink("00000000000000000000000000000000-package/bin", path).unwrap());
        node
    }

    fn empty() -> Self {
        let directory = TempDir::new().unwrap();
        let layout = Layout::under(directory.path());
        fs::create_dir_all(layout.store()).unwrap();
        fs::create_dir_all(directory.path().join("nix/var/nix")).unwrap();
        let root = layout.snapshotter();
        fs::create_dir_all(root.join("snapshots")).unwrap();
        let layers = StoreLayers::new(&layout, &root, true);
        Self { directory, layers, paths: Vec::new(), chain: Vec::new() }
    }

    /// Adds a store path; files are 0444 or 0555 and of 1970, as Nix has them.
    fn add(&mut self, name: &str, make: impl FnOnce(&Path)) {
        let path: StorePath = format!("/nix/store/{:032}-{name}", self.paths.len()).parse().unwrap();
        let physical = self.layers.layout.store().join(path.base_name());
        make(&physical);
        canonicalise(&physical);
        self.paths.push(path);
    }

    fn path(&self, name: &str) -> StorePath {
        self.paths.iter().find(|path| path.base_name()[33..] == *name).unwrap().clone()
    }

    fn snapshot(&self, id: u64) -> PathBuf {
        self.layers.root.join("snapshots").join(id.to_string())
    }

    fn ancestors(&self) -> Vec<PathBuf> {
        self.chain.iter().map(|ancestor| self.snapshot(ancestor.id)).collect()
    }

    /// A snapshot in the making, with the content that `make` writes.
    fn begin(&self, make: impl FnOnce(&Path)) -> (u64, PathBuf) {
        let id = self.chain.first().map_or(1, |ancestor| ancestor.id + 1);
        let content = self.snapshot(id).join("fs");
        fs::create_dir_all(&content).unwrap();
        make(&content);
        (id, self.snapshot(id))
    }

    fn push(&mut self, id: u64, has_stub: bool, has_content: bool) {
        self.chain.insert(0, Ancestor { id, has_stub, has_content });
    }

    /// A layer on top that has content.
    fn plain(&mut self, make: impl FnOnce(&Path)) {
        let (id, _) = self.begin(make);
        self.push(id, false, true);
    }

    /// A layer on top that is not downloaded.
    fn stub(&mut self, names: &[&str]) {
        let (id, directory) = self.begin(|_| ());
        let paths: Vec<StorePath> = names.iter().map(|name| self.path(name)).collect();
        self.layers.build(&directory, &paths).unwrap();
        self.push(id, true, false);
    }

    /// A layer on top of mount points, and of other things that `make` writes.
    fn unpacked(&mut self, names: &[&str], make: impl FnOnce(&Path)) {
        let paths: Vec<StorePath> = names.iter().map(|name| self.path(name)).collect();
        let (id, directory) = self.begin(|content| {
            fs::create_dir_all(content.join("nix/store")).unwrap();
            for path in &paths {
                mount_point(&content.join("nix/store").join(path.base_name()));
            }
            make(content);
        });
        assert!(self.layers.take_over(&paths, &directory, &self.ancestors()).unwrap());
        self.push(id, true, true);
    }

    /// A container of all layers.
    fn mount(&self) -> PathBuf {
        let (id, directory) = self.begin(|_| ());
        fs::create_dir(directory.join("work")).unwrap();
        let [mask, nix] = self.layers.lowers().unwrap();
        let labels = Labels::new();
        let snapshot = Mountable { id, kind: Kind::Active, labels: &labels, ancestors: &self.chain };
        let mounting = Mounting::new(&self.layers.root.join("snapshots"), &settings::Snapshotter::default());
        let options = CString::new(mounting.with_store(snapshot, &mask, &nix).options.join(",")).unwrap();
        let target = self.directory.path().join("rootfs");
        fs::create_dir(&target).unwrap();
        rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), Some(&*options)).unwrap();
        target
    }

    fn in_store(&self, names: &[&str]) -> BTreeMap<PathBuf, Seen> {
        let mut seen = see(&self.layers.layout.store());
        seen.retain(|path, _| names.iter().any(|name| path.starts_with(self.path(name).base_name())));
        seen
    }
}

fn canonicalise(path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| canonicalise(&entry.unwrap().path()));
    }
    if !metadata.is_symlink() {
        fs::set_permissions(path, Permissions::from_mode(0o444 | metadata.mode() & 0o111)).unwrap();
    }
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn see(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_dir() {
                left.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let of_file = Seen {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                modified: metadata.mtime(),
                bytes: if metadata.is_dir() { 0 } else { metadata.len() },
                content: Digest::of(&content),
            };
            seen.insert(path.strip_prefix(root).unwrap().to_owned(), of_file);
        }
    }
    seen
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Something in a layer.
#[derive(Clone, Copy, Debug)]
enum Made {
    Directory(&'static str),
    File(&'static str),
    Link(&'static str),
    Whiteout(&'static str),
    Opaque(&'static str),
}

fn make(content: &Path, made: &[Made]) {
    for made in made {
        match made {
            Directory(path) => fs::create_dir_all(content.join(path)).unwrap(),
            File(path) => fs::write(content.join(path), "").unwrap(),
            Link(path) => symlink("elsewhere", content.join(path)).unwrap(),
            Whiteout(path) => whiteout(&content.join(path)),
            Opaque(path) => {
                fs::create_dir_all(content.join(path)).unwrap();
                let opaque = "trusted.overlay.opaque";
                rustix::fs::setxattr(content.join(path), opaque, b"y", XattrFlags::empty()).unwrap();
            }
        }
    }
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// Runs a test in a mount namespace of its own.
fn privately(test: impl FnOnce() + Send + 'static) {
    let run = || {
        // SAFETY: no file descriptor table is unshared.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.expect("these tests need root");
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

const LOWER: [&str; 3] = ["library", "empty-directory", "file"];
const UPPER: [&str; 5] = ["package", "empty-file", "program", "link", "library"];
const ALL: [&str; 7] = ["package", "library", "empty-directory", "empty-file", "file", "program", "link"];

/// A node with a container of plain layers and stubs in turns.
fn mixed() -> (Node, PathBuf) {
    let mut node = Node::new();
    node.plain(|content| {
        fs::create_dir_all(content.join("etc")).unwrap();
        fs::write(content.join("etc/passwd"), "root").unwrap();
        fs::create_dir_all(content.join("var/lib")).unwrap();
        fs::create_dir_all(content.join("store/own")).unwrap();
    });
    node.stub(&LOWER);
    node.plain(|content| fs::write(content.join("middle"), "").unwrap());
    node.unpacked(&UPPER, |content| symlink("/nix/store/a/bin", content.join("bin")).unwrap());
    node.plain(|content| fs::write(content.join("top"), "").unwrap());
    let container = node.mount();
    (node, container)
}

#[test]
fn a_container_sees_its_store_paths_and_nothing_else_of_the_node() {
    privately(|| {
        let (node, container) = mixed();
        assert_eq!(names(&container), ["bin", "etc", "middle", "nix", "store", "top", "var"]);
        assert_eq!(names(&container.join("var")), ["lib"]);
        assert_eq!(names(&container.join("store")), ["own"]);
        assert_eq!(names(&container.join("nix")), ["store"]);
        let seen = see(&container.join("nix/store"));
        assert!(seen.len() > 15, "{}", seen.len());
        assert_eq!(seen, node.in_store(&ALL));
    });
}

#[test]
fn a_container_of_store_paths_alone_shows_just_them() {
    privately(|| {
        let mut node = Node::new();
        node.stub(&["package"]);
        let container = node.mount();
        assert_eq!(names(&container), ["nix"]);
        assert_eq!(fs::metadata(&container).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(see(&container.join("nix/store")), node.in_store(&["package"]));
    });
}

#[test]
fn what_a_container_changes_stays_in_the_container() {
    privately(|| {
        let (node, container) = mixed();
        let before = see(&node.directory.path().join("nix"));
        let store = container.join("nix/store");
        let at = |name: &str| store.join(node.path(name).base_name());
        fs::write(at("package").join("share/deep/deeper/text"), "other").unwrap();
        fs::write(at("file"), "other").unwrap();
        fs::write(at("library").join("new"), "new").unwrap();
        fs::remove_file(at("library").join("lib/one.so")).unwrap();
        fs::remove_dir_all(at("empty-directory")).unwrap();
        fs::remove_file(at("link")).unwrap();
        fs::rename(at("program"), store.join("moved")).unwrap();
        fs::set_permissions(at("empty-file"), Permissions::from_mode(0o777)).unwrap();
        // A directory that lies below cannot be renamed, as in any overlay: programs copy it then.
        let renamed = fs::rename(at("package"), store.join("elsewhere")).unwrap_err();
        assert_eq!(renamed.kind(), io::ErrorKind::CrossesDevices);
        fs::remove_dir_all(at("package").join("bin")).unwrap();

        assert_eq!(fs::read(at("package").join("share/deep/deeper/text")).unwrap(), b"other");
        assert_eq!(fs::read(at("file")).unwrap(), b"other");
        assert_eq!(names(&at("library")), ["lib", "new"]);
        assert_eq!(names(&at("library").join("lib")), [""; 0]);
        assert!(!at("link").is_symlink() && !at("empty-directory").exists() && !at("program").exists());
        assert!(store.join("moved").metadata().unwrap().len() > 10_000);
        assert_eq!(names(&at("package")), ["share"]);
        fs::remove_dir_all(&store).unwrap();
        assert!(!store.exists());
        assert_eq!(see(&node.directory.path().join("nix")), before);
    });
}

#[test]
fn a_plain_layer_above_may_delete_and_replace_store_paths() {
    privately(|| {
        let mut node = Node::new();
        node.stub(&["package", "library", "file"]);
        let [package, library, file] = ["package", "library", "file"].map(|name| node.path(name));
        node.plain(|content| {
            let store = content.join("nix/store");
            fs::create_dir_all(store.join(library.base_name())).unwrap();
            fs::write(store.join(library.base_name()).join("added"), "").unwrap();
            whiteout(&store.join(package.base_name()));
            fs::write(store.join(file.base_name()), "replaced").unwrap();
        });
        let store = node.mount().join("nix/store");
        assert_eq!(names(&store), [library.base_name(), file.base_name()]);
        assert_eq!(names(&store.join(library.base_name())), ["added", "lib"]);
        assert_eq!(fs::read(store.join(file.base_name())).unwrap(), b"replaced");
    });
}

const PACKAGE: &str = "nix/store/00000000000000000000000000000000-package";

#[rstest]
#[case::a_link_in_the_place_of_nix(&[Link("nix")], "nix")]
#[case::a_whiteout_of_nix(&[Whiteout("nix")], "nix")]
#[case::an_opaque_nix(&[Opaque("nix")], "nix")]
#[case::a_file_in_the_place_of_the_store(&[Directory("nix"), File("nix/store")], "nix/store")]
#[case::an_opaque_store(&[Opaque("nix/store")], "nix/store")]
#[case::a_whiteout_of_a_path(&[Directory("nix/store"), Whiteout(PACKAGE)], PACKAGE)]
#[case::the_path_itself(&[Directory(PACKAGE)], PACKAGE)]
fn a_plain_layer_below_would_hide_store_paths_by(#[case] made: &[Made], #[case] expected: &str) {
    let mut node = Node::new();
    node.plain(|content| make(content, made));
    let content = node.ancestors()[0].join("fs");
    let paths = [node.path("package")];
    assert_eq!(find_hiding(&node.ancestors(), &paths).unwrap(), Some(content.join(expected)));
    let (_, directory) = node.begin(|content| {
        fs::create_dir_all(content.join("nix/store")).unwrap();
        mount_point(&content.join("nix/store").join(paths[0].base_name()));
    });
    let error = node.layers.take_over(&paths, &directory, &node.ancestors()).unwrap_err();
    assert!(matches!(&error, LayerError::Hidden { path } if *path == content.join(expected)), "{error}");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(!directory.join("stub").exists());
}

#[rstest]
#[case::nothing(&[])]
#[case::other_directories(&[Directory("nix/var")])]
#[case::other_store_paths(&[
    Directory("nix/store/00000000000000000000000000000001-library"),
    Whiteout("nix/store/00000000000000000000000000000002-empty-directory"),
])]
fn a_plain_layer_below_hides_nothing_by(#[case] made: &[Made]) {
    let mut node = Node::new();
    node.plain(|content| make(content, made));
    assert_eq!(find_hiding(&node.ancestors(), &[node.path("package")]).unwrap(), None);
}

#[test]
fn an_unpacked_layer_keeps_what_is_no_mount_point_of_a_named_path() {
    let node = Node::new();
    let [package, library, program, link] =
        ["package", "library", "program", "link"].map(|name| node.path(name));
    let stranger = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-stranger";
    let (_, directory) = node.begin(|content| {
        let store = content.join("nix/store");
        fs::create_dir_all(store.join(library.base_name())).unwrap();
        fs::write(store.join(library.base_name()).join("content"), "").unwrap();
        mount_point(&store.join(package.base_name()));
        mount_point(&store.join(stranger));
        fs::write(store.join(program.base_name()), "").unwrap();
        fs::write(store.join(link.base_name()), "").unwrap();
        canonicalise(&store);
    });
    let store = directory.join("fs/nix/store");
    for _ in 0..2 {
        // The second time is the one after a power failure that came before the snapshot was committed.
        assert!(node.layers.take_over(&node.paths, &directory, &[]).unwrap());
        assert_eq!(names(&store), [library.base_name(), stranger]);
        let stubs = [package.base_name(), program.base_name(), link.base_name()];
        assert_eq!(names(&directory.join("stub/nix/store")), stubs);
        assert_eq!(fs::metadata(&store).unwrap().mtime(), 1, "the directory's time is the image's");
    }
    let redirect = &mut [0; 256];
    let entry = directory.join("stub/nix/store").join(package.base_name());
    let length = rustix::fs::getxattr(&entry, "trusted.overlay.redirect", &mut redirect[..]).unwrap();
    assert_eq!(redirect[..length], *format!("/store/{}", package.base_name()).as_bytes());
}

#[test]
fn an_entry_that_a_power_failure_left_half_made_is_made_again() {
    let node = Node::new();
    let paths = [node.path("package"), node.path("file"), node.path("link")];
    let (_, directory) = node.begin(|content| {
        for path in &paths {
            fs::create_dir_all(content.join("nix/store").join(path.base_name())).unwrap();
        }
        let stub = content.with_file_name("stub").join("nix/store");
        fs::create_dir_all(stub.join(paths[0].base_name())).unwrap();
        fs::write(stub.join(paths[1].base_name()), "a fi").unwrap();
        symlink("nowhere", stub.join(paths[2].base_name())).unwrap();
    });
    assert!(node.layers.take_over(&paths, &directory, &[]).unwrap());
    assert!(shown::through(&directory.join("stub"), &node.layers.nix(), &paths).unwrap());
    assert_eq!(fs::read(directory.join("stub/nix/store").join(paths[1].base_name())).unwrap(), b"a file");
}

#[test]
fn a_layer_without_mount_points_has_no_stub() {
    let node = Node::new();
    let (_, directory) = node.begin(|content| {
        let package = content.join("nix/store").join(node.path("package").base_name());
        fs::create_dir_all(package.join("bin")).unwrap();
    });
    assert!(!node.layers.take_over(&node.paths, &directory, &[]).unwrap());
    let (_, directory) = Node::new().begin(|_| ());
    fs::create_dir_all(directory.join("fs")).unwrap();
    assert!(!node.layers.take_over(&node.paths, &directory, &[]).unwrap());
}

#[test]
fn a_store_path_that_is_missing_is_named() {
    let node = Node::new();
    let missing: StorePath = format!("/nix/store/{}-missing", "z".repeat(32)).parse().unwrap();
    let (_, directory) = node.begin(|_| ());
    let error = node.layers.build(&directory, std::slice::from_ref(&missing)).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let LayerError::Stub(source) = error else { panic!("{error}") };
    assert!(source.to_string().contains(missing.as_str()), "{source}");
}

#[test]
fn a_stub_that_the_kernel_does_not_follow_is_noticed() {
    let node = Node::new();
    let paths = [node.path("package"), node.path("file")];
    let (_, directory) = node.begin(|_| ());
    node.layers.build(&directory, &paths).unwrap();
    let (stub, nix) = (directory.join("stub"), node.layers.nix());
    assert!(shown::through(&stub, &nix, &paths).unwrap());
    let entry = stub.join("nix/store").join(paths[0].base_name());
    rustix::fs::removexattr(&entry, "trusted.overlay.redirect").unwrap();
    assert!(!shown::through(&stub, &nix, &paths).unwrap(), "a directory that is silently empty");
    node.layers.build(&directory, &paths).unwrap();
    fs::write(stub.join("nix/store").join(paths[1].base_name()), "").unwrap();
    assert!(!shown::through(&stub, &nix, &paths).unwrap(), "a file that is silently empty");
}

#[test]
fn no_store_path_is_empty_among_thousands() {
    privately(|| {
        let mut node = Node::empty();
        for n in 0..2_000 {
            node.add(&format!("path-{n}"), |path| match n % 10 {
                0 => fs::write(path, n.to_string()).unwrap(),
                _ => {
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("content"), n.to_string()).unwrap();
                }
            });
        }
        let (low, high) = ((0..1_500).collect::<Vec<_>>(), (1_000..2_000).collect::<Vec<_>>());
        for numbers in [low, high] {
            let names: Vec<String> = numbers.iter().map(|n| format!("path-{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let start = Instant::now();
            node.stub(&names);
            println!("a stub of {} paths: {:?}", names.len(), start.elapsed());
        }
        let start = Instant::now();
        let container = node.mount();
        println!("the mount: {:?}", start.elapsed());
        assert_eq!(see(&container.join("nix/store")), see(&node.layers.layout.store()));
    });
}
