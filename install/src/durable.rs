//! Replaces files so that a reader, or a crash, sees the old content or the new one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

/// Writes `content` to `path`; a file that is there keeps its owner, and its mode unless `mode` is given.
pub fn replace(path: &Path, content: &[u8], mode: Option<u32>) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".nixenv-").tempfile_in(directory)?;
    file.write_all(content)?;
    let before = fs::metadata(path).ok();
    if let Some(before) = &before {
        chown(file.path(), Some(before.uid()), Some(before.gid()))?;
    }
    let mode = mode.or(before.map(|before| before.mode() & 0o7777)).unwrap_or(0o644);
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}
