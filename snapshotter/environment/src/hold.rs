//! What a container has in use, on disk for as long as the container is there.
//!
//! ```text
//! /run/nixenv/containers/HOLD/hold.json   whose it is, and the environment
//! /run/nixenv/containers/HOLD/store/      a mount point, when the image has a /nix/store of its own
//! ```
//!
//! The runtime wrapper acquires it before the container is created, and the poststop hook releases it. It is how an
//! exec finds the container's bundle, and how whoever removes environments knows which are in use. A hold that nobody
//! released (the wrapper was killed, the node lost power) is one whose bundle is gone; [`sweep`] releases it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, FieldHasher};
use crate::key::{Key, ViewId};
use crate::layout::Layout;
use crate::view::{self, ViewError};

/// What a container holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The container's id, as the runtime knows it.
    pub id: String,
    /// The container's bundle, absolute.
    pub bundle: PathBuf,
    /// The environment.
    pub key: Key,
    /// Its view.
    pub view: ViewId,
}

/// A hold whose container is not created yet: dropped, it is released.
///
/// The wrapper never drops it when it becomes the runtime, since `execve` runs no destructors.
#[derive(Debug)]
pub struct Hold {
    layout: Layout,
    container: Digest,
}

/// A hold that cannot be read, acquired or released.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// A system call on a path failed.
    #[error("cannot {operation} {path}")]
    Path {
        /// What was tried, a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The record is not what was written.
    #[error("the hold {path} is damaged; if no container is running, remove it")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The hold's own mount stays.
    #[error("cannot unmount a container's store")]
    Unmount(#[source] ViewError),
}

/// The name of a container's hold: of the runtime's `--root`, where it was given, and the container's id, by which
/// the runtime itself tells containers apart.
#[must_use]
pub fn name_of(root: Option<&Path>, id: &str) -> Digest {
    // Not resolved: the directory need not be there before the first container. Only `a//b/` becomes `a/b`.
    let root = root.map(|root| root.components().collect::<PathBuf>().into_os_string().into_encoded_bytes());
    FieldHasher::new("nixenv hold").optional(root).field(id).finish()
}

/// What `container` holds, unless it holds nothing.
///
/// # Errors
/// When its record cannot be read.
pub fn find(layout: &Layout, container: &Digest) -> Result<Option<Held>, HoldError> {
    let path = layout.hold(container).join("hold.json");
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|source| HoldError::Damaged { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HoldError::Path { operation: "read", path, source }),
    }
}

/// Every hold, with what it holds.
///
/// # Errors
/// When the directory of holds or a record cannot be read.
pub fn list(layout: &Layout) -> Result<Vec<(Digest, Held)>, HoldError> {
    let mut holds = Vec::new();
    for container in containers(layout)? {
        if let Some(held) = find(layout, &container)? {
            holds.push((container, held));
        }
    }
    Ok(holds)
}

/// Releases what `container` holds; a container that holds nothing is no error.
///
/// # Errors
/// When the hold's mount or directory stays.
pub fn release(layout: &Layout, container: &Digest) -> Result<(), HoldError> {
    let directory = layout.hold(container);
    // The record first: a hold without it is released by the next sweep, one without its mount would not be.
    let record = directory.join("hold.json");
    absent_is_fine(fs::remove_file(&record)).map_err(|source| HoldError::Path {
        operation: "remove",
        path: record,
        source,
    })?;
    let store = directory.join("store");
    if store.exists() {
        view::unmount(&store).map_err(HoldError::Unmount)?;
    }
    // Not recursive into `store`: should it still be a mount, nothing in it may be removed.
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            absent_is_fine(if path == store { fs::remove_dir(&path) } else { fs::remove_file(&path) })?;
        }
        fs::remove_dir(&directory)
    };
    absent_is_fine(remove()).map_err(|source| HoldError::Path {
        operation: "remove",
        path: directory,
        source,
    })
}

/// Releases the holds of containers whose bundle is gone, and returns how many there were.
///
/// # Errors
/// When the directory of holds cannot be read, or a hold stays; the other holds are released before that.
pub fn sweep(layout: &Layout) -> Result<usize, HoldError> {
    let mut released = 0;
    let mut failure = None;
    for container in containers(layout)? {
        let lock;
        let left = match find(layout, &container) {
            Ok(Some(held)) => !held.bundle.exists(),
            // The wrapper that is about to write the record has the lock.
            Ok(None) => {
                lock = try_lock(&layout.hold(&container));
                lock.is_some() && matches!(find(layout, &container), Ok(None))
            }
            Err(HoldError::Damaged { .. }) => true,
            Err(error) => {
                failure = Some(error);
                false
            }
        };
        if left {
            match release(layout, &container) {
                Ok(()) => released += 1,
                Err(error) => failure = Some(error),
            }
        }
    }
    failure.map_or(Ok(released), Err)
}

impl Hold {
    /// Acquires the hold of `container`, in place of one that an earlier container of this name left.
    ///
    /// # Errors
    /// When the old one cannot be released, or the new one not be written.
    pub fn acquire(layout: &Layout, container: Digest, held: &Held) -> Result<Self, HoldError> {
        release(layout, &container)?;
        let directory = layout.hold(&container);
        let _lock = create_locked(&directory).map_err(|source| HoldError::Path {
            operation: "create",
            path: directory.clone(),
            source,
        })?;
        let hold = Self { layout: layout.clone(), container };
        let record = directory.join("hold.json");
        let write = || {
            let unfinished = directory.join("hold.json.new");
            fs::write(&unfinished, serde_json::to_vec(held)?)?;
            fs::rename(&unfinished, &record)
        };
        write().map_err(|source| HoldError::Path { operation: "write", path: record.clone(), source })?;
        Ok(hold)
    }

