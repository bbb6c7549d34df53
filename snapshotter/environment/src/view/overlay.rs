//! Views as overlays: any number of store paths, one mount.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_set_flag, fsconfig_set_string};

use super::names_in;

/// `OVERLAYFS_SUPER_MAGIC`, `linux/magic.h`.
const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// How many store paths of a new mount are compared with what they should show.
const CHECKED_PATHS: usize = 16;

/// The overlay of a stub over the store, attached nowhere; `None` when this kernel does not show it.
pub(super) fn over_store(
    stub: &Path,
    store: &Path,
    store_directory: BorrowedFd<'_>,
    names: &[CString],
) -> Result<Option<OwnedFd>> {
    let mut layers = OsString::from(stub);
    layers.push(":");
    layers.push(store);
    let Some(tree) = mount(layers, &[("redirect_dir", "follow"), ("metacopy", "on")])? else {
        return Ok(None);
    };
    let view = open(tree.as_fd(), c"view", OFlags::DIRECTORY)?;
    Ok(shows(view.as_fd(), store_directory, names).then_some(tree))
}

/// The overlay of a mounted view over an image's store, attached nowhere; `None` when this kernel does not show
/// it: the view is a farm, or the node's own file systems are overlays already (`FILESYSTEM_MAX_STACK_DEPTH` is 2).
pub(super) fn beside(view: BorrowedFd<'_>, image_store: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    if rustix::fs::fstatfs(view)?.f_type as u64 != OVERLAY_MAGIC {
        return Ok(None);
    }
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", view.as_raw_fd(), image_store.as_raw_fd());
    // Neither layer is a stub: xattrs that an image brings mean nothing here.
    let Some(tree) = mount(layers.into(), &[("redirect_dir", "nofollow"), ("metacopy", "off")])? else {
        return Ok(None);
    };
    let shown = open(tree.as_fd(), c".", OFlags::DIRECTORY)?;
    Ok(shows(shown.as_fd(), view, &names_in(view)?).then_some(tree))
}

/// A read-only overlay of `layers` (at most 255 bytes: the limit of `fsconfig`), `None` when it is refused.
fn mount(layers: OsString, options: &[(&str, &str)]) -> Result<Option<OwnedFd>> {
    let mount = || {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "nixenv")?;
        fsconfig_set_flag(&context, "ro")?;
        for (option, value) in options {
            fsconfig_set_string(&context, *option, *value)?;
        }
        fsconfig_set_string(&context, "lowerdir", layers)?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    match mount() {
        // No privilege, layers that overlayfs cannot use, no overlayfs.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NODEV) => Ok(None),
        result => result.map(Some),
    }
}

/// Whether some of `names` look in `shown` as they do in `truth`. A redirect that is not followed is no error to
/// the kernel: the store path is just empty.
fn shows(shown: BorrowedFd<'_>, truth: BorrowedFd<'_>, names: &[CString]) -> bool {
    let step = names.len().div_ceil(CHECKED_PATHS).max(1);
    names.iter().step_by(step).all(|name| is_same(shown, truth, name).unwrap_or(false))
}

fn is_same(shown: BorrowedFd<'_>, truth: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let status = rustix::fs::statat(truth, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => has_entries(shown, name)? == has_entries(truth, name)?,
        FileType::RegularFile => start_of_file(shown, name)? == start_of_file(truth, name)?,
        _ => true,
    })
}

fn has_entries(parent: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
    Ok(!names_in(open(parent, name, OFlags::DIRECTORY)?.as_fd())?.is_empty())
}

fn start_of_file(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::from(open(parent, name, OFlags::empty())?).take(4096).read_to_end(&mut start)?;
    Ok(start)
}

fn open(directory: BorrowedFd<'_>, name: &CStr, kind: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags | kind, Mode::empty())
}
