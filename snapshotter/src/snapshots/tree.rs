//! Trees of directories, whatever their depth.
//!
//! A container nests directories as it likes: deeper than a process may open files or a thread's stack reaches, and with
//! paths longer than a system call takes. So a walk holds one directory open, and goes back up by `..`, as rm(1) does.
//! It looks up single names only, and follows neither links nor mounts: a container may still be writing.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory on the way from the root.
struct Level {
    device: u64,
    inode: u64,
    name: CString,
    /// Those that were not entered yet.
    directories: Vec<CString>,
}

/// Walks through a tree below `root`. `enter` gets each file, by its directory and name, and says whether it is a
/// directory; `leave` gets each directory below the root once more, after all that is in it.
///
/// # Errors
/// When a directory cannot be read, or is moved meanwhile; and those of `enter` and `leave`.
pub fn walk(
    root: OwnedFd,
    mut enter: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<bool>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let mut current = root;
    let mut levels = vec![read(&current, CString::default(), &mut enter)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.directories.pop() {
            match open(current.as_fd(), &name) {
                // It is gone, or something else, or a mount.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                directory => {
                    current = directory?;
                    levels.push(read(&current, name, &mut enter)?);
                }
            }
        } else if let (Some(level), Some(parent)) = (levels.pop(), levels.last()) {
            current = open(current.as_fd(), c"..")?;
            let status = rustix::fs::fstat(&current)?;
            if (status.st_dev, status.st_ino) != (parent.device, parent.inode) {
                return Err(io::Error::other("a directory was moved while the tree was read"));
            }
            leave(current.as_fd(), &level.name)?;
        }
    }
    Ok(())
}

/// Removes a file, or a directory and all that is in it.
///
/// # Errors
/// When it cannot be removed; some of it may be gone then.
pub fn remove(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    match unlink(CWD, &name)? {
        false => Ok(()),
        true => {
            walk(open(CWD, &name)?, unlink, remove_directory)?;
            remove_directory(CWD, &name)
        }
    }
}

/// Removes a file; says whether it is a directory, which then is still there.
fn unlink(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn remove_directory(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The path of the root itself may lead through mounts.
    let resolve = if name.to_bytes().contains(&b'/') { ResolveFlags::empty() } else { ResolveFlags::NO_XDEV };
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)
}

fn read(
    directory: &OwnedFd,
    name: CString,
    enter: &mut impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<bool>,
) -> io::Result<Level> {
    let status = rustix::fs::fstat(directory)?;
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") && enter(directory.as_fd(), name)? {
            directories.push(name.to_owned());
        }
    }
    Ok(Level { device: status.st_dev, inode: status.st_ino, name, directories })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Directories in directories, made without a path.
    fn nest(root: &Path, depth: usize) {
        let mut current = open(CWD, &CString::new(root.to_str().unwrap()).unwrap()).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&current, c"d", Mode::RWXU).unwrap();
            current = open(current.as_fd(), c"d").unwrap();
        }
    }

    #[test]
    fn a_deep_tree_is_walked_and_removed() {
        const DEPTH: usize = 5_000;
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        nest(&root, DEPTH);
        let (mut entered, mut left) = (0, 0);
        let enter = |directory: BorrowedFd<'_>, _: &CStr| {
            assert!(directory.as_raw_fd() < 1000, "few files are open");
            entered += 1;
            Ok(true)
        };
        let leave = |_: BorrowedFd<'_>, _: &CStr| {
            left += 1;
            Ok(())
        };
        walk(fs::File::open(&root).unwrap().into(), enter, leave).unwrap();
        assert_eq!((entered, left), (DEPTH, DEPTH));
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn what_a_link_names_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [kept, root] = ["kept", "root"].map(|name| directory.path().join(name));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        symlink(&kept, root.join("a/link")).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        symlink(&kept, &root).unwrap();
        remove(&root).unwrap();
        assert!(root.symlink_metadata().is_err());
        assert!(kept.join("file").exists());
        remove(&root).unwrap();
    }
}
