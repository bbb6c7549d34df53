//! Layers that name store paths, shown by the overlay that a container has anyway.
//!
//! The snapshot of such a layer is a *stub*: for each store path an empty directory that redirects the overlay to the
//! node's own. A container's rootfs is one mount, however many store paths it has:
//!
//! ```text
//! lowerdir = plain content of all layers : mask : stubs of all layers : /nix      redirect_dir = follow
//! ```
//!
//! The node's paths are never written to: what a container changes is copied up, as ever.
//!
//! ```text
//! labels   what a layer's labels name
//! closure  store paths to valid ones, through the Nix daemon
//! savings  what layers show of the store instead of holding it
//! roots    the GC roots of snapshots
//! stub     what shows store paths
//! mask     what keeps the node's /nix from showing at the root of a container
//! hidden   what in plain layers would hide a stub
//! shown    whether an overlay shows what a stub promises
//! proof    whether a layer holds store paths and nothing else
//! ```
//!
//! A layer need not be downloaded when this node has its paths, or can substitute them, and it is known to hold nothing
//! else. Otherwise it is unpacked like any other, and the mount points that nix-snapshotter's images bring become a stub
//! when it is committed. GC roots come first, durably; then paths; then whatever relies on them.

mod closure;
mod hidden;
pub mod labels;
mod mask;
mod proof;
mod roots;
mod savings;
mod shown;
mod stub;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use environment::layout::Layout;
use environment::protocol;
use environment::store_path::{STORE_DIR, StorePath};
use rustix::fs::{AtFlags, Dir, FileType, Timespec, Timestamps};

pub use closure::{ReadListError, RealiseError};
pub use labels::{NamedPaths, ParseLabelsError};
pub use stub::StubError;

use self::closure::Store;
use self::hidden::Entries;
use self::labels::Paths;
use self::roots::Roots;
use self::savings::Savings;
use self::stub::Stub;
use super::error::Code;
use super::info::Labels;
use crate::nix::Node;

/// The chain id of the layer that a snapshot is prepared for.
const CHAIN_ID: &str = "containerd.io/snapshot.ref";

/// What makes stubs on this node.
#[derive(Debug)]
pub struct StoreLayers {
    layout: Layout,
    root: PathBuf,
    believes: bool,
    node: Node,
    roots: Roots,
    savings: Mutex<Savings>,
}

/// A layer whose store paths cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The closure that it names is none: its author's mistake, or malice.
    #[error("the closure that the layer names cannot be used")]
    List(#[source] ReadListError),
    /// It holds no more than mount points for store paths, and this node cannot have these.
    #[error(
        "the layer has no content for {path}, and this node can neither find nor substitute it; add a substituter that has it to nix.conf, or copy it to this node"
    )]
    Unrealised {
        /// One of the paths.
        path: StorePath,
        /// Why not.
        source: RealiseError,
    },
    /// Other layers would hide the store paths.
    #[error(
        "the layer's store paths would be hidden by {path}, which another layer brings; build the image without it"
    )]
    Hidden {
        /// What would hide them.
        path: PathBuf,
    },
    /// The kernel does not show them.
    #[error(
        "this kernel's overlayfs does not show the node's store; it needs trusted extended attributes, and /nix on a file system that is no overlay itself"
    )]
    NotShown,
    /// The stub cannot be made.
    #[error("cannot make the layer's stub")]
    Stub(#[source] StubError),
    /// A system call failed.
    #[error("cannot {operation} {path}")]
    Path {
        /// What was tried, a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl LayerError {
    /// What it is to the client.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::List(_) => Code::InvalidArgument,
            Self::Unrealised { .. } | Self::Hidden { .. } | Self::NotShown => Code::FailedPrecondition,
            Self::Stub(StubError::Missing { .. }) => Code::FailedPrecondition,
            Self::Stub(StubError::Path { source, .. }) | Self::Path { source, .. } => Code::of_io(source),
        }
    }

    fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Path { operation, path: path.to_owned(), source: source.into() }
    }
}

impl StoreLayers {
    /// The layers below the snapshotter's directory `root`; `believes` what images say of their layers, or asks for
    /// proof.
    #[must_use]
    pub fn new(layout: &Layout, root: &Path, believes: bool) -> Self {
        Self {
            layout: layout.clone(),
            root: root.to_owned(),
            believes,
            node: Node::new(layout),
            roots: Roots::new(layout),
            savings: Mutex::default(),
        }
    }

    /// Makes the stub of a layer in place of its content. When this gives `true` the layer need not be downloaded:
    /// `dir/stub` is complete, durable and protected by the GC roots of `id`. Else it is to be unpacked, and `id` has
    /// no GC roots.
    ///
    /// `dir` is the directory of the snapshot in the making, `ancestors` those of its parents; `parent` is the name of
    /// the first of them, or empty, and `labels` are what containerd prepares the snapshot with.
    ///
    /// # Errors
    /// When the closure that is named is none, or a system call fails.
    pub fn assemble(
        &self,
        named: &NamedPaths,
        id: u64,
        dir: &Path,
        ancestors: &[PathBuf],
        parent: &str,
        labels: &Labels,
    ) -> Result<bool, LayerError> {
        let Some(chain_id) = labels.get(CHAIN_ID) else { return Ok(false) };
        self.with_roots(id, || self.try_assemble(named, id, dir, ancestors, parent, chain_id))
    }

