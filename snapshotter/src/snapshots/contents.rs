//! What lies in a snapshot: its size, and attributes that no image may bring.
//!
//! Overlayfs keeps what it knows of a merged file in attributes `trusted.overlay.*` (kernel: "overlayfs.rst"). In an
//! upper directory the kernel writes them; a layer's archive may bring them as well, and then `redirect` makes a
//! directory show another one of the same mount: with a Nix layer, any of the node's store. Our mounts never create
//! redirects or metacopies, so all but those that hide something are removed when a snapshot is committed.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::metadata::Usage;
use super::tree;

/// The attributes that stay: they hide what is below, and `overlay.overlay` is meant for mounts inside a container.
const HARMLESS: [&str; 3] = ["opaque", "whiteout", "overlay."];
const NAMESPACES: [&str; 2] = ["trusted.overlay.", "user.overlay."];
/// `stat.st_blocks` counts these, whatever the file system's blocks are (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Measures a directory as containerd's `continuity/fs.DiskUsage` does: every inode once, the directory's own too.
///
/// # Errors
/// When it cannot be read.
pub fn measure(directory: &Path) -> io::Result<Usage> {
    walk(directory, |_, _| Ok(()))
}

/// Measures a directory, and removes the attributes of overlayfs that no layer may bring.
///
/// # Errors
/// When it cannot be read, or an attribute not removed.
pub fn measure_and_clean(directory: &Path) -> io::Result<Usage> {
    walk(directory, |parent, name| {
        // There is no `lremovexattrat` before Linux 6.13; a link as the last component is not followed.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend(name.to_bytes());
        clean(&CString::new(path).map_err(io::Error::other)?)
    })
}

fn clean(path: &CStr) -> io::Result<()> {
    let mut names = [0u8; 4096];
    let names: Vec<u8> = match rustix::fs::llistxattr(path, &mut names) {
        Ok(0) => return Ok(()),
        Ok(length) => names[..length].into(),
        Err(Errno::RANGE) => {
            // The kernel's XATTR_LIST_MAX.
            let mut names = vec![0; 65536];
            let length = rustix::fs::llistxattr(path, &mut names)?;
            names.truncate(length);
            names
        }
        // Gone, or a file system without attributes.
        Err(Errno::NOENT | Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| is_foreign(name)) {
        match rustix::fs::lremovexattr(path, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_foreign(attribute: &[u8]) -> bool {
    NAMESPACES.iter().any(|namespace| {
        attribute
            .strip_prefix(namespace.as_bytes())
            .is_some_and(|name| !HARMLESS.iter().any(|harmless| name.starts_with(harmless.as_bytes())))
    })
}

/// Visits every file, and adds up what they take.
fn walk(
    directory: &Path,
    mut visit: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<Usage> {
    let root = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Visited before it is measured: attributes may take a block of their own.
    visit(root.as_fd(), c".")?;
    let mut usage = Usage { inodes: 1, bytes: bytes_of(&rustix::fs::fstat(&root)?) };
    let mut linked = HashSet::new();
    let enter = |parent: BorrowedFd<'_>, name: &CStr| {
        visit(parent, name)?;
        let status = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            status => status?,
        };
        let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        if is_directory || status.st_nlink == 1 || linked.insert((status.st_dev, status.st_ino)) {
            usage.inodes += 1;
            usage.bytes += bytes_of(&status);
        }
        Ok(is_directory)
    };
    tree::walk(root, enter, |_, _| Ok(()))?;
    Ok(usage)
}

fn bytes_of(status: &Stat) -> u64 {
    u64::try_from(status.st_blocks).unwrap_or(0) * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use rstest::rstest;
    use rustix::fs::XattrFlags;

    use super::*;

    #[rstest]
    #[case::redirect("trusted.overlay.redirect", true)]
    #[case::metacopy("trusted.overlay.metacopy", true)]
    #[case::origin("trusted.overlay.origin", true)]
    #[case::redirect_in_a_user_namespace("user.overlay.redirect", true)]
    #[case::opaque("trusted.overlay.opaque", false)]
    #[case::whiteout("trusted.overlay.whiteout", false)]
    #[case::of_a_mount_inside("trusted.overlay.overlay.redirect", false)]
    #[case::of_the_user("user.comment", false)]
    #[case::capability("security.capability", false)]
    fn attributes_that_no_layer_may_bring(#[case] attribute: &str, #[case] foreign: bool) {
        assert_eq!(is_foreign(attribute.as_bytes()), foreign);
    }

    #[test]
    fn foreign_attributes_go_from_every_kind_of_file() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        File::create(root.join("a/b/file")).unwrap();
        symlink("/nowhere", root.join("a/link")).unwrap();
        let files = ["", "a", "a/b", "a/b/file", "a/link"].map(|path| root.join(path));
        let names = ["trusted.overlay.redirect", "trusted.overlay.opaque"];
        for (file, name) in files.iter().flat_map(|file| names.map(|name| (file, name))) {
            rustix::fs::lsetxattr(file, name, b"/store", XattrFlags::CREATE).unwrap();
        }
        measure_and_clean(root).unwrap();
        for file in &files {
            let mut value = [0u8; 16];
            let [redirect, opaque] = names.map(|name| rustix::fs::lgetxattr(file, name, &mut value));
            assert_eq!(redirect, Err(Errno::NODATA), "{}", file.display());
            assert_eq!(opaque, Ok(6), "{}", file.display());
        }
    }

    #[test]
    fn inodes_count_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let empty = measure(root).unwrap();
        fs::write(root.join("one"), [1; 10_000]).unwrap();
        fs::hard_link(root.join("one"), root.join("two")).unwrap();
        File::create(root.join("sparse")).unwrap().set_len(1 << 33).unwrap();
        let full = measure(root).unwrap();
        assert_eq!((empty.inodes, full.inodes), (1, 3));
        let grown = full.bytes - empty.bytes;
        assert!((10_000..65_536).contains(&grown), "{grown}");
    }
}
