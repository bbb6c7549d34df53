//! What a view shows, against what lies in the store. All of it happens in mount namespaces of the tests' own.

use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::thread;

use rstest::rstest;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use super::*;
use crate::digest::Digest;

/// A node with a store of every kind of store path.
struct Node {
    directory: TempDir,
    layout: Layout,
    closure: Vec<StorePath>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Overlay,
    Farm,
}

/// Everything that a process sees of a file.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    modified: i64,
    bytes: u64,
    content: Digest,
}

impl Node {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let layout = Layout::under(directory.path());
        fs::create_dir_all(layout.store()).unwrap();
        let mut node = Self { directory, layout, closure: Vec::new() };
        node.add("package", |path| {
            fs::create_dir_all(path.join("share/deep/deeper")).unwrap();
            fs::write(path.join("share/deep/deeper/text"), "deep").unwrap();
            fs::create_dir(path.join("share/empty")).unwrap();
            fs::create_dir(path.join("bin")).unwrap();
            fs::copy("/bin/sh", path.join("bin/shell")).unwrap();
            symlink("shell", path.join("bin/sh")).unwrap();
        });
        node.add("empty-directory", |path| fs::create_dir(path).unwrap());
        node.add("empty-file", |path| fs::write(path, "").unwrap());
        node.add("small-file", |path| fs::write(path, "small").unwrap());
        node.add("program", |path| assert_ne!(fs::copy("/bin/sh", path).unwrap(), 0));
        node.add("big-file", |path| fs::write(path, pattern(1 << 20)).unwrap());
        node.add("link", |path| symlink("/nix/store/elsewhere", path).unwrap());
        node
    }

    /// Adds a store path to the closure; files are 0444 or 0555 and of 1970, as Nix has them.
    fn add(&mut self, name: &str, make: impl FnOnce(&Path)) {
        let path: StorePath = format!("/nix/store/{:032}-{name}", self.closure.len()).parse().unwrap();
        let physical = self.physical(&path);
        make(&physical);
        canonicalise(&physical);
        self.closure.push(path);
    }

    fn physical(&self, path: &StorePath) -> PathBuf {
        self.layout.store().join(path.base_name())
    }

    fn named(&self, name: &str) -> &StorePath {
        self.closure.iter().find(|path| path.base_name()[33..] == *name).unwrap()
    }

    fn stub(&self, form: Form) -> ViewId {
        let view = build_stub(&self.layout, &self.closure).unwrap();
        if form == Form::Farm {
            fs::write(self.layout.stub(&view).join(farm::MARK), "").unwrap();
        }
        view
    }

    /// How often something is mounted somewhere below this node, by the paths.
    fn mounts(&self) -> Vec<String> {
        fs::read_to_string("/proc/thread-self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| {
                line.split(' ').nth(4).unwrap().starts_with(self.directory.path().to_str().unwrap())
            })
            .map(str::to_owned)
            .collect()
    }

    fn in_store(&self) -> BTreeMap<PathBuf, Seen> {
        let names: Vec<&str> = self.closure.iter().map(StorePath::base_name).collect();
        let mut seen = see(&self.layout.store());
        seen.retain(|path, _| names.iter().any(|name| path.starts_with(name)));
        seen
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at * 7) >> 3) as u8).collect()
}

fn canonicalise(path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| canonicalise(&entry.unwrap().path()));
    }
    if !metadata.is_symlink() {
        set_permissions(path, Permissions::from_mode(0o444 | metadata.mode() & 0o111)).unwrap();
    }
    let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
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
            let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
            let content = Digest::of(&content);
            let seen_file = Seen { mode: metadata.mode(), modified: metadata.mtime(), bytes, content };
            seen.insert(path.strip_prefix(root).unwrap().to_owned(), seen_file);
        }
    }
    seen
}

/// Runs a test where its mounts are nobody else's; they end with the thread.
fn privately(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        // Not eprintln: the harness would hide it.
        writeln!(io::stderr(), "skipped: {:?} needs root to mount", thread::current().name()).unwrap();
        return;
    }
    let outcome = thread::spawn(|| {
        // SAFETY: only this thread changes its mount namespace; it shares its descriptors as before.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        test();
    });
    if let Err(panic) = outcome.join() {
        std::panic::resume_unwind(panic);
    }
}

