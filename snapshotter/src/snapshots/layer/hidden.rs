//! What in plain layers would hide a stub.
//!
//! In the mount of a container all plain layers lie above all stubs, whatever their order in the image. That is no
//! difference as long as no plain layer *below* a layer of store paths says something about these very paths, or about
//! the directories that they lie in.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use environment::store_path::StorePath;
use rustix::fs::{CWD, Dir};
use rustix::io::Errno;

use super::stub::open_directory;

const OPAQUE: &str = "trusted.overlay.opaque";

/// The directory of store paths in a plain layer.
#[derive(Debug)]
pub(super) struct Entries {
    /// It, if there is one.
    pub directory: Option<OwnedFd>,
    /// What hides all store paths of layers below: the directory itself when it is opaque, or something in its place.
    pub hiding: Option<PathBuf>,
}

impl Entries {
    /// Finds them in the layer with this content.
    pub(super) fn of(content: &Path) -> io::Result<Self> {
        let mut directory = open_directory(CWD, content)?;
        let mut path = content.to_owned();
        let mut hiding = None;
        for name in ["nix", "store"] {
            path.push(name);
            directory = match open_directory(directory.as_fd(), name) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => return Ok(Self { directory: None, hiding }),
                // A file; a link, which is not followed.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Self { directory: None, hiding: Some(path) }),
                Err(error) => return Err(error.into()),
            };
            if is_opaque(directory.as_fd())? {
                hiding.get_or_insert_with(|| path.clone());
            }
        }
        Ok(Self { directory: Some(directory), hiding })
    }
}

/// What in the layer with this content hides one of `paths` in a layer below, or adds to it.
pub(super) fn find(content: &Path, paths: &[StorePath]) -> io::Result<Option<PathBuf>> {
    let entries = Entries::of(content)?;
    let (None, Some(directory)) = (&entries.hiding, entries.directory) else { return Ok(entries.hiding) };
    let names: HashSet<&[u8]> = paths.iter().map(|path| path.base_name().as_bytes()).collect();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if names.contains(name) {
            return Ok(Some(content.join("nix/store").join(OsStr::from_bytes(name))));
        }
    }
    Ok(None)
}

fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut [0_u8; 0]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
