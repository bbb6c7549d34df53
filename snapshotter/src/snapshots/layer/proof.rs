//! The proof that a layer holds mount points for store paths and nothing else.
//!
//! nix-snapshotter's `nix2container` (0.4) makes a layer of an empty directory or file for every path of the closure, and
//! of the links that `copyToRoot` asks for; its annotation is the same with and without links. A layer without is the
//! same to the byte wherever it is made, so its digest can be computed from the names of the paths: a tar archive as
//! `ChangeWriter` of containerd's `pkg/archive` writes it with Go's `archive/tar`, whose functions are named below. When
//! that digest gives the layer's chain id, all that there is to unpack is known.
//!
//! The chain id is computed from the parent's own: what the image says of itself proves nothing.

use std::path::Path;

use environment::digest::Digest;
use environment::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::stub::open_directory;

const BLOCK: usize = 512;
/// What fits in the field of a name, and of its prefix.
const NAME: usize = 100;
const PREFIX: usize = 155;
const DIRECTORY: u8 = b'5';
const FILE: u8 = b'0';
const EXTENSION: u8 = b'x';

/// Whether `chain_id` is the one of nix2container's layer for `paths`, all of them in `store`, upon the snapshot
/// `parent`. `paths` are sorted.
pub(super) fn holds(
    chain_id: &str,
    parent: &str,
    paths: &[StorePath],
    store: &Path,
) -> std::io::Result<bool> {
    let Some(parent) = parent_chain_id(parent) else { return Ok(false) };
    let Some(diff_id) = diff_id(paths, store)? else { return Ok(false) };
    Ok(chain_id == if parent.is_empty() { diff_id } else { chained(parent, &diff_id) })
}

/// The chain id in the name of a layer's snapshot: `NAMESPACE/N/CHAIN-ID`, as containerd makes them (`createKey` in its
/// `core/metadata/snapshot.go`), or `CHAIN-ID@ID` of one that was not unpacked. The one of no layers is empty.
fn parent_chain_id(name: &str) -> Option<&str> {
    if name.is_empty() {
        return Some("");
    }
    let id = match name.split_once('@') {
        Some((id, _)) => id,
        None => name.splitn(3, '/').nth(2)?,
    };
    let hex = id.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// `ChainID` of the OCI image specification (config.md, "Layer ChainID").
fn chained(parent: &str, diff_id: &str) -> String {
    format!("sha256:{}", Digest::of(format!("{parent} {diff_id}").as_bytes()))
}

/// The digest of nix2container's archive; `None` when it would not make one.
fn diff_id(paths: &[StorePath], store: &Path) -> std::io::Result<Option<String>> {
    let mut archive = Archive(Sha256::new());
    archive.entry("nix/", DIRECTORY, 0o755);
    archive.entry("nix/store/", DIRECTORY, 0o755);
    let directory = open_directory(CWD, store)?;
    for path in paths {
        // With Go's `os.Stat`: a link counts as what it leads to.
        let status = match rustix::fs::statat(&directory, path.base_name(), AtFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            status => status?,
        };
        let name = &path.as_str()[1..];
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => archive.entry(&format!("{name}/"), DIRECTORY, 0o755),
            _ => archive.entry(name, FILE, 0o555),
        }
    }
    Ok(Some(archive.finish()))
}

/// The digest of a tar archive of empty entries, all of root and of 1970.
struct Archive(Sha256);

impl Archive {
    fn entry(&mut self, name: &str, kind: u8, mode: u32) {
        let (prefix, rest) = match split(name) {
            Some(split) => split,
            None => {
                self.extension(name);
                ("", name)
            }
        };
        let header = Header { prefix, name: rest, kind, mode, size: 0, has_devices: true };
        self.0.update(header.block());
    }

    /// What stands before an entry whose name does not fit into its header (`writePAXHeader`): the last component
    /// alone is longer than the field.
    fn extension(&mut self, name: &str) {
        let record = pax_record("path", name);
        let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
        let path = format!("{directory}/PaxHeaders.0/{file}");
        let size = record.len();
        let header = Header { prefix: "", name: &path, kind: EXTENSION, mode: 0, size, has_devices: false };
        self.0.update(header.block());
        self.0.update(&record);
        self.0.update(&[0; BLOCK][..record.len().next_multiple_of(BLOCK) - record.len()]);
    }