#[rstest]
#[case::as_an_overlay(Form::Overlay, 1)]
#[case::as_a_farm(Form::Farm, 7)]
fn a_view_shows_exactly_its_closure(#[case] form: Form, #[case] mounts: usize) {
    privately(move || {
        let mut node = Node::new();
        node.add("outsider", |path| fs::write(path, "not in the closure").unwrap());
        node.closure.pop();
        // No store path, but what the stub's own `view` must hide.
        fs::create_dir(node.layout.store().join("view")).unwrap();
        fs::write(node.layout.store().join("view/outsider"), "").unwrap();
        let view = node.stub(form);
        let shown = ensure_mounted(&node.layout, &view).unwrap();
        assert_eq!(see(&shown), node.in_store());
        assert_eq!(shown.metadata().unwrap().mode() & 0o7777, 0o555);
        assert_eq!(node.mounts().len(), mounts, "{:#?}", node.mounts());
        for mount in node.mounts() {
            assert!(mount.split(' ').nth(5).unwrap().starts_with("ro,nosuid,nodev"), "{mount}");
        }
    });
}

#[rstest]
#[case::as_an_overlay(Form::Overlay)]
#[case::as_a_farm(Form::Farm)]
fn a_bind_of_a_view_shows_it_and_runs_its_programs(#[case] form: Form) {
    privately(move || {
        let node = Node::new();
        let shown = ensure_mounted(&node.layout, &node.stub(form)).unwrap();
        let target = node.directory.path().join("target");
        fs::create_dir(&target).unwrap();
        rustix::mount::mount_bind_recursive(&shown, &target).unwrap();
        assert_eq!(see(&target), node.in_store());
        for program in [
            node.named("package").base_name().to_owned() + "/bin/sh",
            node.named("program").base_name().into(),
        ] {
            let output = Command::new(target.join(program)).args(["-c", "echo $((6 * 7))"]).output().unwrap();
            assert_eq!(output.stdout, b"42\n");
        }
    });
}

#[rstest]
#[case::as_an_overlay(Form::Overlay)]
#[case::as_a_farm(Form::Farm)]
fn a_view_cannot_be_written(#[case] form: Form) {
    privately(move || {
        let node = Node::new();
        let before = see(&node.layout.store());
        let shown = ensure_mounted(&node.layout, &node.stub(form)).unwrap();
        let (small, package) = (node.named("small-file").base_name(), node.named("package").base_name());
        let refused = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        };
        refused(fs::write(shown.join(small), "x"));
        refused(fs::write(shown.join(package).join("new"), "x"));
        refused(fs::remove_file(shown.join(package).join("bin/shell")));
        refused(fs::create_dir(shown.join("new")));
        refused(set_permissions(shown.join(package), Permissions::from_mode(0o777)));
        assert_eq!(see(&node.layout.store()), before);
    });
}

#[rstest]
#[case::as_an_overlay(Form::Overlay)]
#[case::as_a_farm(Form::Farm)]
fn store_files_may_be_replaced_by_equal_ones(#[case] form: Form) {
    privately(move || {
        let node = Node::new();
        let shown = ensure_mounted(&node.layout, &node.stub(form)).unwrap();
        let before = see(&shown);
        let links = node.layout.store().join(".links");
        fs::create_dir(&links).unwrap();
        for path in ["package", "big-file"].map(|name| node.physical(node.named(name))) {
            let path = if path.is_dir() { path.join("share/deep/deeper/text") } else { path };
            // As `nix-store --optimise` does: a hard link, renamed over the file.
            fs::copy(&path, links.join("digest")).unwrap();
            canonicalise(&links.join("digest"));
            fs::hard_link(links.join("digest"), links.join("replacement")).unwrap();
            fs::rename(links.join("replacement"), &path).unwrap();
            canonicalise(path.parent().unwrap());
            fs::remove_file(links.join("digest")).unwrap();
        }
        assert_eq!(see(&shown), before);
    });
}

#[test]
fn five_thousand_store_paths_are_one_mount() {
    privately(|| {
        // A disk takes many seconds to remove them.
        rustix::mount::mount("tmpfs", std::env::temp_dir(), "tmpfs", MountFlags::empty(), None).unwrap();
        let mut node = Node::new();
        for index in 0..5_000 {
            node.add("package", |path| {
                fs::create_dir(path).unwrap();
                fs::write(path.join("index"), index.to_string()).unwrap();
            });
        }
        let shown = ensure_mounted(&node.layout, &node.stub(Form::Overlay)).unwrap();
        assert_eq!(see(&shown), node.in_store());
        assert_eq!(node.mounts().len(), 1);
    });
}

