//! Whether an overlay shows what a stub promises.
//!
//! A redirect that is not followed is no error to the kernel: the store path is just empty. So each new stub is mounted
//! once, attached nowhere, and compared with the store before anyone relies on it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use environment::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_set_flag, fsconfig_set_string};

use super::stub::open_directory;

/// How many store paths are compared.
const COMPARED_PATHS: usize = 16;

/// Whether some of `paths` look through the stub as they do in `nix`.
pub(super) fn through(stub: &Path, nix: &Path, paths: &[StorePath]) -> io::Result<bool> {
    let (stub, nix) = (open_directory(CWD, stub)?, open_directory(CWD, nix)?);
    let Some(shown) = mount(stub.as_fd(), nix.as_fd())? else { return Ok(false) };
    let shown = open(shown.as_fd(), "nix/store", OFlags::DIRECTORY)?;
    let store = open(nix.as_fd(), "store", OFlags::DIRECTORY)?;
    for path in paths.iter().step_by(paths.len().div_ceil(COMPARED_PATHS).max(1)) {
        if !is_same(shown.as_fd(), store.as_fd(), path.base_name())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The overlay, attached nowhere; `None` when it is refused.
fn mount(stub: BorrowedFd<'_>, nix: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    // The limit of `fsconfig` for a value is 255 bytes.
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", stub.as_raw_fd(), nix.as_raw_fd());
    let mount = || {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "nixenv")?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_set_string(&context, "redirect_dir", "follow")?;
        fsconfig_set_string(&context, "lowerdir", layers)?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    match mount() {
        // No privilege, layers that overlayfs cannot use, no overlayfs.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NODEV) => Ok(None),
        result => Ok(Some(result?)),
    }
}

fn is_same(shown: BorrowedFd<'_>, store: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let status = rustix::fs::statat(store, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let seen = rustix::fs::statat(shown, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(seen.st_mode == status.st_mode
        && match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => has_entries(shown, name)? == has_entries(store, name)?,
            FileType::RegularFile => start_of_file(shown, name)? == start_of_file(store, name)?,
            _ => true,
        })
}

fn has_entries(parent: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    // `.` and `..` are the others.
    Ok(Dir::new(open(parent, name, OFlags::DIRECTORY)?)?.nth(2).transpose()?.is_some())
}

fn start_of_file(parent: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::from(open(parent, name, OFlags::empty())?).take(4096).read_to_end(&mut start)?;
    Ok(start)
}

fn open(directory: BorrowedFd<'_>, name: &str, kind: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags | kind, Mode::empty())
}
