//! Views as bind farms: a tmpfs with one bind mount per store path, where overlays are refused.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use super::{VIEW, ViewError, copy_time, create_private, open_directory, unmount};
use crate::layout::Layout;

/// The file of a stub that says that the stub is of no use to an overlay.
pub(super) const MARK: &str = "farm";

/// A directory, and those of its entries that a farm shows.
pub(super) struct Source<'a> {
    /// What the directory is called in errors.
    pub path: &'a Path,
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// The entries.
    pub names: Vec<CString>,
}

/// A farm's tree of mounts, attached nowhere, whose root is the farm's directory `root`: `""`, which has the
/// entries in `view`, or `view`. Of two entries of one name the first counts.
///
/// Before Linux 6.15 nothing can be mounted on a detached mount. The farm therefore grows on a mount point of its
/// own, and a clone of it is returned. The caller holds the lock on mounts.
pub(super) fn build<'a>(
    layout: &Layout,
    sources: impl IntoIterator<Item = Source<'a>>,
    root: &str,
) -> Result<OwnedFd, ViewError> {
    let bench = layout.mount_points().join("new");
    unmount(&bench)?;
    create_private(&bench)?;
    let tree = grow(&bench, sources).and_then(|()| {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree =
            rustix::mount::open_tree(CWD, bench.join(root), flags).map_err(ViewError::at("clone", &bench))?;
        make_read_only(&tree).map_err(ViewError::at("make read-only", &bench))?;
        Ok(tree)
    });
    unmount(&bench)?;
    tree
}

fn grow<'a>(bench: &Path, sources: impl IntoIterator<Item = Source<'a>>) -> Result<(), ViewError> {
    mount_tmpfs(bench).map_err(ViewError::at("mount a tmpfs on", bench))?;
    let view = bench.join(VIEW);
    create_private(&view)?;
    let directory = open_directory(&view)?;
    let mut seen = BTreeSet::new();
    for source in sources {
        for name in source.names {
            if !seen.contains(&name) {
                plant(source.directory, &name, directory.as_fd()).map_err(|error| {
                    ViewError::at("bind", &source.path.join(OsStr::from_bytes(name.as_bytes())))(error)
                })?;
                seen.insert(name);
            }
        }
    }
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o555)).map_err(ViewError::at("finish", &view))
}

/// Mounts a tmpfs that does not propagate: the farm's mounts are nobody else's until it is complete.
fn mount_tmpfs(target: &Path) -> rustix::io::Result<()> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", "nixenv")?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0700")?;
    rustix::mount::fsconfig_create(&context)?;
    let tmpfs = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(&tmpfs, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::mount::mount_change(target, MountPropagationFlags::PRIVATE)
}

/// Shows the entry `name` of `source` in `view`.
fn plant(source: BorrowedFd<'_>, name: &CStr, view: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let status = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Symlink => {
            rustix::fs::symlinkat(rustix::fs::readlinkat(source, name, Vec::new())?, view, name)?;
            return copy_time(&status, view, name);
        }
        FileType::Directory => rustix::fs::mkdirat(view, name, Mode::RWXU)?,
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(view, name, flags, Mode::RUSR)?;
        }
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let part = rustix::mount::open_tree(source, name, flags)?;
    rustix::mount::move_mount(&part, "", view, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// `mount_setattr(2)` (Linux 5.12), which rustix does not have, on a whole tree.
fn make_read_only(tree: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, the size is that of `attributes`, and both outlive the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
