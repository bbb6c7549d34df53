//! The proof that a layer holds mount points for store paths and nothing else.
//!
//! nix-snapshotter's `nix2container` (0.4) makes a layer of an empty directory or file for every path of the closure, and
//! of the links that `copyToRoot` asks for; its annotation is the same with and without links. A layer without is the
//! same to the byte wherever it is made, so its digest can be computed from the names of the paths: a tar archive as
//! `ChangeWriter` of containerd's `pkg/archive` writes it with Go's `archive/tar`. When that digest gives the layer's chain
//! id, all that there is to unpack is known.
//!
//! The chain id is computed from the parent's own: what the image says of itself proves nothing.

use std::path::Path;

use environment::digest::Digest;
use environment::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, FileType};
use sha2::{Digest as _, Sha256};

use super::stub::open_directory;

const BLOCK: usize = 512;
/// What fits in the field of a name.
const NAME: usize = 100;
const DIRECTORY: u8 = b'5';
const FILE: u8 = b'0';
const EXTENDED: u8 = b'x';

/// Whether `chain_id` is the one of nix2container's layer for `paths`, all of them in `store`, upon the snapshot
/// `parent`. `paths` are sorted.
pub(super) fn holds(
    chain_id: &str,
    parent: &str,
    paths: &[StorePath],
    store: &Path,
) -> std::io::Result<bool> {
    let Some(parent) = parent_chain_id(parent) else { return Ok(false) };
    let diff_id = format!("sha256:{}", diff_id(paths, store)?);
    Ok(chain_id == if parent.is_empty() { diff_id } else { chained(parent, &diff_id) })
}

/// The chain id in the name `NAMESPACE/N/CHAIN-ID` that containerd gives to a snapshot of a layer (`createKey` in its
/// `core/metadata/snapshot.go`); the one of no layers is empty.
fn parent_chain_id(name: &str) -> Option<&str> {
    if name.is_empty() {
        return Some("");
    }
    let id = name.splitn(3, '/').nth(2)?;
    let hex = id.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// `ChainID` of the OCI image specification (config.md, "Layer ChainID").
fn chained(parent: &str, diff_id: &str) -> String {
    format!("sha256:{}", Digest::of(format!("{parent} {diff_id}").as_bytes()))
}

/// The digest of nix2container's archive.
fn diff_id(paths: &[StorePath], store: &Path) -> std::io::Result<String> {
    let mut archive = Archive(Sha256::new());
    archive.entry("nix/", DIRECTORY, 0o755);
    archive.entry("nix/store/", DIRECTORY, 0o755);
    let directory = open_directory(CWD, store)?;
    for path in paths {
        // With Go's `os.Stat`: a link counts as what it leads to.
        let status = rustix::fs::statat(&directory, path.base_name(), AtFlags::empty())?;
        let name = &path.as_str()[1..];
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => archive.entry(&format!("{name}/"), DIRECTORY, 0o755),
            _ => archive.entry(name, FILE, 0o555),
        }
    }
    Ok(archive.finish())
}

/// The digest of a tar archive of empty entries, all of root and of 1970.
struct Archive(Sha256);

impl Archive {
    fn entry(&mut self, name: &str, kind: u8, mode: u32) {
        if name.len() > NAME {
            let record = pax_record("path", name);
            let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
            let mut extended = format!("{directory}/PaxHeaders.0/{file}");
            extended.truncate(NAME);
            self.header(extended.trim_end_matches('/'), EXTENDED, 0, record.len(), false);
            self.0.update(&record);
            self.0.update(&[0; BLOCK][..record.len().next_multiple_of(BLOCK) - record.len()]);
        }
        self.header(name, kind, mode, 0, true);
    }

    /// A header (`templateV7Plus` and `setFormat` of Go's `archive/tar`); one of an extended header has no devices.
    fn header(&mut self, name: &str, kind: u8, mode: u32, size: usize, has_devices: bool) {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, cut_name(name));
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(257, "ustar\x0000");
        if has_devices {
            put(329, "0000000");
            put(337, "0000000");
        }
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.update(block);
    }

    fn finish(mut self) -> String {
        self.0.update([0; 2 * BLOCK]);
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a name's field holds of it (`formatString` of Go's `archive/tar`).
fn cut_name(name: &str) -> &str {
    match name.get(..NAME) {
        Some(cut) if name.len() > NAME => cut.trim_end_matches('/'),
        _ => name,
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}
