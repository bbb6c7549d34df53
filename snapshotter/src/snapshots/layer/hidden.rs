//! What in plain layers would hide a stub.
//!
//! In the mount of a container all plain layers lie above all stubs, whatever their order in the image. That is no
//! difference as long as no plain layer *below* a layer of store paths says something about these very paths, or about
//! the directories that they lie in.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use environment::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, Dir, FileType};
use rustix::io::Errno;

use super::stub::open_directory;

const OPAQUE: &str = "trusted.overlay.opaque";

/// Where the layer in `directory` would hide one of `paths` that lies below it.
pub(super) fn in_layer_above(directory: &Path, paths: &[StorePath]) -> io::Result<Option<PathBuf>> {
    let store = match entries(directory)? {
        Entries::Hidden(path) => return Ok(Some(path)),
        Entries::Absent => return Ok(None),
        Entries::Present(store) => store,
    };
    let mut names: Option<HashSet<&str>> = None;
    for entry in Dir::read_from(&store)? {
        let entry = entry?;
        let names = names.get_or_insert_with(|| paths.iter().map(StorePath::base_name).collect());
        if entry.file_name().to_str().is_ok_and(|name| names.contains(name)) {
            return Ok(Some(directory.join("nix/store").join(entry.file_name().to_string_lossy().as_ref())));
        }
    }
    Ok(None)
}

/// The directory of store paths in a layer.
pub(super) enum Entries {
    /// It has none.
    Absent,
    /// This path of it hides all store paths of layers below.
    Hidden(PathBuf),
    /// It has one, under which those of layers below show, too.
    Present(OwnedFd),
}

/// Finds the directory of store paths in a layer.
pub(super) fn entries(layer: &Path) -> io::Result<Entries> {
    let mut directory = open_directory(CWD, layer)?;
    let mut path = layer.to_owned();
    for name in ["nix", "store"] {
        path.push(name);
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Entries::Absent),
            Ok(status) if FileType::from_raw_mode(status.st_mode) != FileType::Directory => {
                return Ok(Entries::Hidden(path));
            }
            result => drop(result?),
        }
        directory = open_directory(directory.as_fd(), name)?;
        if is_opaque(directory.as_fd())? {
            return Ok(Entries::Hidden(path));
        }
    }
    Ok(Entries::Present(directory))
}

fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut [0_u8; 0]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