#[test]
fn a_missing_store_path_is_named_and_leaves_nothing() {
    let mut node = Node::new();
    node.add("gone", |path| fs::write(path, "").unwrap());
    fs::remove_file(node.physical(node.named("gone"))).unwrap();
    let error = build_stub(&node.layout, &node.closure).unwrap_err();
    assert!(
        matches!(&error, ViewError::MissingStorePath { path } if path == node.named("gone")),
        "{error:?}"
    );
    assert_eq!(fs::read_dir(node.layout.stubs()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.layout.scratch()).unwrap().count(), 0);
}

#[test]
fn a_view_without_a_stub_is_an_error() {
    let node = Node::new();
    let view = ViewId::of_closure(&node.closure);
    let error = ensure_mounted(&node.layout, &view).unwrap_err();
    assert!(matches!(error, ViewError::MissingStub { view: missing } if missing == view), "{error:?}");
}

#[test]
fn a_stub_is_built_once_by_any_number_of_builders() {
    let mut node = Node::new();
    node.closure.extend_from_within(..2);
    let views: Vec<ViewId> = thread::scope(|scope| {
        let builders: Vec<_> =
            (0..8).map(|_| scope.spawn(|| build_stub(&node.layout, &node.closure).unwrap())).collect();
        builders.into_iter().map(|builder| builder.join().unwrap()).collect()
    });
    assert!(views.iter().all(|view| *view == views[0]));
    assert_eq!(fs::read_dir(node.layout.stubs()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(node.layout.scratch()).unwrap().count(), 0);
    let inode = node.layout.stub(&views[0]).metadata().unwrap().ino();
    build_stub(&node.layout, &node.closure).unwrap();
    assert_eq!(node.layout.stub(&views[0]).metadata().unwrap().ino(), inode);
}

#[rstest]
#[case::as_an_overlay(Form::Overlay)]
#[case::as_a_farm(Form::Farm)]
fn a_view_is_mounted_once_and_again_after_it_was_unmounted(#[case] form: Form) {
    privately(move || {
        let node = Node::new();
        let view = node.stub(form);
        let mount_point = node.layout.mount_point(&view);
        assert!(!is_mounted(&node.layout, &view).unwrap());
        ensure_mounted(&node.layout, &view).unwrap();
        let mounts = node.mounts();
        ensure_mounted(&node.layout, &view).unwrap();
        assert_eq!(node.mounts(), mounts);
        for _ in 0..2 {
            unmount(&mount_point).unwrap();
            assert!(!mount_point.exists());
            assert_eq!(node.mounts().len(), 0);
        }
        let shown = ensure_mounted(&node.layout, &view).unwrap();
        assert_eq!(node.mounts().len(), mounts.len());
        assert_eq!(see(&shown), node.in_store());
    });
}

#[rstest]
#[case::as_an_overlay(Form::Overlay, 1)]
#[case::as_a_farm(Form::Farm, 7)]
fn eight_threads_mount_a_view_once(#[case] form: Form, #[case] mounts: usize) {
    privately(move || {
        let node = Node::new();
        let view = node.stub(form);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let shown = ensure_mounted(&node.layout, &view).unwrap();
                    assert_eq!(see(&shown), node.in_store());
                });
            }
        });
        assert_eq!(node.mounts().len(), mounts);
    });
}

