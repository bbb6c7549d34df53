//! The manifest: the cached record of an environment.
//!
//! One line with the SHA-256 of the rest, then JSON:
//!
//! ```text
//! nixenv manifest 5f70bf18...
//! {"key":"...","variables":{...},...}
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::key::{Key, NodeFacts, ViewId};

/// Manifests larger than this are not read: 64 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// What is known of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The environment's key.
    pub key: Key,
    /// What the user called the config when it was resolved; for people, never looked up.
    pub origin: String,
    /// The variables to inject, without builder noise.
    pub variables: BTreeMap<String, String>,
    /// What the container's first process is started through.
    pub shell_hook: Option<ShellHook>,
    /// The view of the closure.
    pub view: ViewId,
    /// Number of store paths in the closure.
    pub closure_paths: usize,
    /// NAR size of the closure in bytes.
    pub closure_bytes: u64,
    /// The Nix that evaluated it.
    pub node: NodeFacts,
    /// Seconds since 1970 at publication.
    pub created: u64,
    /// What the evaluation took, in milliseconds.
    pub evaluation_ms: u64,
    /// What realising took, in milliseconds.
    pub build_ms: u64,
    /// What was left out, for people: refused variables and the like.
    pub warnings: Vec<String>,
}

/// A `shellHook` and the shell that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellHook {
    /// An absolute path inside the closure.
    pub shell: String,
    /// The text of the hook.
    pub script: String,
}

/// A manifest that cannot be used; to the cache it is a miss.
#[derive(Debug, thiserror::Error)]
pub enum ReadManifestError {
    /// There is none.
    #[error("no manifest {path}")]
    Absent {
        /// Where it would be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the manifest {path}")]
    Read {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not root's alone, or not a regular file of sensible size.
    #[error("the manifest {path} is not trusted: it must be a regular file of root's with mode 0600")]
    Foreign {
        /// The manifest.
        path: PathBuf,
    },
    /// Its content is not what was written.
    #[error("the manifest {path} is damaged: {what}")]
    Damaged {
        /// The manifest.
        path: PathBuf,
        /// What does not verify.
        what: &'static str,
    },
}

impl Manifest {
    /// The bytes of the manifest's file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal("manifest", self)
    }

    /// Reads and verifies the manifest of `key` at `path`.
    ///
    /// # Errors
    /// When it is absent, unreadable, not root's, or does not verify.
    pub fn load(path: &Path, key: &Key) -> Result<Self, ReadManifestError> {
        let manifest: Self = load_sealed("manifest", path)?;
        if manifest.key != *key {
            return Err(ReadManifestError::Damaged { path: path.to_owned(), what: "it is another key's" });
        }
        Ok(manifest)
    }
}

/// Encodes `record` behind its digest.
///
/// # Panics
/// When `record` is not text, numbers, and lists and tables of them.
#[must_use]
pub fn seal(kind: &str, record: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("records hold only text and numbers");
    let mut bytes = format!("nixenv {kind} {}\n", Digest::of(&json)).into_bytes();
    bytes.extend(json);
    bytes
}

/// Reads a record that [`seal`] wrote; the file must be owned by this process' user, with mode 0600.
///
/// # Errors
/// When it is absent, unreadable, not root's, or does not verify.
pub fn load_sealed<T: for<'de> Deserialize<'de>>(kind: &str, path: &Path) -> Result<T, ReadManifestError> {
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ReadManifestError::Absent { path: path.to_owned() },
        _ => ReadManifestError::Read { path: path.to_owned(), source },
    };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file =
        fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o7777 == 0o600;
    if !own || !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(ReadManifestError::Foreign { path: path.to_owned() });
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut bytes).map_err(read)?;
    unseal(kind, &bytes).map_err(|what| ReadManifestError::Damaged { path: path.to_owned(), what })
}

fn unseal<T: for<'de> Deserialize<'de>>(kind: &str, bytes: &[u8]) -> Result<T, &'static str> {
    let end = bytes.iter().take(256).position(|&b| b == b'\n').ok_or("it has no head line")?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    if head != format!("nixenv {kind} {}", Digest::of(json)).as_bytes() {
        return Err("its digest does not match");
    }
    serde_json::from_slice(json).map_err(|_| "its fields are not this version's")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::settings::Settings;

    fn manifest() -> Manifest {
        let node = NodeFacts { nix_version: "2.8.0".into(), system: "x86_64-linux".into() };
        let world = crate::key::World { settings: &Settings::default(), node: &node, attr: None };
        Manifest {
            key: world.key(&Digest::of(b"a"), "config.nix"),
            origin: "config.nix".into(),
            variables: BTreeMap::from([("A".into(), "spaces, \"quotes\"\nand ünïcode".into())]),
            shell_hook: None,
            view: ViewId::of_closure(&[]),
            closure_paths: 0,
            closure_bytes: 0,
            node,
            created: 1,
            evaluation_ms: 2,
            build_ms: 3,
            warnings: vec![],
        }
    }

    fn stored(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifest.json");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_directory, path) = stored(&manifest().encode(), 0o600);
        assert_eq!(Manifest::load(&path, &manifest().key).unwrap(), manifest());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = manifest().encode();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(unseal::<Manifest>("manifest", &damaged).is_err(), "byte {index}");
        }
        for length in 0..bytes.len() {
            assert!(unseal::<Manifest>("manifest", &bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_manifest_that_others_can_read_or_write_is_foreign() {
        let (_directory, path) = stored(&manifest().encode(), 0o644);
        assert!(matches!(Manifest::load(&path, &manifest().key), Err(ReadManifestError::Foreign { .. })));
    }

    #[test]
    fn a_link_is_not_followed() {
        let (directory, path) = stored(&manifest().encode(), 0o600);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(path, &link).unwrap();
        assert!(matches!(Manifest::load(&link, &manifest().key), Err(ReadManifestError::Read { .. })));
    }
}
