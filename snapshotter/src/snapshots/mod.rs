//! containerd's snapshots: what its own overlayfs snapshotter does, and layers that name store paths.
//!
//! ```text
//! service      the service that containerd calls; the one module that knows the protocol's types
//! metadata     what is known of each snapshot: a database
//! directories  the directory of each snapshot
//! contents     what lies in one: its size, and attributes that no image may bring
//! tree         directories in directories, of any depth
//! mounts       how one is mounted
//! id_mapping   owners in user namespaces
//! filter       the filters of a list
//! layer        layers that name store paths
//! info, error  a snapshot, and what can be wrong with it
//! ```
//!
//! ```text
//! /var/lib/nixenv/snapshotter/   the root, 0700
//!   metadata.db                  the database
//!   metadata.reserve             room that a full disk leaves it for removals
//!   snapshots/                   a directory for each snapshot
//!   masks/                       what hides the rest of /nix from a container
//!   nix                          a link to /nix, for short mount options
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use environment::layout::Layout;
use environment::protocol;
use environment::settings::Snapshotter as Settings;

use self::directories::Directories;
use self::error::SnapshotError;
use self::filter::Filter;
use self::info::{Info, Kind, Labels};
use self::layer::StoreLayers;
use self::layer::labels::{self, NamedPaths};
use self::metadata::{Ancestor, Commit, Metadata, OpenMetadataError, Record, Usage};
use self::mounts::{Mount, Mountable, Mounting};

pub mod contents;
pub mod directories;
pub mod error;
pub mod filter;
pub mod id_mapping;
pub mod info;
pub mod layer;
pub mod metadata;
pub mod mounts;
pub mod service;
pub mod tree;

/// The name that an unpacked layer will have: a snapshotter that can make it without the layer says that it exists.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Names the upper directory, for those who read it.
const UPPER_DIRECTORY: &str = "containerd.io/snapshot/overlay.upperdir";

/// All snapshots of a node.
#[derive(Debug)]
pub struct Snapshots {
    metadata: Metadata,
    directories: Directories,
    mounting: Mounting,
    layers: StoreLayers,
    upperdir_label: bool,
}

/// Snapshots that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenSnapshotsError {
    /// The root cannot be used.
    #[error("cannot {operation} {path}")]
    Root {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system does not say what kind of file an entry is.
    #[error("the file system of {0} does not support d_type, which overlayfs needs; make xfs with ftype=1")]
    NoFileTypes(PathBuf),
    /// The database cannot be used.
    #[error(transparent)]
    Metadata(OpenMetadataError),
    /// What an earlier process left cannot be removed.
    #[error(transparent)]
    Recover(SnapshotError),
}

impl Snapshots {
    /// Opens a node's snapshots, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// When the directory or the database cannot be used; nothing is removed then.
    pub fn open(layout: &Layout, settings: &Settings) -> Result<Self, OpenSnapshotsError> {
        let root = settings.root.clone().unwrap_or_else(|| layout.snapshotter());
        let snapshots = root.join("snapshots");
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| OpenSnapshotsError::Root { operation, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&snapshots)
            .map_err(failed("make", &snapshots))?;
        rustix::fs::access(&root, rustix::fs::Access::WRITE_OK)
            .map_err(|error| failed("write to", &root)(error.into()))?;
        if !has_file_types(&root).map_err(failed("list", &root))? {
            return Err(OpenSnapshotsError::NoFileTypes(root));
        }
        let database = root.join("metadata.db");
        let is_empty = fs::read_dir(&snapshots).map_err(failed("list", &snapshots))?.next().is_none();
        let metadata = Metadata::open(&database, is_empty).map_err(OpenSnapshotsError::Metadata)?;
        let (known, last) = metadata.ids().map_err(OpenSnapshotsError::Recover)?;
        let directories = Directories::open(&snapshots, last).map_err(failed("list", &snapshots))?;
        for id in directories.recover(&known).map_err(OpenSnapshotsError::Recover)? {
            tracing::error!(directory = %directories.path(id).display(), "a snapshot has lost its directory");
        }
        let layers = StoreLayers::new(layout, &root, settings.believe_store_only);
        layers.sweep(&known);
        Ok(Self {
            metadata,
            directories,
            mounting: Mounting::new(&snapshots, settings),
            layers,
            upperdir_label: settings.upperdir_label,
        })
    }

