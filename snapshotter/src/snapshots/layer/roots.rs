//! The GC roots of snapshots.
//!
//! ```text
//! /nix/var/nix/gcroots/nixenv/snapshots/ID/NAME -> /nix/store/NAME
//! ```
//!
//! Each is a direct root, in place and durable before anything relies on what it protects. A link to a path that is
//! not valid yet is no error to Nix (`findRoots` in its `libstore/gc.cc`), so roots come before paths.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use environment::layout::Layout;
use environment::store_path::StorePath;

/// The GC roots of all snapshots.
#[derive(Debug)]
pub(super) struct Roots {
    directory: PathBuf,
    /// The snapshots whose roots this daemon made and has not released.
    made: Mutex<HashSet<u64>>,
}

impl Roots {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { directory: layout.snapshot_gc_roots(), made: Mutex::default() }
    }

    pub(super) fn of(&self, id: u64) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Protects `paths` on behalf of a snapshot, and nothing else any more.
    pub(super) fn make(&self, id: u64, paths: &[StorePath]) -> io::Result<()> {
        let directory = self.of(id);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        remove(&directory)?;
        DirBuilder::new().recursive(true).mode(0o755).create(&directory)?;
        for path in paths {
            symlink(path.as_str(), directory.join(path.base_name()))?;
        }
        File::open(&directory)?.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }

    /// Removes a snapshot's roots, if it has any.
    pub(super) fn release(&self, id: u64) {
        let directory = self.of(id);
        if let Err(error) = remove(&directory) {
            tracing::warn!(path = %directory.display(), %error, "cannot remove the GC roots of a snapshot");
        }
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Removes what an earlier daemon left for snapshots that are not `live`.
    pub(super) fn sweep(&self, live: &HashSet<u64>) {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| live.contains(&id) || made.contains(&id)) {
                continue;
            }
            let path = entry.path();
            match remove(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed the GC roots of a snapshot that is gone")
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove stale GC roots"),
            }
        }
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn roots_are_direct_links_that_are_replaced_released_and_swept() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        let path = |n: u8| -> StorePath { format!("/nix/store/{}-p{n}", "a".repeat(32)).parse().unwrap() };
        let roots = Roots::new(&layout);
        roots.make(7, &[path(1), path(2)]).unwrap();
        let link = layout.snapshot_gc_roots().join("7").join(path(1).base_name());
        assert_eq!(fs::read_link(link).unwrap(), path(1).as_path());
        roots.make(7, &[path(2)]).unwrap();
        assert_eq!(names(&roots.of(7)), [path(2).base_name()]);
        roots.make(8, &[path(3)]).unwrap();
        roots.release(8);
        roots.release(99);
        assert_eq!(names(&layout.snapshot_gc_roots()), ["7"]);

        // What this daemon made may be of a snapshot that nobody knows yet.
        roots.sweep(&HashSet::new());
        assert_eq!(names(&layout.snapshot_gc_roots()), ["7"]);
        let next = Roots::new(&layout);
        fs::write(layout.snapshot_gc_roots().join("9"), "").unwrap();
        fs::create_dir(layout.snapshot_gc_roots().join("new")).unwrap();
        next.sweep(&HashSet::from([7]));
        assert_eq!(names(&layout.snapshot_gc_roots()), ["7"]);
        next.sweep(&HashSet::new());
        assert!(names(&layout.snapshot_gc_roots()).is_empty());
    }
}
