//! The view: one mount that shows exactly one environment's closure.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::key::ViewId;
use crate::layout::Layout;
use crate::store_path::StorePath;

/// A view that cannot be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
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

/// Makes the stub of a closure's view, durably; one that exists is left as it is.
///
/// # Errors
/// When a store path is missing or the stub cannot be written; nothing half-made becomes visible.
pub fn build_stub(layout: &Layout, closure: &[StorePath]) -> Result<ViewId, ViewError> {
    todo!("{layout:?} {closure:?}")
}

/// Mounts a view unless it is mounted, and returns the directory to bind over a container's `/nix/store`.
///
/// # Errors
/// When the stub is absent or the kernel refuses the mount.
pub fn ensure_mounted(layout: &Layout, view: &ViewId) -> Result<PathBuf, ViewError> {
    todo!("{layout:?} {view:?}")
}

/// Mounts a view together with an image's own `/nix/store` at `target`: the paths of both are visible there, read-only.
///
/// # Errors
/// When the kernel refuses the mount.
pub fn mount_beside(
    layout: &Layout,
    view: &ViewId,
    image_store: BorrowedFd<'_>,
    target: &Path,
) -> Result<(), ViewError> {
    todo!("{layout:?} {view:?} {image_store:?} {target:?}")
}

/// Unmounts whatever is mounted at `target`, lazily, and removes the directory; neither being there is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> Result<(), ViewError> {
    todo!("{target:?}")
}
