//! Stubs: what a view's overlay needs on disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::{VIEW, ViewError, copy_time, create_private, farm, lock_mounts, open_directory, unmount};
use crate::key::ViewId;
use crate::layout::Layout;
use crate::store_path::StorePath;

/// The largest store file that is copied. A copy costs a little disk; a metacopy has its data in a chain of
/// layers that every overlay above must be told to follow.
const COPIED_BYTES: u64 = 64 * 1024;

/// Makes the stub of a closure's view, durably; one that exists is left as it is.
///
/// # Errors
/// When a store path is missing or the stub cannot be written; nothing half-made becomes visible.
pub fn build_stub(layout: &Layout, closure: &[StorePath]) -> Result<ViewId, ViewError> {
    let view = ViewId::of_closure(closure);
    let stub = layout.stub(&view);
    create_private(&layout.stubs())?;
    create_private(&layout.scratch())?;
    if !fs::exists(&stub).map_err(ViewError::at("examine", &stub))? {
        let scratch = layout.scratch();
        let work = tempfile::Builder::new()
            .prefix("view-")
            .tempdir_in(&scratch)
            .map_err(ViewError::at("create a directory in", &scratch))?;
        write_stub(layout, work.path(), closure)?;
        match fs::rename(work.path(), &stub) {
            Ok(()) => drop(work.keep()),
            // Somebody else was faster, with the same content.
            Err(_) if stub.is_dir() => {}
            Err(error) => return Err(ViewError::at("create", &stub)(error)),
        }
    }
    // Whoever made it, what is published on top of it must not outlive it.
    rustix::fs::fsync(open_directory(&layout.stubs())?).map_err(ViewError::at("sync", &stub))?;
    Ok(view)
}

/// Unmounts a view and removes its stub. The caller knows that no container uses it.
///
/// # Errors
/// When the kernel refuses. A stub that is partly removed is no longer visible.
pub fn remove_stub(layout: &Layout, view: &ViewId) -> Result<(), ViewError> {
    let (stub, scratch) = (layout.stub(view), layout.scratch());
    create_private(&scratch)?;
    let grave = tempfile::tempdir_in(&scratch).map_err(ViewError::at("create a directory in", &scratch))?;
    let lock = lock_mounts(layout)?;
    unmount(&layout.mount_point(view))?;
    match fs::rename(&stub, grave.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ViewError::at("remove", &stub)(error));
        }
        _ => {}
    }
    // A large stub takes seconds to remove, and nobody can find it any more.
    drop(lock);
    grave.close().map_err(ViewError::at("remove from", &scratch))
}

fn write_stub(layout: &Layout, stub: &Path, closure: &[StorePath]) -> Result<(), ViewError> {
    let store = open_directory(&layout.store())?;
    let path = stub.join(VIEW);
    create_private(&path)?;
    let view = open_directory(&path)?;
    let is_trusted = match set_overlay(view.as_fd(), "opaque", b"y") {
        Ok(()) => true,
        Err(Errno::PERM | Errno::OPNOTSUPP) => {
            let mark = stub.join(farm::MARK);
            File::create(&mark).map_err(ViewError::at("create", &mark))?;
            false
        }
        Err(error) => return Err(ViewError::at("mark", &path)(error)),
    };
    for store_path in closure.iter().collect::<BTreeSet<_>>() {
        let name = store_path.base_name();
        let status = match rustix::fs::statat(&store, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(ViewError::MissingStorePath { path: store_path.clone() }),
            status => status.map_err(ViewError::at("examine", store_path.as_path()))?,
        };
        write_entry(store.as_fd(), view.as_fd(), name, &status, is_trusted)
            .map_err(ViewError::at("make the stub of", store_path.as_path()))?;
    }
    rustix::fs::fchmod(&view, Mode::from_raw_mode(0o555)).map_err(ViewError::at("finish", &path))?;
    rustix::fs::syncfs(&view).map_err(ViewError::at("sync", stub))
}

/// Makes the stub of one store path, with its mode and time: they are what a container sees of the store path.
fn write_entry(
    store: BorrowedFd<'_>,
    view: BorrowedFd<'_>,
    name: &str,
    status: &Stat,
    is_trusted: bool,
) -> io::Result<()> {
    let redirect = |stub: &OwnedFd| match is_trusted {
        true => set_overlay(stub.as_fd(), "redirect", format!("/{name}").as_bytes()),
        false => Ok(()),
    };
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(view, name, Mode::RWXU)?;
            let stub = rustix::fs::openat(view, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            redirect(&stub)?;
            rustix::fs::fchmod(&stub, Mode::from_raw_mode(status.st_mode))?;
        }
        FileType::RegularFile => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let stub = rustix::fs::openat(view, name, flags, Mode::RUSR)?;
            let size = u64::try_from(status.st_size).unwrap_or_default();
            if size <= COPIED_BYTES {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut original = File::from(rustix::fs::openat(store, name, flags, Mode::empty())?);
                io::copy(&mut original, &mut File::from(stub.try_clone()?))?;
            } else {
                rustix::fs::ftruncate(&stub, size)?;
                redirect(&stub)?;
                if is_trusted {
                    set_overlay(stub.as_fd(), "metacopy", b"")?;
                }
            }
            rustix::fs::fchmod(&stub, Mode::from_raw_mode(status.st_mode))?;
        }
        FileType::Symlink => {
            rustix::fs::symlinkat(rustix::fs::readlinkat(store, name, Vec::new())?, view, name)?;
        }
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "neither a file, a directory nor a symlink",
            ));
        }
    }
    Ok(copy_time(status, view, name)?)
}

fn set_overlay(file: BorrowedFd<'_>, attribute: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(file, format!("trusted.overlay.{attribute}"), value, XattrFlags::CREATE)
}
