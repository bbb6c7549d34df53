//! Stubs: what shows a layer's store paths in an overlay that has the node's `/nix` as its lowest layer.
//!
//! ```text
//! stub/nix/store/
//!   <a store directory>   empty, trusted.overlay.redirect=/store/<name>: the kernel shows the node's own
//!   <a store file>        a copy, which shares its blocks with the original where the file system can
//!   <a store symlink>     itself
//! ```
//!
//! Each entry has the mode and the time of its store path. No entry is a *metacopy*: one would bind every overlay above
//! to `metacopy=on`. No entry is a whiteout: a redirect is looked up in every layer below, and a whiteout in the stub of a
//! lower layer would end the look-up of a higher one (`ovl_lookup` in Linux's `fs/overlayfs/namei.c`).

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use environment::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// The directory of entries within a stub.
const ENTRIES: &str = "nix/store";
const REDIRECT: &str = "trusted.overlay.redirect";

/// A stub in the making.
#[derive(Debug)]
pub(super) struct Stub {
    path: PathBuf,
    store: OwnedFd,
    entries: OwnedFd,
}

/// A stub that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// A store path is not in the store.
    #[error("{path} is not in the store; `nix-store --realise {path}` brings it back")]
    Missing {
        /// The store path.
        path: StorePath,
    },
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

impl StubError {
    fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Path { operation, path: path.to_owned(), source: source.into() }
    }
}

impl Stub {
    /// Opens the stub at `path`, which is made when it is missing, for paths of `store`.
    pub(super) fn open(path: &Path, store: &Path) -> Result<Self, StubError> {
        let entries = path.join(ENTRIES);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&entries).map_err(StubError::at("create", &entries))?;
        Ok(Self {
            path: path.to_owned(),
            store: open_directory(CWD, store).map_err(StubError::at("open", store))?,
            entries: open_directory(CWD, &entries).map_err(StubError::at("open", &entries))?,
        })
    }

    /// Adds a store path; an entry of its name, which an earlier attempt may have left half-made, is replaced.
    pub(super) fn add(&self, path: &StorePath) -> Result<(), StubError> {
        let name = path.base_name();
        let status = match rustix::fs::statat(&self.store, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(StubError::Missing { path: path.clone() }),
            status => status.map_err(StubError::at("examine", path.as_path()))?,
        };
        let written = match self.write(name, &status) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_entry(self.entries.as_fd(), name)
                    .map_err(io::Error::from)
                    .and_then(|()| self.write(name, &status))
            }
            written => written,
        };
        written.map_err(StubError::at("make the stub of", path.as_path()))
    }

    /// Makes it durable.
    pub(super) fn finish(self) -> Result<(), StubError> {
        // Times as nix2container's layers have them.
        for directory in [self.path.join(ENTRIES), self.path.join("nix")] {
            set_time(CWD, &directory, EPOCH).map_err(StubError::at("finish", &directory))?;
        }
        rustix::fs::syncfs(&self.entries).map_err(StubError::at("sync", &self.path))
    }

    fn write(&self, name: &str, status: &Stat) -> io::Result<()> {
        let (store, entries) = (self.store.as_fd(), self.entries.as_fd());
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                // The daemon's umask takes nothing from a store path's mode, which nobody may write to.
                rustix::fs::mkdirat(entries, name, Mode::from_raw_mode(status.st_mode))?;
                let entry = open_directory(entries, name)?;
                let target = format!("/store/{name}");
                rustix::fs::fsetxattr(&entry, REDIRECT, target.as_bytes(), XattrFlags::CREATE)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut original = File::from(rustix::fs::openat(store, name, flags, Mode::empty())?);
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mut entry = File::from(rustix::fs::openat(entries, name, flags, Mode::RUSR)?);
                if rustix::fs::ioctl_ficlone(&entry, &original).is_err() {
                    io::copy(&mut original, &mut entry)?;
                }
                rustix::fs::fchmod(&entry, Mode::from_raw_mode(status.st_mode))?;
            }
            FileType::Symlink => {
                rustix::fs::symlinkat(rustix::fs::readlinkat(store, name, Vec::new())?, entries, name)?;
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a file, a directory nor a symlink",
                ));
            }
        }
        let time = Timespec { tv_sec: status.st_mtime, tv_nsec: status.st_mtime_nsec as i64 };
        Ok(set_time(entries, name, time)?)
    }
}

const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn set_time(
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    time: Timespec,
) -> rustix::io::Result<()> {
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn open_directory(
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Removes a file, a symlink or an empty directory.
pub(super) fn remove_entry(
    directory: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
        result => result,
    }
}