    fn try_assemble(
        &self,
        named: &NamedPaths,
        id: u64,
        dir: &Path,
        ancestors: &[PathBuf],
        parent: &str,
        chain_id: &str,
    ) -> Result<bool, LayerError> {
        let paths = match self.realise(named, id)? {
            Ok(paths) => paths,
            Err(error) => {
                tracing::info!(chain_id, "a layer is unpacked: {:#}", anyhow::Error::new(error));
                return Ok(false);
            }
        };
        let store = self.layout.store();
        let is_store_only = (named.store_only && self.believes)
            || proof::holds(chain_id, parent, &paths, &store).map_err(LayerError::at("examine", &store))?;
        if !is_store_only {
            tracing::info!(chain_id, parent, "a layer is unpacked: it may hold more than store paths");
            return Ok(false);
        }
        if let Some(path) = find_hiding(ancestors, &paths)? {
            tracing::info!(chain_id, path = %path.display(), "a layer is unpacked: another one would hide its store paths");
            return Ok(false);
        }
        match self.build(dir, &paths) {
            Err(error @ LayerError::NotShown) => {
                tracing::warn!(chain_id, "a layer is unpacked: {error}");
                Ok(false)
            }
            built => built.map(|()| true),
        }
    }

    /// Moves the mount points of a layer that has been unpacked from its content, `dir/fs`, to a stub, and says whether
    /// there is one; then it is durable and protected by the GC roots of `id`. A path that has content stays.
    ///
    /// A call that fails may be repeated.
    ///
    /// # Errors
    /// When the layer holds nothing but mount points for paths that this node cannot have, when others would hide them,
    /// or when a system call fails.
    pub fn adopt(
        &self,
        named: &NamedPaths,
        id: u64,
        dir: &Path,
        ancestors: &[PathBuf],
    ) -> Result<bool, LayerError> {
        self.with_roots(id, || self.try_adopt(named, id, dir, ancestors))
    }

    fn try_adopt(
        &self,
        named: &NamedPaths,
        id: u64,
        dir: &Path,
        ancestors: &[PathBuf],
    ) -> Result<bool, LayerError> {
        match self.realise(named, id)? {
            Ok(paths) => self.take_over(&paths, dir, ancestors),
            Err(source) => {
                let points = MountPoints::of(&dir.join("fs"))?;
                match points.empty.into_iter().next() {
                    Some(path) if !points.has_content => Err(LayerError::Unrealised { path, source }),
                    _ => Ok(false),
                }
            }
        }
    }

    /// Makes a stub of those mount points of an unpacked layer that are for `paths`, which are valid.
    fn take_over(&self, paths: &[StorePath], dir: &Path, ancestors: &[PathBuf]) -> Result<bool, LayerError> {
        let points = MountPoints::of(&dir.join("fs"))?;
        let paths: HashSet<&StorePath> = paths.iter().collect();
        let empty: Vec<StorePath> = points.empty.into_iter().filter(|path| paths.contains(path)).collect();
        let Some(entries) = points.entries.filter(|_| !empty.is_empty()) else {
            // An attempt before this one may have come to its end.
            let stub = dir.join("stub");
            return stub.try_exists().map_err(LayerError::at("examine", &stub));
        };
        let hiding = match points.hiding {
            None => find_hiding(ancestors, &empty)?,
            hiding => hiding,
        };
        if let Some(path) = hiding {
            return Err(LayerError::Hidden { path });
        }
        self.build(dir, &empty)?;
        remove_all(entries.as_fd(), &empty).map_err(LayerError::at("remove mount points from", dir))?;
        Ok(true)
    }

    /// Makes or completes the stub in `dir`.
    fn build(&self, dir: &Path, paths: &[StorePath]) -> Result<(), LayerError> {
        let path = dir.join("stub");
        let stub = Stub::open(&path, &self.layout.store()).map_err(LayerError::Stub)?;
        for path in paths {
            stub.add(path).map_err(LayerError::Stub)?;
        }
        stub.finish().map_err(LayerError::Stub)?;
        if shown::through(&path, &self.nix(), paths).map_err(LayerError::at("mount", &path))? {
            return Ok(());
        }
        fs::remove_dir_all(&path).map_err(LayerError::at("remove", &path))?;
        Err(LayerError::NotShown)
    }

    /// Removes the GC roots of a snapshot, if it has any.
    pub fn release(&self, id: u64) {
        self.roots.release(id);
    }

    /// Removes the GC roots that an earlier daemon left for snapshots that are not `live`.
    pub fn sweep(&self, live: &HashSet<u64>) {
        self.roots.sweep(live);
    }

    /// What all layers show of the node's store.
    pub fn summary(&self) -> protocol::StoreLayers {
        let mut savings = self.savings.lock().unwrap_or_else(PoisonError::into_inner);
        savings.look(&self.root.join("snapshots"), &self.layout, &self.node)
    }

