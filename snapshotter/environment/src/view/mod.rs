//! The view: one mount that shows exactly one environment's closure.
//!
//! A *stub*, addressed by its closure, lies on disk beside the manifests:
//!
//! ```text
//! /var/lib/nixenv/views/VIEW/
//!   view/                      opaque: nothing else of /nix/store shows
//!     <a store directory>      empty, redirect=/<name>: the kernel shows the directory in the store
//!     <a store file>           a copy when small, else empty, of the same size, metacopy, redirect=/<name>
//!     <a store symlink>        itself
//!   farm                       only where trusted xattrs are refused: this stub needs a bind farm
//! ```
//!
//! An overlay of the stub over `/nix/store` follows the redirects (Linux `Documentation/filesystems/overlayfs.rst`,
//! "redirect_dir", "Metadata only copy up"), so one mount, made once per boot, shows any number of store paths,
//! and the page cache is the host's own. Where the kernel refuses, as in user namespaces, a *bind farm* shows the
//! same: a tmpfs with one bind mount per store path.
//!
//! Invariants: a mount is checked while it is attached nowhere and then moved into place, so a mount point shows
//! either nothing or the whole view. Everything is read-only. A view is bound into containers recursively,
//! because a farm is many mounts.

mod farm;
mod overlay;
mod stub;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Timespec, Timestamps,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::key::ViewId;
use crate::layout::Layout;
use crate::store_path::StorePath;

pub use stub::{build_stub, remove_stub};

/// The directory of a stub, and of its mount, that holds the closure.
const VIEW: &str = "view";

/// A view that cannot be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A store path of the closure is not in the store.
    #[error("{path} is not in the store; `nix-store --realise {path}` brings it back")]
    MissingStorePath {
        /// The store path.
        path: StorePath,
    },
    /// The view was never built, or has been removed.
    #[error("view {view} has no stub; `nixenv warm` with the environment's config builds it again")]
    MissingStub {
        /// The view.
        view: ViewId,
    },
    /// A system call on a path failed.
    #[error("cannot {operation} {path}")]
    Path {
        /// What was tried, a verb: `create`, `mount`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ViewError {
    fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Path { operation, path: path.to_owned(), source: source.into() }
    }
}

/// Mounts a view unless it is mounted, and returns the directory to bind, recursively, over a container's
/// `/nix/store`.
///
/// When it is mounted this is one `statx`. The caller sees to it that the closure stays, by a GC root.
///
/// # Errors
/// When the stub is absent or the kernel refuses the mount.
pub fn ensure_mounted(layout: &Layout, view: &ViewId) -> Result<PathBuf, ViewError> {
    let mount_point = layout.mount_point(view);
    if !is_mounted(layout, view)? {
        let _lock = lock_mounts(layout)?;
        if !is_mounted(layout, view)? {
            attach(&detached_view(layout, view)?, &mount_point)?;
        }
    }
    Ok(mount_point.join(VIEW))
}

/// Whether a view is mounted in this mount namespace.
///
/// # Errors
/// When the mount point cannot be examined.
pub fn is_mounted(layout: &Layout, view: &ViewId) -> Result<bool, ViewError> {
    let mount_point = layout.mount_point(view);
    match rustix::fs::statx(CWD, &mount_point, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Ok(status) => Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(ViewError::at("examine", &mount_point)(error)),
    }
}

/// Mounts a view together with an image's own `/nix/store` at `target`, which is made when it is absent: the
/// paths of both are visible there, read-only.
///
/// # Errors
/// When the view cannot be mounted or the kernel refuses the mount.
pub fn mount_beside(
    layout: &Layout,
    view: &ViewId,
    image_store: BorrowedFd<'_>,
    target: &Path,
) -> Result<(), ViewError> {
    let path = ensure_mounted(layout, view)?;
    let view = open_directory(&path)?;
    let tree = match overlay::beside(view.as_fd(), image_store).map_err(ViewError::at("mount", target))? {
        Some(tree) => tree,
        None => {
            let sources =
                [(path.as_path(), view.as_fd()), (Path::new("the image's /nix/store"), image_store)];
            let sources = sources.map(|(path, directory)| {
                let names = names_in(directory).map_err(ViewError::at("read", path))?;
                Ok(farm::Source { path, directory, names })
            });
            let _lock = lock_mounts(layout)?;
            farm::build(layout, sources.into_iter().collect::<Result<Vec<_>, _>>()?, VIEW)?
        }
    };
    attach(&tree, target)
}

/// Unmounts whatever is mounted at `target`, lazily, and removes the directory; neither being there is no error.
///
/// # Errors
/// When the kernel refuses, or `target` is a directory with entries.
pub fn unmount(target: &Path) -> Result<(), ViewError> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // umount(2): EINVAL is "not a mount point".
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(ViewError::at("unmount", target)(error)),
        }
    }
    match fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ViewError::at("remove", target)(error)),
        _ => Ok(()),
    }
}

/// Unmounts every view that `keep` denies, and what an interrupted mount left.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep_mounts(layout: &Layout, keep: impl Fn(&ViewId) -> bool) -> Result<(), ViewError> {
    let _lock = lock_mounts(layout)?;
    let mount_points = layout.mount_points();
    for entry in fs::read_dir(&mount_points).map_err(ViewError::at("read", &mount_points))? {
        let entry = entry.map_err(ViewError::at("read", &mount_points))?;
        let view = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if !view.is_some_and(|view| keep(&view)) {
            unmount(&entry.path())?;
        }
    }
    Ok(())
}

/// The mount of a view, attached nowhere.
fn detached_view(layout: &Layout, view: &ViewId) -> Result<OwnedFd, ViewError> {
    let stub = layout.stub(view);
    let store = layout.store();
    let store_directory = open_directory(&store)?;
    let names = match fs::exists(stub.join(VIEW)) {
        Ok(false) => return Err(ViewError::MissingStub { view: *view }),
        _ => open_directory(&stub.join(VIEW))
            .and_then(|view| names_in(view.as_fd()).map_err(ViewError::at("read", &stub)))?,
    };
    if !stub.join(farm::MARK).exists() {
        let tree = overlay::over_store(&stub, &store, store_directory.as_fd(), &names)
            .map_err(ViewError::at("mount", &stub))?;
        if let Some(tree) = tree {
            return Ok(tree);
        }
    }
    farm::build(layout, [farm::Source { path: &store, directory: store_directory.as_fd(), names }], "")
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<(), ViewError> {
    create_private(target)?;
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(ViewError::at("mount on", target))
}

/// Holds off everyone else who mounts views, until the descriptor is closed.
fn lock_mounts(layout: &Layout) -> Result<OwnedFd, ViewError> {
    let mount_points = layout.mount_points();
    create_private(&mount_points)?;
    let directory = open_directory(&mount_points)?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(ViewError::at("lock", &mount_points))?;
    Ok(directory)
}

fn create_private(directory: &Path) -> Result<(), ViewError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(ViewError::at("create", directory))
}

fn open_directory(path: &Path) -> Result<OwnedFd, ViewError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ViewError::at("open", path))
}

fn names_in(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    Dir::read_from(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .filter(|name| !name.as_ref().is_ok_and(|name| matches!(name.to_bytes(), b"." | b"..")))
        .collect()
}

/// Gives `name` the modification time of what `status` is of, so that a view looks like the store.
fn copy_time(
    status: &Stat,
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec as i64 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