    /// Where this container's own store may be mounted; not there yet.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.layout.hold(&self.container).join("store")
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // What stays is what a sweep is for.
        let _ = release(&self.layout, &self.container);
    }
}

fn containers(layout: &Layout) -> Result<Vec<Digest>, HoldError> {
    let path = layout.holds();
    let read = || fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(names) => Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(HoldError::Path { operation: "list", path, source }),
    }
}

/// Makes a hold's directory and locks it, so that no sweep takes it for one that was left. The lock ends with the
/// process, and when that becomes the runtime.
fn create_locked(directory: &Path) -> io::Result<File> {
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let lock = match File::open(directory) {
            // A sweep came between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            lock => lock?,
        };
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        if fs::metadata(directory)
            .is_ok_and(|now| lock.metadata().is_ok_and(|locked| now.ino() == locked.ino()))
        {
            return Ok(lock);
        }
    }
}

/// Locks a directory that nobody has locked.
fn try_lock(directory: &Path) -> Option<File> {
    let lock = File::open(directory).ok()?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::key::{NodeFacts, World};
    use crate::settings::Settings;

    struct Node {
        layout: Layout,
        bundle: PathBuf,
        _directory: tempfile::TempDir,
    }

    fn node() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        Node { layout: Layout::under(directory.path()), bundle, _directory: directory }
    }

    impl Node {
        fn held(&self) -> Held {
            let facts = NodeFacts { nix_version: "2.8.0".into(), system: "x86_64-linux".into() };
            let world = World { settings: &Settings::default(), node: &facts, attr: None };
            Held {
                id: "c".into(),
                bundle: self.bundle.clone(),
                key: world.key(&Digest::of(b"a"), "config.nix"),
                view: ViewId::of_closure(&[]),
            }
        }

        /// Acquires a hold whose wrapper became the runtime.
        fn acquire(&self, name: Digest) {
            std::mem::forget(Hold::acquire(&self.layout, name, &self.held()).unwrap());
        }
    }

    #[test]
    fn what_is_acquired_is_found_until_it_is_released() {
        let node = node();
        let name = name_of(None, "c");
        assert_eq!(find(&node.layout, &name).unwrap(), None);
        node.acquire(name);
        assert_eq!(find(&node.layout, &name).unwrap(), Some(node.held()));
        assert_eq!(list(&node.layout).unwrap(), [(name, node.held())]);
        release(&node.layout, &name).unwrap();
        assert_eq!(find(&node.layout, &name).unwrap(), None);
        assert!(!node.layout.hold(&name).exists());
        release(&node.layout, &name).unwrap();
    }

    #[test]
    fn a_start_that_fails_releases_its_hold() {
        let node = node();
        let name = name_of(None, "c");
        drop(Hold::acquire(&node.layout, name, &node.held()).unwrap());
        assert!(!node.layout.hold(&name).exists());
    }

    #[test]
    fn a_hold_that_an_earlier_container_left_is_replaced() {
        let node = node();
        let name = name_of(None, "c");
        node.acquire(name);
        let other = Held { bundle: "/other".into(), ..node.held() };
        std::mem::forget(Hold::acquire(&node.layout, name, &other).unwrap());
        assert_eq!(find(&node.layout, &name).unwrap(), Some(other));
    }

    #[test]
    fn a_sweep_releases_only_holds_whose_bundle_is_gone() {
        let node = node();
        let (kept, left) = (name_of(None, "kept"), name_of(None, "left"));
        node.acquire(kept);
        let held = Held { bundle: node.bundle.join("gone"), ..node.held() };
        std::mem::forget(Hold::acquire(&node.layout, left, &held).unwrap());
        assert_eq!(sweep(&node.layout).unwrap(), 1);
        assert!(node.layout.hold(&kept).exists());
        assert!(!node.layout.hold(&left).exists());
    }

    #[test]
    fn a_sweep_leaves_a_hold_that_is_just_being_acquired() {
        let node = node();
        let (young, damaged) = (node.layout.hold(&name_of(None, "y")), node.layout.hold(&name_of(None, "d")));
        let lock = create_locked(&young).unwrap();
        fs::create_dir_all(&damaged).unwrap();
        fs::write(damaged.join("hold.json"), "{").unwrap();
        assert_eq!(sweep(&node.layout).unwrap(), 1);
        assert!(young.exists() && !damaged.exists());
        drop(lock);
        assert_eq!(sweep(&node.layout).unwrap(), 1);
        assert!(!young.exists());
    }

    #[test]
    fn a_node_without_holds_has_nothing_to_sweep() {
        assert_eq!(sweep(&node().layout).unwrap(), 0);
    }

    #[rstest]
    #[case::the_same_id((None, "a"), (None, "a"), true)]
    #[case::another_id((None, "a"), (None, "b"), false)]
    #[case::another_root((Some("/run/x"), "a"), (Some("/run/y"), "a"), false)]
    #[case::no_root((Some("/run/x"), "a"), (None, "a"), false)]
    #[case::the_same_root_in_other_words((Some("/run//x/"), "a"), (Some("/run/./x"), "a"), true)]
    fn containers_are_told_apart(
        #[case] one: (Option<&str>, &str),
        #[case] other: (Option<&str>, &str),
        #[case] same: bool,
    ) {
        let name = |(root, id): (Option<&str>, &str)| name_of(root.map(Path::new), id);
        assert_eq!(name(one) == name(other), same);
    }
}
