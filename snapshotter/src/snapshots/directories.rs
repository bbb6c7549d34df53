//! The directory of each snapshot.
//!
//! ```text
//! snapshots/new-ID/    in the making
//! snapshots/ID/fs/     the snapshot's content: an overlay's upper or lower directory
//! snapshots/ID/work/   overlayfs' own, of an active snapshot
//! snapshots/ID/stub/   the store paths of a Nix layer
//! ```
//!
//! A directory is complete before the database knows it, and unknown to it before it is removed: whatever happens in
//! between leaves a directory without a snapshot, which the next start, or Cleanup, removes.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use super::error::SnapshotError;
use super::info::Kind;
use super::tree;

const UNFINISHED: &str = "new-";

/// The directories of all snapshots.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    last: AtomicU64,
    /// Numbers that are on their way into the database.
    pending: Mutex<HashSet<u64>>,
    removals: mpsc::Sender<PathBuf>,
    /// Held while a directory is removed.
    removing: Arc<Mutex<()>>,
}

/// A directory in the making; dropped, it is removed.
#[derive(Debug)]
pub struct NewDirectory<'a> {
    directories: &'a Directories,
    /// The number of the snapshot.
    pub id: u64,
    path: Option<PathBuf>,
}

impl Directories {
    /// Opens the directory of all snapshots; the numbers up to `last` were given before.
    ///
    /// # Errors
    /// When it cannot be read, or no thread be started.
    pub fn open(root: &Path, last: u64) -> io::Result<Self> {
        let largest = numbers(root)?.into_iter().max().unwrap_or(0);
        let (removals, queue) = mpsc::channel::<PathBuf>();
        let removing = Arc::new(Mutex::new(()));
        let lock = Arc::clone(&removing);
        thread::Builder::new().name("remove".to_owned()).spawn(move || {
            for path in queue {
                let _lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
                remove(&path);
            }
        })?;
        Ok(Self {
            root: root.to_owned(),
            last: AtomicU64::new(last.max(largest)),
            pending: Mutex::default(),
            removals,
            removing,
        })
    }

    /// The directory of a snapshot.
    #[must_use]
    pub fn path(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// Starts the directory of a new snapshot.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self, kind: Kind) -> Result<NewDirectory<'_>, SnapshotError> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.pending().insert(id);
        let path = self.root.join(format!("{UNFINISHED}{id}"));
        let new = NewDirectory { directories: self, id, path: Some(path.clone()) };
        let make = |path: &Path, mode| {
            DirBuilder::new().mode(mode).create(path).map_err(SnapshotError::at("make", path))
        };
        make(&path, 0o700)?;
        make(&path.join("fs"), 0o755)?;
        if kind == Kind::Active {
            make(&path.join("work"), 0o711)?;
        }
        Ok(new)
    }

    /// Removes the directory of a snapshot that the database no longer knows, soon.
    pub fn discard(&self, id: u64) {
        // It fails when the thread is gone, at the end of the process; the next start finds the directory.
        let _ = self.removals.send(self.path(id));
    }

    /// Removes all directories that are no snapshot's, and waits for those that are being removed. `known` asks the
    /// database.
    ///
    /// # Errors
    /// When the directories cannot be listed.
    pub fn clean(
        &self,
        known: impl FnOnce() -> Result<HashSet<u64>, SnapshotError>,
    ) -> Result<(), SnapshotError> {
        for id in self.orphans(known)? {
            let _lock = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
            remove(&self.path(id));
        }
        drop(self.removing.lock());
        Ok(())
    }

    /// Removes what an earlier process left behind: at once what is unfinished, soon what no snapshot has. Says which
    /// snapshots lack their directory.
    ///
    /// # Errors
    /// When the directories cannot be listed.
    pub fn recover(&self, known: &HashSet<u64>) -> Result<Vec<u64>, SnapshotError> {
        let entries = fs::read_dir(&self.root).map_err(SnapshotError::at("list", &self.root))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove(&entry.path());
            }
        }
        for orphan in self.orphans(|| Ok(known.clone()))? {
            tracing::info!(id = orphan, "removing the directory of no snapshot");
            self.discard(orphan);
        }
        Ok(known.iter().copied().filter(|id| !self.path(*id).join("fs").is_dir()).collect())
    }

    /// Directories first, then numbers under way, then the database: a new snapshot is in one of the two.
    fn orphans(
        &self,
        known: impl FnOnce() -> Result<HashSet<u64>, SnapshotError>,
    ) -> Result<Vec<u64>, SnapshotError> {
        let mut ids = numbers(&self.root).map_err(SnapshotError::at("list", &self.root))?;
        let pending = self.pending().clone();
        let known = known()?;
        ids.retain(|id| !pending.contains(id) && !known.contains(id));
        Ok(ids)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NewDirectory<'_> {
    /// Where it is now.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(&self.directories.root)
    }

    /// Gives the content's root an owner.
    ///
    /// # Errors
    /// When it cannot be changed.
    pub fn set_owner(&self, (user, group): (u32, u32)) -> Result<(), SnapshotError> {
        let content = self.path().join("fs");
        lchown(&content, Some(user), Some(group)).map_err(SnapshotError::at("change the owner of", content))
    }

    /// Gives the content's root the owner of the parent's.
    ///
    /// # Errors
    /// When the parent's is not there.
    pub fn inherit_owner(&self, parent: u64) -> Result<(), SnapshotError> {
        let content = self.directories.path(parent).join("fs");
        let status = fs::metadata(&content).map_err(SnapshotError::at("examine", content))?;
        if (status.uid(), status.gid()) == (0, 0) {
            Ok(())
        } else {
            self.set_owner((status.uid(), status.gid()))
        }
    }

    /// Puts the directory where the snapshot's is, and keeps it if `record` succeeds.
    ///
    /// # Errors
    /// When it cannot be renamed; and those of `record`.
    pub fn keep_if<T>(
        mut self,
        record: impl FnOnce() -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let place = self.directories.path(self.id);
        fs::rename(self.path(), &place).map_err(SnapshotError::at("make", &place))?;
        self.path = Some(place);
        let recorded = record()?;
        self.path = None;
        Ok(recorded)
    }
}

impl Drop for NewDirectory<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove(&path);
        }
        self.directories.pending().remove(&self.id);
    }
}

fn numbers(root: &Path) -> io::Result<Vec<u64>> {
    let names = fs::read_dir(root)?.map(|entry| entry.map(|entry| entry.file_name()));
    let numbers = names.map(|name| name.map(|name| name.to_str().and_then(|name| name.parse().ok())));
    Ok(numbers.collect::<io::Result<Vec<Option<u64>>>>()?.into_iter().flatten().collect())
}

fn remove(path: &Path) {
    if let Err(error) = tree::remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a directory");
    }
}