    fn finish(mut self) -> String {
        self.0.update([0; 2 * BLOCK]);
        let digest = self.0.finalize();
        format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

struct Header<'a> {
    prefix: &'a str,
    name: &'a str,
    kind: u8,
    mode: u32,
    size: usize,
    /// The header of an extension has none.
    has_devices: bool,
}

impl Header<'_> {
    /// `templateV7Plus` and `setFormat`.
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, self.name.get(..NAME).unwrap_or(self.name));
        put(100, &format!("{:07o}", self.mode));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", self.size));
        put(136, "00000000000");
        put(148, "        ");
        put(257, "ustar\x0000");
        if self.has_devices {
            put(329, "0000000");
            put(337, "0000000");
        }
        put(345, self.prefix);
        block[156] = self.kind;
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// A name as its prefix and the rest, if it fits so (`splitUSTARPath`).
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= NAME {
        return Some(("", name));
    }
    let start = name.get(..=PREFIX).unwrap_or(name.trim_end_matches('/'));
    let (prefix, _) = start.rsplit_once('/')?;
    let rest = &name[prefix.len() + 1..];
    (!prefix.is_empty() && rest.len() <= NAME).then_some((prefix, rest))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    /// What nix2container 0.4.0 made of the store below.
    const DIFF_ID: &str = "sha256:090be4a4792d106137e9f46be37877f535cb589c8b2f5651617b33e57c341831";
    const PARENT: &str = "sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    /// Files, directories, links to both, and names of every length at which the archive changes its form.
    fn store() -> (tempfile::TempDir, Vec<StorePath>) {
        let store = tempfile::tempdir().unwrap();
        let mut paths: Vec<StorePath> = Vec::new();
        let mut add = |last: char, name: &str, make: &dyn Fn(&Path)| {
            let path: StorePath =
                format!("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj24{last}-{name}").parse().unwrap();
            make(&store.path().join(path.base_name()));
            paths.push(path);
        };
        let directory = |path: &Path| fs::create_dir(path).unwrap();
        let file = |path: &Path| fs::write(path, "content").unwrap();
        add('0', "dir", &directory);
        add('1', "file", &file);
        add('2', "link-to-dir", &|path| symlink("r2dydhgyxl38xw69v81pl4rpk9ndj240-dir", path).unwrap());
        add('3', "link-to-file", &|path| symlink("r2dydhgyxl38xw69v81pl4rpk9ndj241-file", path).unwrap());
        add('4', &"n".repeat(60), &directory);
        add('5', &"m".repeat(100), &file);
        for (last, length) in ('6'..='9').zip(55..) {
            add(last, &"d".repeat(length), &directory);
        }
        for length in 56..=58 {
            add('a', &"f".repeat(length), &file);
        }
        add('v', &"z".repeat(200), &directory);
        (store, paths)
    }

    #[test]
    fn the_archive_is_nix2containers_to_the_byte() {
        let (store, paths) = store();
        assert_eq!(diff_id(&paths, store.path()).unwrap().unwrap(), DIFF_ID);
    }

    #[rstest]
    #[case::the_first_layer(DIFF_ID, "", true)]
    #[case::a_layer_upon_another(&chained(PARENT, DIFF_ID), &format!("default/7/{PARENT}"), true)]
    #[case::a_layer_upon_one_that_was_not_unpacked(&chained(PARENT, DIFF_ID), &format!("{PARENT}@7"), true)]
    #[case::another_layer(PARENT, "", false)]
    #[case::the_layer_of_another_parent(&chained(DIFF_ID, DIFF_ID), &format!("default/7/{PARENT}"), false)]
    #[case::a_layer_that_pretends_to_be_the_first(DIFF_ID, &format!("default/7/{PARENT}"), false)]
    #[case::a_layer_that_pretends_to_have_a_parent(&chained(PARENT, DIFF_ID), "", false)]
    #[case::a_layer_upon_what_is_no_layer(DIFF_ID, "default/7/extract-1 sha256:0", false)]
    #[case::a_layer_upon_a_name_of_no_namespace(&chained(PARENT, DIFF_ID), PARENT, false)]
    fn is_proved_by_its_chain_id(#[case] chain_id: &str, #[case] parent: &str, #[case] expected: bool) {
        let (store, paths) = store();
        assert_eq!(holds(chain_id, parent, &paths, store.path()).unwrap(), expected);
        assert!(!holds(chain_id, parent, &paths[1..], store.path()).unwrap(), "with a path less");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_not_nix2containers() {
        let (store, mut paths) = store();
        let path: StorePath = format!("/nix/store/{}-z", "z".repeat(32)).parse().unwrap();
        symlink("nowhere", store.path().join(path.base_name())).unwrap();
        paths.push(path);
        assert_eq!(diff_id(&paths, store.path()).unwrap(), None);
    }
}