/// The `/nix/store` of an image's rootfs, which is an overlay, as containerd mounts it.
fn image_store(node: &Node) -> OwnedFd {
    let [image, upper, work, rootfs] =
        ["image", "upper", "work", "rootfs"].map(|name| node.directory.path().join(name));
    fs::create_dir_all(image.join("nix/store/image-package/bin")).unwrap();
    fs::write(image.join("nix/store/image-package/bin/tool"), "of the image").unwrap();
    [&upper, &work, &rootfs].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
    let [image, upper, work] = [image, upper, work].map(|path| path.to_str().unwrap().to_owned());
    let options = CString::new(format!("lowerdir={image},upperdir={upper},workdir={work}")).unwrap();
    rustix::mount::mount("overlay", &rootfs, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    open_directory(&rootfs.join("nix/store")).unwrap()
}

#[rstest]
#[case::both_overlays(Form::Overlay, false, 1)]
#[case::a_farm_beside_the_image(Form::Farm, false, 8)]
#[case::overlays_too_deep_to_stack(Form::Overlay, true, 8)]
fn a_view_is_visible_beside_the_images_own_store(
    #[case] form: Form,
    #[case] store_is_overlay: bool,
    #[case] mounts: usize,
) {
    privately(move || {
        let node = Node::new();
        if store_is_overlay {
            let (store, other) = (node.layout.store(), node.directory.path().join("other"));
            fs::create_dir(&other).unwrap();
            let options = format!("lowerdir={}:{}", store.display(), other.display());
            let options = CString::new(options).unwrap();
            rustix::mount::mount("overlay", &store, "overlay", MountFlags::RDONLY, options.as_c_str())
                .unwrap();
        }
        let view = node.stub(form);
        let image = image_store(&node);
        let target = node.layout.run().join("containers/one/store");
        let before = node.in_store();
        mount_beside(&node.layout, &view, image.as_fd(), &target).unwrap();
        let mut seen = see(&target);
        let tool = seen.remove(Path::new("image-package/bin/tool")).unwrap();
        assert_eq!(tool.content, Digest::of(b"of the image"));
        seen.retain(|path, _| !path.starts_with("image-package"));
        assert_eq!(seen, before);
        let error = fs::write(target.join("image-package/new"), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let at_target = node.mounts().into_iter().filter(|line| line.contains("containers/one")).count();
        assert_eq!(at_target, mounts);
        unmount(&target).unwrap();
        assert!(is_mounted(&node.layout, &view).unwrap());
    });
}

/// As after a backup was restored without them.
#[test]
fn a_stub_that_lost_its_xattrs_shows_its_closure_nonetheless() {
    privately(|| {
        let node = Node::new();
        let view = node.stub(Form::Overlay);
        let stub = node.layout.stub(&view).join(VIEW);
        for path in [node.named("package"), node.named("empty-directory")] {
            rustix::fs::removexattr(stub.join(path.base_name()), "trusted.overlay.redirect").unwrap();
        }
        let shown = ensure_mounted(&node.layout, &view).unwrap();
        assert_eq!(see(&shown), node.in_store());
    });
}

#[test]
fn a_removed_stub_leaves_no_mount_and_no_file() {
    privately(|| {
        let node = Node::new();
        let view = node.stub(Form::Overlay);
        ensure_mounted(&node.layout, &view).unwrap();
        for _ in 0..2 {
            remove_stub(&node.layout, &view).unwrap();
            assert_eq!(node.mounts().len(), 0);
            for directory in [node.layout.stubs(), node.layout.scratch(), node.layout.mount_points()] {
                assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
            }
        }
        let shown = ensure_mounted(&node.layout, &node.stub(Form::Overlay)).unwrap();
        assert_eq!(see(&shown), node.in_store());
    });
}

#[test]
fn a_sweep_unmounts_what_is_not_kept() {
    privately(|| {
        let mut node = Node::new();
        let kept = node.stub(Form::Overlay);
        node.add("more", |path| fs::write(path, "").unwrap());
        let dropped = node.stub(Form::Farm);
        ensure_mounted(&node.layout, &kept).unwrap();
        ensure_mounted(&node.layout, &dropped).unwrap();
        fs::create_dir(node.layout.mount_points().join("new")).unwrap();
        sweep_mounts(&node.layout, |view| *view == kept).unwrap();
        assert_eq!(node.mounts().len(), 1);
        assert!(is_mounted(&node.layout, &kept).unwrap());
        assert_eq!(fs::read_dir(node.layout.mount_points()).unwrap().count(), 1);
    });
}

/// Runs itself again below `unshare`: a user namespace cannot be entered by one thread of several.
#[test]
fn a_user_namespace_gets_a_farm() {
    const INSIDE: &str = "NIXENV_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let can = Command::new("unshare").args(["-U", "-r", "-m", "true"]).status();
        if !can.is_ok_and(|status| status.success()) {
            writeln!(io::stderr(), "skipped: user namespaces are not allowed here").unwrap();
            return;
        }
        let output = Command::new("unshare")
            .args(["-U", "-r", "-m"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "view::tests::a_user_namespace_gets_a_farm", "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{output:#?}");
        return;
    }
    let node = Node::new();
    let view = build_stub(&node.layout, &node.closure).unwrap();
    assert!(node.layout.stub(&view).join(farm::MARK).exists());
    let shown = ensure_mounted(&node.layout, &view).unwrap();
    assert_eq!(see(&shown), node.in_store());
    assert_eq!(node.mounts().len(), 7);
    let file = shown.join(node.named("package").base_name()).join("bin/shell");
    assert_eq!(fs::write(file, "").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    unmount(&node.layout.mount_point(&view)).unwrap();
    assert_eq!(node.mounts().len(), 0);
}
