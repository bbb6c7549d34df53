//! The mask: what keeps the node's `/nix` from showing at the root of a container.
//!
//! The lowest layer of a container with store paths is the node's `/nix`, whose `store` and `var` would show at `/store`
//! and `/var`. Right above all stubs lies the mask, a directory with a whiteout for every name at the root of `/nix`. It
//! is named for this set of names, so a name that is new makes a new mask, and one that is mounted never changes.

use std::ffi::{CString, OsStr};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use environment::digest::Digest;
use rustix::fs::{CWD, Dir, FileType, Mode};

use super::stub::open_directory;

/// The mask of the names in `nix`, made in `masks` when it is missing.
pub(super) fn ensure(nix: &Path, masks: &Path) -> io::Result<PathBuf> {
    let names = names_in(nix)?;
    let mask = masks.join(digest(&names).to_string());
    if mask.try_exists()? {
        return Ok(mask);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(masks)?;
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(masks)?;
    // The root of a container whose layers all are stubs has this mode.
    let content = new.path().join("mask");
    DirBuilder::new().mode(0o755).create(&content)?;
    let directory = open_directory(CWD, &content)?;
    for name in &names {
        rustix::fs::mknodat(&directory, name, FileType::CharacterDevice, Mode::empty(), 0)?;
    }
    rustix::fs::fsync(&directory)?;
    match fs::rename(&content, &mask) {
        // Somebody else was faster, with the same content.
        Err(_) if mask.is_dir() => {}
        result => result?,
    }
    rustix::fs::fsync(open_directory(CWD, masks)?)?;
    Ok(mask)
}

fn names_in(directory: &Path) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(open_directory(CWD, directory)?.as_fd())? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn digest(names: &[CString]) -> Digest {
    let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes_with_nul()).collect();
    Digest::of(&names.concat())
}

/// Makes `link` a symbolic link to `target`.
///
/// Through a link beside the snapshots `/nix` has a prefix in common with them, and containerd can shorten a long
/// list of layers (`compactLowerdirOption` in its `core/mount/mount_linux.go`).
pub(super) fn ensure_link(link: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let directory = link.parent().unwrap_or(Path::new("/"));
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(directory)?;
    let made = new.path().join(link.file_name().unwrap_or(OsStr::from_bytes(b"link")));
    std::os::unix::fs::symlink(target, &made)?;
    fs::rename(made, link)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_mask_has_a_whiteout_for_each_name_and_a_new_name_makes_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let (nix, masks) = (directory.path().join("nix"), directory.path().join("masks"));
        fs::create_dir_all(nix.join("store")).unwrap();
        fs::create_dir_all(nix.join("var")).unwrap();
        let mask = ensure(&nix, &masks).unwrap();
        assert_eq!(names_in(&mask).unwrap(), [c"store".to_owned(), c"var".to_owned()]);
        assert_eq!(fs::metadata(&mask).unwrap().permissions().mode() & 0o7777, 0o755);
        for name in ["store", "var"] {
            let whiteout = fs::symlink_metadata(mask.join(name)).unwrap();
            assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        }
        assert_eq!(ensure(&nix, &masks).unwrap(), mask);
        fs::write(nix.join(".new"), "").unwrap();
        let next = ensure(&nix, &masks).unwrap();
        assert_ne!(next, mask);
        assert_eq!(names_in(&mask).unwrap().len(), 2);
        assert_eq!(names_in(&next).unwrap(), [c".new".to_owned(), c"store".to_owned(), c"var".to_owned()]);
        assert_eq!(names_in(&masks).unwrap().len(), 2, "nothing half-made stays");
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("nix");
        for target in ["/nix", "/nix", "/other/nix"] {
            ensure_link(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        assert_eq!(names_in(directory.path()).unwrap().len(), 1);
    }
}