    /// How many there are, and what their layers show of the node's store.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn summary(&self) -> Result<protocol::Snapshots, SnapshotError> {
        let mut summary = protocol::Snapshots { store: self.layers.summary(), ..Default::default() };
        for (kind, count) in self.metadata.counts()? {
            match kind {
                Kind::Active => summary.active = count,
                Kind::View => summary.views = count,
                Kind::Committed => summary.committed = count,
            }
        }
        Ok(summary)
    }

    /// Makes the database's one file whole, for copies of it, at the end of the process.
    pub fn close(&self) {
        if let Err(error) = self.metadata.fold() {
            tracing::warn!("the log of the database stays: {:#}", anyhow::Error::new(error));
        }
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// When there is none.
    pub fn stat(&self, key: &str) -> Result<Info, SnapshotError> {
        Ok(self.info(self.metadata.load(key)?))
    }

    /// Changes a snapshot's labels, all of them or those that `fields` name.
    ///
    /// # Errors
    /// When there is none, or something else shall be changed.
    pub fn update(&self, info: &Info, fields: &[String]) -> Result<Info, SnapshotError> {
        Ok(self.info(self.metadata.update(&info.name, &info.labels, fields)?))
    }

    /// What a snapshot takes on disk, without its parents: of a committed one as it was found then.
    ///
    /// # Errors
    /// When there is none, or its directory cannot be read.
    pub fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.metadata.load(key)?;
        match record.info.kind {
            Kind::Active => {
                let content = self.mounting.content(record.id);
                contents::measure(&content).map_err(SnapshotError::at("measure", content))
            }
            _ => Ok(record.usage),
        }
    }

    /// How a view or an active snapshot is mounted.
    ///
    /// # Errors
    /// When there is none, or it is committed.
    pub fn mounts(&self, key: &str) -> Result<Mount, SnapshotError> {
        let (record, ancestors) = self.metadata.load_chain(key)?;
        if record.info.kind == Kind::Committed {
            return Err(SnapshotError::WrongKind { name: key.to_owned(), kind: record.info.kind });
        }
        self.mount(record.id, record.info.kind, &record.info.labels, &ancestors)
    }

    /// Makes an active snapshot or a view. A layer of store paths that are there needs no unpacking: it is committed
    /// under the name that it will have, and exists already.
    ///
    /// # Errors
    /// When the key is taken, the parent missing or not committed, a label wrong, or the directory cannot be made.
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Mount, SnapshotError> {
        let owner = id_mapping::root_of(labels).map_err(SnapshotError::IdMapping)?;
        let named = labels::parse(labels).map_err(SnapshotError::Labels)?;
        let ancestors = self.metadata.load_ancestors(parent)?;
        let new = self.directories.begin(kind)?;
        match (owner, ancestors.first()) {
            (Some(owner), _) => new.set_owner(owner)?,
            (None, Some(nearest)) => new.inherit_owner(nearest.id).or_else(|error| {
                // Was it only just removed? Then there is no such parent.
                self.metadata.load_ancestors(parent)?;
                Err(error)
            })?,
            (None, None) => {}
        }
        let id = new.id;
        if let (Kind::Active, Some(target), Some(named)) = (kind, labels.get(TARGET), &named) {
            if self.metadata.has_target(target, parent)? {
                return Err(SnapshotError::AlreadyExists(target.clone()));
            }
            let directories = self.directories_of(&ancestors);
            let is_complete = self
                .layers
                .assemble(named, id, new.path(), &directories, parent, labels)
                .map_err(SnapshotError::Layer)?;
            if is_complete {
                let path = new.path().to_owned();
                let usage = contents::measure(&path).map_err(SnapshotError::at("measure", path));
                let recorded = usage.and_then(|usage| {
                    new.keep_if(|| match self.metadata.create_target(id, target, parent, labels, usage)? {
                        true => Ok(()),
                        // Somebody else was faster; this directory is not needed.
                        false => Err(SnapshotError::AlreadyExists(target.clone())),
                    })
                });
                if recorded.is_err() {
                    self.layers.release(id);
                }
                return recorded.and(Err(SnapshotError::AlreadyExists(target.clone())));
            }
        }
        new.keep_if(|| self.metadata.create(id, kind, key, parent, labels))?;
        self.mount(id, kind, labels, &ancestors)
    }

    /// Makes a committed snapshot of an active one; `parent` is for one that has none.
    ///
    /// # Errors
    /// When the name is taken, there is no such active snapshot, the parent cannot be its parent, or a store path that
    /// the layer names cannot be had.
    pub fn commit(&self, name: &str, key: &str, parent: &str, labels: &Labels) -> Result<(), SnapshotError> {
        let record = self.metadata.load(key)?;
        let directory = self.directories.path(record.id);
        let content = directory.join("fs");
        let mut has_stub = false;
        if let Some(named) = self.named_by_unpacker(&record)? {
            let parent = if record.info.parent.is_empty() { parent } else { &record.info.parent };
            let ancestors = self.directories_of(&self.metadata.load_ancestors(parent)?);
            has_stub =
                self.layers.adopt(&named, record.id, &directory, &ancestors).map_err(SnapshotError::Layer)?;
        }
        let mut usage =
            contents::measure_and_clean(&content).map_err(SnapshotError::at("measure", content))?;
        if has_stub {
            let stub = directory.join("stub");
            let of_stub = contents::measure(&stub).map_err(SnapshotError::at("measure", stub))?;
            usage.inodes += of_stub.inodes;
            usage.bytes += of_stub.bytes;
        }
        let committed = self.metadata.commit(key, &Commit { name, parent, labels, usage, has_stub });
        if committed.is_err() && has_stub {
            self.layers.release(record.id);
        }
        committed
    }

    /// Forgets a snapshot; its directory goes soon after.
    ///
    /// # Errors
    /// When there is none, or it has children.
    pub fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let record = self.metadata.remove(key)?;
        // A commit that was cut short may have left a root, too.
        self.layers.release(record.id);
        self.directories.discard(record.id);
        Ok(())
    }

    /// Shows the snapshots that match, for as long as `visit` wants more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, filter: &Filter, mut visit: impl FnMut(Info) -> bool) -> Result<(), SnapshotError> {
        self.metadata.list(|record| !filter.matches(&record.info) || visit(self.info(record)))
    }

    /// Removes the directories of snapshots that are gone, and waits until they are.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn clean_up(&self) -> Result<(), SnapshotError> {
        self.directories.clean(|| Ok(self.metadata.ids()?.0))
    }

    fn mount(
        &self,
        id: u64,
        kind: Kind,
        labels: &Labels,
        ancestors: &[Ancestor],
    ) -> Result<Mount, SnapshotError> {
        let snapshot = Mountable { id, kind, labels, ancestors };
        if ancestors.iter().any(|ancestor| ancestor.has_stub) {
            let [mask, nix] = self.layers.lowers().map_err(SnapshotError::Layer)?;
            Ok(self.mounting.with_store(snapshot, &mask, &nix))
        } else {
            Ok(self.mounting.plain(snapshot))
        }
    }

    /// What the labels name that the unpacker gave an active snapshot; a container's own snapshot names nothing.
    fn named_by_unpacker(&self, record: &Record) -> Result<Option<NamedPaths>, SnapshotError> {
        if record.info.kind != Kind::Active {
            return Ok(None);
        }
        labels::parse(&record.info.labels).map_err(SnapshotError::Labels)
    }

    fn directories_of(&self, ancestors: &[Ancestor]) -> Vec<PathBuf> {
        ancestors.iter().map(|ancestor| self.directories.path(ancestor.id)).collect()
    }

    fn info(&self, record: Record) -> Info {
        let mut info = record.info;
        if self.upperdir_label {
            let upper = self.mounting.content(record.id).display().to_string();
            info.labels.insert(UPPER_DIRECTORY.to_owned(), upper);
        }
        info
    }
}

/// Whether the file system says in a listing what kind of file an entry is, as overlayfs needs it.
fn has_file_types(directory: &Path) -> io::Result<bool> {
    let entries = rustix::fs::Dir::new(rustix::fs::open(
        directory,
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == c"snapshots" {
            return Ok(entry.file_type() != rustix::fs::FileType::Unknown);
        }
    }
    Ok(true)
}
