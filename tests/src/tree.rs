//! What there is in a tree of files, for comparison.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use environment::digest::{Digest, FieldHasher};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

/// Larger files are digested in part.
const WHOLE_BYTES: u64 = 256 << 20;

/// Of larger files, the first bytes after each multiple of `STRIDE_BYTES` are digested, and the last.
const SAMPLE_BYTES: usize = 64 << 10;
const STRIDE_BYTES: u64 = 64 << 20;

/// Every file below a directory, and the directory itself: all that a container can tell of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions: `st_mode`.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Major and minor number of a device.
    pub device: u64,
    /// Number of hard links.
    pub links: u64,
    /// The first name of the same file, when there are several.
    pub first_name: Option<PathBuf>,
    /// The length of everything but a directory.
    pub size_bytes: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Extended attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// A digest of a file's content, or of a symbolic link's target.
    pub content: Option<Digest>,
}

impl Tree {
    /// Reads all of it. The root's own time is left out: containerd unpacks every other directory's.
    ///
    /// # Panics
    /// When something cannot be read.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut names = HashMap::new();
        let mut left = vec![PathBuf::new()];
        while let Some(name) = left.pop() {
            let path = root.join(&name);
            let metadata = readable(&path, fs::symlink_metadata(&path));
            let mut entry = readable(&path, Entry::of(&path, &metadata));
            if !metadata.is_dir() && metadata.nlink() > 1 {
                let first: &PathBuf =
                    names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.clone());
                entry.first_name = Some(first.clone());
            }
            if metadata.is_dir() {
                let mut children: Vec<_> = readable(&path, fs::read_dir(&path))
                    .map(|child| name.join(readable(&path, child).file_name()))
                    .collect();
                // Popped in order, so that the first of several names is the same in each tree.
                children.sort_unstable_by(|one, other| other.cmp(one));
                left.append(&mut children);
            }
            if name.as_os_str().is_empty() {
                entry.modified = (0, 0);
            }
            entries.insert(name, entry);
        }
        Self(entries)
    }

    /// Its files, by their names below the root.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<PathBuf, Entry> {
        &self.0
    }

    /// The same without the times of the entries.
    #[must_use]
    pub fn without_times(mut self) -> Self {
        self.0.values_mut().for_each(|entry| entry.modified = (0, 0));
        self
    }

    /// The same without the link counts of directories, which are 1 where overlayfs merges directories.
    #[must_use]
    pub fn without_links_of_directories(mut self) -> Self {
        for entry in self.0.values_mut().filter(|entry| entry.content.is_none()) {
            entry.links = 1;
        }
        self
    }

    /// Expects that it is the same as `other`.
    ///
    /// # Panics
    /// With the first differences, when it is not.
    #[track_caller]
    pub fn is(&self, other: &Self) {
        let missing = other.0.keys().filter(|name| !self.0.contains_key(*name));
        let mut differences: Vec<String> = missing.map(|name| format!("- {}", name.display())).collect();
        for (name, entry) in &self.0 {
            match other.0.get(name) {
                None => differences.push(format!("+ {}", name.display())),
                Some(expected) if expected != entry => differences
                    .push(format!("{}:\n  is       {entry:?}\n  expected {expected:?}", name.display())),
                Some(_) => {}
            }
        }
        let count = differences.len();
        differences.truncate(20);
        assert!(count == 0, "{count} differences:\n{}", differences.join("\n"));
    }
}

fn readable<T>(path: &Path, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

impl Entry {
    fn of(path: &Path, metadata: &Metadata) -> std::io::Result<Self> {
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            Some(digest(path, metadata.len())?)
        } else if kind.is_symlink() {
            Some(Digest::of(fs::read_link(path)?.as_os_str().as_bytes()))
        } else {
            None
        };
        let is_device = kind.is_char_device() || kind.is_block_device();
        Ok(Self {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: if is_device { metadata.rdev() } else { 0 },
            links: metadata.nlink(),
            first_name: None,
            size_bytes: if kind.is_dir() { 0 } else { metadata.len() },
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            attributes: attributes(path)?,
            content,
        })
    }
}

fn digest(path: &Path, size_bytes: u64) -> std::io::Result<Digest> {
    if size_bytes <= WHOLE_BYTES {
        return Ok(Digest::of(&fs::read(path)?));
    }
    let file = File::open(path)?;
    let mut sample = vec![0; SAMPLE_BYTES];
    let mut hasher = FieldHasher::new("samples");
    let last = size_bytes - SAMPLE_BYTES as u64;
    for offset in (0..last).step_by(usize::try_from(STRIDE_BYTES).expect("64 bits")).chain([last]) {
        file.read_exact_at(&mut sample, offset)?;
        hasher = hasher.field(&sample);
    }
    Ok(hasher.finish())
}

fn attributes(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..])?;
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut value = vec![0; 64 << 10];
    names
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let length = lgetxattr(path, name.as_str(), &mut value[..])?;
            Ok((name, value[..length].to_vec()))
        })
        .collect()
}
