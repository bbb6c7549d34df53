//! A snapshot as a Nix archive (NAR), the form in which Nix hashes and copies file trees.
//!
//! The format is that of `libutil/archive.cc`: strings behind their length (8 bytes, little endian), padded with
//! zeros to a multiple of 8.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"nix-archive-1";
/// Directories nested deeper are refused.
const MAX_DEPTH: usize = 256;

/// A file tree in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// A regular file.
    File {
        /// Its content.
        content: Vec<u8>,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link and its target.
    Link(String),
    /// A directory.
    Directory(BTreeMap<String, Tree>),
}

/// An archive that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is not what [`Tree::write`] writes.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// It ends early or cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Tree {
    /// An empty directory.
    #[must_use]
    pub fn directory() -> Self {
        Self::Directory(BTreeMap::new())
    }

    /// Puts `tree` at `path`, making the directories above it; what is there already stays.
    pub fn insert(&mut self, path: &Path, tree: Self) {
        let mut names = path.iter().filter_map(|name| name.to_str()).peekable();
        let mut at = self;
        while let (Some(name), Self::Directory(entries)) = (names.next(), at) {
            let empty = || if names.peek().is_some() { Self::directory() } else { tree.clone() };
            at = entries.entry(name.to_owned()).or_insert_with(empty);
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When `writer` fails.
    pub fn write(&self, mut writer: impl Write) -> io::Result<()> {
        put(&mut writer, MAGIC)?;
        self.write_node(&mut writer)
    }

    fn write_node(&self, writer: &mut impl Write) -> io::Result<()> {
        put(writer, b"(")?;
        put(writer, b"type")?;
        match self {
            Self::File { content, executable } => {
                put(writer, b"regular")?;
                if *executable {
                    put(writer, b"executable")?;
                    put(writer, b"")?;
                }
                put(writer, b"contents")?;
                put(writer, content)?;
            }
            Self::Link(target) => {
                put(writer, b"symlink")?;
                put(writer, b"target")?;
                put(writer, target.as_bytes())?;
            }
            Self::Directory(entries) => {
                put(writer, b"directory")?;
                for (name, tree) in entries {
                    for text in [b"entry", &b"("[..], b"name", name.as_bytes(), b"node"] {
                        put(writer, text)?;
                    }
                    tree.write_node(writer)?;
                    put(writer, b")")?;
                }
            }
        }
        put(writer, b")")
    }
}

fn put(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(&(bytes.len() as u64).to_le_bytes())?;
    writer.write_all(bytes)?;
    writer.write_all(&[0; 8][..padding(bytes.len())])
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 8
}

/// Unpacks an archive of at most `max_bytes` to `target`, which must not exist.
///
/// # Errors
/// When the archive is malformed or a file cannot be written; what was written by then stays.
pub fn unpack(archive: impl Read, max_bytes: u64, target: &Path) -> Result<(), UnpackError> {
    let mut reader = Reader(archive.take(max_bytes));
    reader.expect(MAGIC)?;
    reader.unpack_node(target, 0)?;
    if reader.0.read(&mut [0]).map_err(UnpackError::Read)? != 0 {
        return Err(UnpackError::Malformed("something follows its end"));
    }
    Ok(())
}

struct Reader<R>(io::Take<R>);

impl<R: Read> Reader<R> {
    fn string(&mut self) -> Result<Vec<u8>, UnpackError> {
        let mut length = [0; 8];
        self.0.read_exact(&mut length).map_err(UnpackError::Read)?;
        let length = u64::from_le_bytes(length);
        if length > self.0.limit() {
            return Err(UnpackError::Malformed("a string is longer than the archive"));
        }
        let mut bytes = Vec::new();
        (&mut self.0).take(length).read_to_end(&mut bytes).map_err(UnpackError::Read)?;
        if (bytes.len() as u64) < length {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut zeros = [0; 8];
        let zeros = &mut zeros[..padding(bytes.len())];
        self.0.read_exact(zeros).map_err(UnpackError::Read)?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(UnpackError::Malformed("its padding is not zero"));
        }
        Ok(bytes)
    }

    fn expect(&mut self, expected: &[u8]) -> Result<(), UnpackError> {
        if self.string()? == expected { Ok(()) } else { Err(UnpackError::Malformed("an unexpected word")) }
    }

    fn unpack_node(&mut self, target: &Path, depth: usize) -> Result<(), UnpackError> {
        if depth > MAX_DEPTH {
            return Err(UnpackError::Malformed("directories are nested too deeply"));
        }
        let write = |source| UnpackError::Write { path: target.to_owned(), source };
        self.expect(b"(")?;
        self.expect(b"type")?;
        match self.string()?.as_slice() {
            b"regular" => {
                let mut word = self.string()?;
                let executable = word == b"executable";
                if executable {
                    self.expect(b"")?;
                    word = self.string()?;
                }
                if word != b"contents" {
                    return Err(UnpackError::Malformed("a file without contents"));
                }
                fs::write(target, self.string()?).map_err(write)?;
                let mode = if executable { 0o555 } else { 0o444 };
                fs::set_permissions(target, Permissions::from_mode(mode)).map_err(write)?;
                self.expect(b")")
            }
            b"symlink" => {
                self.expect(b"target")?;
                symlink(utf8(self.string()?)?, target).map_err(write)?;
                self.expect(b")")
            }
            b"directory" => {
                fs::create_dir(target).map_err(write)?;
                let mut last = String::new();
                loop {
                    match self.string()?.as_slice() {
                        b")" => return Ok(()),
                        b"entry" => (),
                        _ => return Err(UnpackError::Malformed("an unexpected word in a directory")),
                    }
                    self.expect(b"(")?;
                    self.expect(b"name")?;
                    let name = utf8(self.string()?)?;
                    if name.is_empty()
                        || name == "."
                        || name == ".."
                        || name.contains(['/', '\0'])
                        || name <= last
                    {
                        return Err(UnpackError::Malformed("a file name that is no name, or out of order"));
                    }
                    self.expect(b"node")?;
                    self.unpack_node(&target.join(&name), depth + 1)?;
                    self.expect(b")")?;
                    last = name;
                }
            }
            _ => Err(UnpackError::Malformed("an unknown file type")),
        }
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, UnpackError> {
    String::from_utf8(bytes).map_err(|_| UnpackError::Malformed("text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trees() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![
            (any::<Vec<u8>>(), any::<bool>())
                .prop_map(|(content, executable)| Tree::File { content, executable }),
            "[a-z/.]{1,20}".prop_map(Tree::Link),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop::collection::btree_map("[a-zA-Z0-9_+ü-]{1,12}", inner, 0..6).prop_map(Tree::Directory)
        })
    }

    fn encode(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        bytes
    }

    fn read_back(path: &Path) -> Tree {
        let metadata = fs::symlink_metadata(path).unwrap();
        if metadata.is_symlink() {
            Tree::Link(fs::read_link(path).unwrap().into_os_string().into_string().unwrap())
        } else if metadata.is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            Tree::Directory(
                entries
                    .map(|entry| (entry.file_name().into_string().unwrap(), read_back(&entry.path())))
                    .collect(),
            )
        } else {
            Tree::File {
                content: fs::read(path).unwrap(),
                executable: metadata.permissions().mode() & 0o100 != 0,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_unpacked(tree in trees()) {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path().join("target");
            unpack(encode(&tree).as_slice(), u64::MAX, &target).unwrap();
            prop_assert_eq!(read_back(&target), tree);
        }

        #[test]
        fn no_bytes_are_a_danger(cut in any::<prop::sample::Index>(), change in any::<u8>(), tree in trees()) {
            let mut bytes = encode(&tree);
            let index = cut.index(bytes.len());
            bytes[index] ^= change;
            let directory = tempfile::tempdir().unwrap();
            let _ = unpack(bytes.as_slice(), u64::MAX, &directory.path().join("a"));
            prop_assert!(unpack(&bytes[..index], u64::MAX, &directory.path().join("b")).is_err());
            prop_assert!(fs::read_dir(&directory).unwrap().count() <= 2);
        }
    }

    #[test]
    fn a_name_with_a_slash_is_refused() {
        let tree = Tree::Directory(BTreeMap::from([("../x".to_owned(), Tree::Link("y".to_owned()))]));
        let directory = tempfile::tempdir().unwrap();
        let result = unpack(encode(&tree).as_slice(), u64::MAX, &directory.path().join("a"));
        assert!(matches!(result, Err(UnpackError::Malformed(_))));
    }

    #[test]
    fn the_limit_holds() {
        let tree = Tree::File { content: vec![0; 1000], executable: false };
        let directory = tempfile::tempdir().unwrap();
        assert!(unpack(encode(&tree).as_slice(), 1000, &directory.path().join("a")).is_err());
    }

    #[test]
    fn inserting_makes_the_directories_above() {
        let mut tree = Tree::directory();
        tree.insert(Path::new("a/b"), Tree::Link("x".into()));
        tree.insert(Path::new("a/c"), Tree::directory());
        tree.insert(Path::new("a"), Tree::directory());
        let inner =
            BTreeMap::from([("b".to_owned(), Tree::Link("x".into())), ("c".to_owned(), Tree::directory())]);
        assert_eq!(tree, Tree::Directory(BTreeMap::from([("a".to_owned(), Tree::Directory(inner))])));
    }
}