    /// What stands above and below the stubs in a mount: the mask, and the node's `/nix`. Both are made when they
    /// are missing.
    ///
    /// # Errors
    /// When there is no `/nix`, or a system call fails.
    pub fn lowers(&self) -> Result<[PathBuf; 2], LayerError> {
        let (nix, link) = (self.nix(), self.root.join("nix"));
        let mask = mask::ensure(&nix, &self.root.join("masks")).map_err(LayerError::at("mask", &nix))?;
        mask::ensure_link(&link, &nix).map_err(LayerError::at("link", &link))?;
        Ok([mask, link])
    }

    fn nix(&self) -> PathBuf {
        self.layout.prefix().join("nix")
    }

    /// Makes a layer; unless it has a stub it keeps no GC roots.
    fn with_roots(
        &self,
        id: u64,
        make: impl FnOnce() -> Result<bool, LayerError>,
    ) -> Result<bool, LayerError> {
        let made = make();
        if !matches!(made, Ok(true)) {
            self.roots.release(id);
        }
        made
    }

    /// Protects what a layer names, makes it valid, and gives the paths, sorted.
    fn realise(
        &self,
        named: &NamedPaths,
        id: u64,
    ) -> Result<Result<Vec<StorePath>, RealiseError>, LayerError> {
        let directory = self.layout.store();
        let store = match Store::open(&self.layout, &self.node, &directory) {
            Ok(store) => store,
            Err(error) => return Ok(Err(error)),
        };
        let (roots, closure) = match &named.paths {
            Paths::Closure(closure) => (std::slice::from_ref(closure), Some(closure)),
            Paths::Listed(paths) => (&paths[..], None),
        };
        self.roots.make(id, roots).map_err(LayerError::at("write the GC roots", &self.roots.of(id)))?;
        let references = store.realise(roots).and_then(|()| {
            // Asked after the roots are made, this also tells that the closure stays.
            closure.map(|closure| store.references(closure)).transpose()
        });
        match (references, closure) {
            (Err(error), _) => Ok(Err(error)),
            (Ok(Some(references)), Some(closure)) => match store.list(closure, &references) {
                // `closureInfo` refers to every path that it lists; another list may be of its whole closure.
                Err(ReadListError::Stranger { .. }) => match store.requisites(closure) {
                    Err(error) => Ok(Err(error)),
                    Ok(requisites) => store.list(closure, &requisites).map(Ok).map_err(LayerError::List),
                },
                listed => listed.map(Ok).map_err(LayerError::List),
            },
            (Ok(_), _) => Ok(Ok(roots.to_owned())),
        }
    }
}

fn find_hiding(ancestors: &[PathBuf], paths: &[StorePath]) -> Result<Option<PathBuf>, LayerError> {
    for ancestor in ancestors {
        let content = ancestor.join("fs");
        let found = hidden::find(&content, paths).map_err(LayerError::at("examine", &content))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The store paths in the content of a layer.
#[derive(Debug, Default)]
struct MountPoints {
    /// The directory that they lie in.
    entries: Option<OwnedFd>,
    /// Those that are empty directories or files.
    empty: Vec<StorePath>,
    /// Whether there are others.
    has_content: bool,
    /// What of the layer itself would hide a stub.
    hiding: Option<PathBuf>,
}

impl MountPoints {
    fn of(content: &Path) -> Result<Self, LayerError> {
        let find = || -> io::Result<Self> {
            let Entries { directory, hiding } = Entries::of(content)?;
            let mut points = Self { hiding, ..Self::default() };
            if let Some(entries) = directory {
                points.list(entries.as_fd())?;
                points.entries = Some(entries);
            }
            Ok(points)
        };
        find().map_err(LayerError::at("examine", content))
    }

    fn list(&mut self, entries: BorrowedFd<'_>) -> rustix::io::Result<()> {
        for entry in Dir::read_from(entries)? {
            let entry = entry?;
            let name = entry.file_name();
            let path = name.to_str().ok().and_then(|name| format!("{STORE_DIR}/{name}").parse().ok());
            let Some(path) = path else { continue };
            let status = rustix::fs::statat(entries, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_empty = match FileType::from_raw_mode(status.st_mode) {
                // `.` and `..` are the others.
                FileType::Directory => {
                    Dir::new(stub::open_directory(entries, name)?)?.nth(2).transpose()?.is_none()
                }
                FileType::RegularFile => status.st_size == 0,
                _ => false,
            };
            match is_empty {
                true => self.empty.push(path),
                false => self.has_content = true,
            }
        }
        Ok(())
    }
}

/// Removes mount points; the directory that they lie in keeps its time.
fn remove_all(entries: BorrowedFd<'_>, points: &[StorePath]) -> rustix::io::Result<()> {
    let status = rustix::fs::fstat(entries)?;
    for point in points {
        stub::remove_entry(entries, point.base_name())?;
    }
    let time = Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec as i64 };
    rustix::fs::futimens(entries, &Timestamps { last_access: time, last_modification: time })
}
