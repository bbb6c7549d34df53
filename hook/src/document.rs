//! Files that other programs read: read once, replaced whole.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::OFlags;

/// A regular file as it was read.
pub struct Document {
    path: PathBuf,
    metadata: Metadata,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Document {
    /// Reads a regular file, through links; a FIFO or a device is an error at once.
    pub fn read(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let mut file =
            OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes)?;
        Ok(Self { path: path.to_owned(), metadata, bytes })
    }

    /// Replaces the file's content: whoever reads it sees the old or the new, whole. Owner and mode stay, and so do
    /// links to it.
    pub fn replace(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let path =
            fs::canonicalize(&self.path).with_context(|| format!("cannot find {}", self.path.display()))?;
        write(&path, bytes, self.metadata.mode(), |file| {
            std::os::unix::fs::fchown(file, Some(self.metadata.uid()), Some(self.metadata.gid()))
        })
    }
}

/// Writes a file of root's own, mode 0600, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(path, bytes, 0o600, |_| Ok(()))
}

fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    own: impl FnOnce(&File) -> io::Result<()>,
) -> anyhow::Result<()> {
    let replace = || -> io::Result<()> {
        let mut unfinished = tempfile::Builder::new()
            .prefix(".nixenv-")
            .tempfile_in(path.parent().unwrap_or(Path::new("/")))?;
        unfinished.write_all(bytes)?;
        own(unfinished.as_file())?;
        unfinished.as_file().set_permissions(Permissions::from_mode(mode & 0o7777))?;
        unfinished.as_file().sync_all()?;
        unfinished.persist(path)?;
        Ok(())
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_keeps_owner_and_mode_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let _ = std::os::unix::fs::chown(&path, Some(1), Some(2));
        let before = fs::metadata(&path).unwrap();
        Document::read(&path).unwrap().replace(b"new").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!((before.uid(), before.gid(), before.mode()), (after.uid(), after.gid(), after.mode()));
        assert_ne!(before.ino(), after.ino(), "it was written in place");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Document::read(&link).unwrap().replace(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_fifo_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(Document::read(&path).is_err());
    }
}
