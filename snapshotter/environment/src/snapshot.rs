//! The snapshot of a config: every file that its evaluation can read, observed once.
//!
//! The evaluator sees a copy of these files and nothing else, so an environment is a function of its snapshot, and
//! the snapshot is a function of what was observed while it was taken: file contents, link targets, directory
//! listings and absences. Those observations are the config's [`Inputs`]; while they hold, nothing has changed.
//!
//! Which files: the entry file, and what the relative path literals of every file taken reach. A directory that an
//! expression may read is taken whole, without `.git`. Paths that only an evaluation could know lie in a directory
//! that a literal names, or the evaluation fails for their absence; it never reads something unobserved.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

use crate::archive::Tree;
use crate::digest::Digest;
use crate::literals::{PathLiteral, Reach, parse_path_literals};
use crate::lookup::{Found, LookupError, Namespace, Node};
use crate::settings::ConfigLimits;

/// What was observed when a snapshot was taken; as long as it holds, a new snapshot would be the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs(pub Vec<(String, Observation)>);

/// What was seen at one path (relative to the directory of the entry file).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observation {
    /// A regular file with this content.
    File {
        /// The digest of its content.
        content: Digest,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symbolic link with this target.
    Link(String),
    /// A directory with these names.
    Directory(Vec<String>),
    /// Nothing.
    Absent,
}

/// A config's entry file, found and read.
#[derive(Debug)]
pub struct Entry {
    /// Its path without links.
    real: PathBuf,
    content: Vec<u8>,
    executable: bool,
}

/// A config's files, copied.
#[derive(Debug)]
pub struct Snapshot {
    /// The path of the entry file in the archive.
    pub entry: String,
    /// What was observed.
    pub inputs: Inputs,
    /// The digest of the archive: the config's NAR hash.
    pub digest: Digest,
    archive: Vec<u8>,
}

/// A snapshot that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A path cannot be looked up.
    #[error("cannot look up {literal}, which {file} names")]
    LookUpLiteral {
        /// The path as written.
        literal: String,
        /// The file that names it.
        file: PathBuf,
        /// Why.
        source: LookupError,
    },
    /// A path cannot be looked up.
    #[error("cannot look up the config")]
    LookUp(#[source] LookupError),
    /// Something that has no content.
    #[error("{path} in {place} is {kind}; a config is made of regular files, directories and symbolic links")]
    Special {
        /// Where.
        path: PathBuf,
        /// In which place.
        place: String,
        /// What it is.
        kind: &'static str,
    },
    /// More than the node allows.
    #[error(
        "the config's files are larger than {limit} bytes in all (the limit was passed at {path} in {place}); name \
         single files instead of directories, or raise config.max-bytes in /etc/nixenv/config.toml"
    )]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// In which place.
        place: String,
        /// `config.max-bytes`.
        limit: u64,
    },
    /// More than the node allows.
    #[error(
        "the config has more than {limit} files (the limit was passed at {path} in {place}); name single files \
         instead of directories, or raise config.max-files in /etc/nixenv/config.toml"
    )]
    TooMany {
        /// Where.
        path: PathBuf,
        /// In which place.
        place: String,
        /// `config.max-files`.
        limit: usize,
    },
}

impl Entry {
    /// Finds and reads the entry file that `path` names; a directory stands for its `config.nix`, `shell.nix` or
    /// `default.nix`.
    ///
    /// # Errors
    /// When something is there that cannot be a config.
    pub fn find(
        namespace: &Namespace,
        path: &Path,
        limits: &ConfigLimits,
    ) -> Result<Option<Self>, SnapshotError> {
        let visit = |path: &Path| namespace.visit(path).map_err(SnapshotError::LookUp);
        let mut visited = visit(&namespace.absolute(path).map_err(SnapshotError::LookUp)?)?;
        if matches!(visited.found, Found::Directory(_)) {
            for name in ["config.nix", "shell.nix", "default.nix"] {
                let inside = visit(&visited.real.join(name))?;
                if !matches!(inside.found, Found::Absent) {
                    visited = inside;
                    break;
                }
            }
        }
        let special = |kind| SnapshotError::Special {
            path: visited.real.clone(),
            place: namespace.description().to_owned(),
            kind,
        };
        match &visited.found {
            Found::Absent => Ok(None),
            Found::File(node) => {
                let (content, executable) =
                    read(namespace, node, &visited.real, limits.max_bytes, limits.max_bytes)?;
                Ok(Some(Self { real: visited.real, content, executable }))
            }
            Found::Directory(_) => Err(special("a directory without config.nix, shell.nix or default.nix")),
            Found::Special(kind) => Err(special(kind)),
        }
    }

    /// The entry file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.real.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The digest of the entry file's content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.content)
    }

    fn directory(&self) -> &Path {
        self.real.parent().unwrap_or(Path::new("/"))
    }
}

impl Snapshot {
    /// Takes a snapshot of the config whose entry file is `entry`.
    ///
    /// # Errors
    /// When a file that the config names cannot be part of it, or the limits are passed.
    pub fn take(namespace: &Namespace, entry: &Entry, limits: &ConfigLimits) -> Result<Self, SnapshotError> {
        let mut taker = Taker { namespace, limits, bytes: 0, seen: BTreeMap::new(), unparsed: Vec::new() };
        taker.record(
            &entry.real,
            Seen::File { content: entry.content.clone(), executable: entry.executable },
        )?;
        taker.unparsed.push(entry.real.clone());
        while let Some(file) = taker.unparsed.pop() {
            taker.take_literals(&file)?;
        }
        Ok(taker.finish(entry))
    }

    /// The snapshot of a config that is this text alone.
    #[must_use]
    pub fn of_text(name: &str, text: &str) -> Self {
        let tree = Tree::File { content: text.into(), executable: false };
        let entry = Observation::File { content: Digest::of(text.as_bytes()), executable: false };
        Self::of_tree(
            name.to_owned(),
            Inputs(vec![(name.to_owned(), entry)]),
            &Tree::Directory(BTreeMap::from([(name.to_owned(), tree)])),
        )
    }

    fn of_tree(entry: String, inputs: Inputs, tree: &Tree) -> Self {
        let mut archive = Vec::new();
        tree.write(&mut archive).expect("writing to memory does not fail");
        Self { entry, inputs, digest: Digest::of(&archive), archive }
    }

    /// The archive in a memory file that nobody can change any more.
    ///
    /// # Errors
    /// When memory files cannot be made.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let descriptor =
            rustix::fs::memfd_create("nixenv-config", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = std::fs::File::from(descriptor);
        file.write_all(&self.archive)?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(file.into())
    }
}

impl Inputs {
    /// Whether everything that was observed still holds; else says what does not.
    ///
    /// # Errors
    /// The first observation that does not hold, in words.
    pub fn check(&self, namespace: &Namespace, entry: &Entry) -> Result<(), String> {
        for (path, expected) in &self.0 {
            let holds = namespace
                .join(entry.directory(), Path::new(path))
                .ok()
                .is_some_and(|real| expected.holds(namespace, &real));
            if !holds {
                return Err(match expected {
                    Observation::Absent => format!("{path} exists now"),
                    Observation::File { .. } => format!("{path} has changed"),
                    Observation::Link(_) => format!("the link {path} has changed"),
                    Observation::Directory(_) => format!("the names in {path} have changed"),
                });
            }
        }
        Ok(())
    }
}

impl Observation {
    fn holds(&self, namespace: &Namespace, real: &Path) -> bool {
        match (self, namespace.observe(real)) {
            (Self::File { content, executable }, Ok(Ok(Found::File(node)))) => {
                node.size_and_mode().is_ok_and(|(_, mode)| mode == *executable)
                    && read(namespace, &node, real, u64::MAX, u64::MAX)
                        .is_ok_and(|(bytes, _)| Digest::of(&bytes) == *content)
            }
            (Self::Link(target), Ok(Err(found))) => *target == found,
            (Self::Directory(names), Ok(Ok(Found::Directory(node)))) => {
                list(namespace, &node, real).is_ok_and(|found| found == *names)
            }
            (Self::Absent, Ok(Ok(Found::Absent))) => true,
            _ => false,
        }
    }
}

#[derive(Debug)]
enum Seen {
    File { content: Vec<u8>, executable: bool },
    Link(String),
    Directory(Vec<String>),
    Absent,
}

struct Taker<'a> {
    namespace: &'a Namespace,
    limits: &'a ConfigLimits,
    bytes: u64,
    seen: BTreeMap<PathBuf, Seen>,
    unparsed: Vec<PathBuf>,
}

impl Taker<'_> {
    fn take_literals(&mut self, file: &Path) -> Result<(), SnapshotError> {
        let Some(Seen::File { content, .. }) = self.seen.get(file) else { return Ok(()) };
        let literals = parse_path_literals(&String::from_utf8_lossy(content));
        let directory = file.parent().unwrap_or(Path::new("/"));
        for PathLiteral { path, reach } in literals {
            let named = |source| SnapshotError::LookUpLiteral {
                literal: path.clone(),
                file: file.to_owned(),
                source,
            };
            let target = self.namespace.join(directory, Path::new(&path)).map_err(named)?;
            match (self.follow(&target, reach == Reach::Import, named)?, reach) {
                (Some(found), Reach::Import) => {
                    let default = found.join("default.nix");
                    self.follow(&default, true, named)?;
                }
                (Some(found), _) => self.take_directory(&found)?,
                (None, Reach::Around) => {
                    let around = target.parent().unwrap_or(Path::new("/"));
                    if let Some(found) = self.follow(around, false, named)? {
                        self.take_directory(&found)?;
                    }
                }
                (None, _) => (),
            }
        }
        Ok(())
    }

    /// Records what is on the way to and at `path`; returns the real path of a directory.
    fn follow(
        &mut self,
        path: &Path,
        imported: bool,
        named: impl Fn(LookupError) -> SnapshotError,
    ) -> Result<Option<PathBuf>, SnapshotError> {
        let visit = self.namespace.visit(path).map_err(named)?;
        for (link, target) in visit.links {
            self.record(&link, Seen::Link(target))?;
        }
        match visit.found {
            Found::Directory(_) => return Ok(Some(visit.real)),
            Found::File(node) => self.take_file(&visit.real, &node, imported)?,
            Found::Absent => self.record(&visit.real, Seen::Absent)?,
            Found::Special(kind) => return Err(self.special(visit.real, kind)),
        }
        Ok(None)
    }

    fn take_file(&mut self, real: &Path, node: &Node, imported: bool) -> Result<(), SnapshotError> {
        if !self.seen.contains_key(real) {
            let left = self.limits.max_bytes.saturating_sub(self.bytes);
            let (content, executable) = read(self.namespace, node, real, left, self.limits.max_bytes)?;
            self.record(real, Seen::File { content, executable })?;
            if imported || real.extension().is_some_and(|extension| extension == "nix") {
                self.unparsed.push(real.to_owned());
            }
        }
        Ok(())
    }

    /// Takes everything below a directory.
    fn take_directory(&mut self, real: &Path) -> Result<(), SnapshotError> {
        let mut pending = vec![real.to_owned()];
        while let Some(directory) = pending.pop() {
            if matches!(self.seen.get(&directory), Some(Seen::Directory(_))) {
                continue;
            }
            let Ok(Found::Directory(node)) = self.observe(&directory)? else { continue };
            let names = list(self.namespace, &node, &directory).map_err(SnapshotError::LookUp)?;
            self.record(&directory, Seen::Directory(names.clone()))?;
            for name in names {
                let path = directory.join(name);
                match self.observe(&path)? {
                    Ok(Found::Directory(_)) => pending.push(path),
                    Ok(Found::File(node)) => self.take_file(&path, &node, false)?,
                    Ok(Found::Special(kind)) => return Err(self.special(path, kind)),
                    Ok(Found::Absent) => self.record(&path, Seen::Absent)?,
                    Err(target) => {
                        self.record(&path, Seen::Link(target))?;
                        // A link that leads out of the config's place dangles in the copy, too.
                        if !matches!(self.namespace.visit(&path), Err(LookupError::Leaves { .. }))
                            && let Some(found) = self.follow(&path, false, SnapshotError::LookUp)?
                        {
                            pending.push(found);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn observe(&self, path: &Path) -> Result<Result<Found, String>, SnapshotError> {
        self.namespace.observe(path).map_err(SnapshotError::LookUp)
    }

    fn record(&mut self, real: &Path, seen: Seen) -> Result<(), SnapshotError> {
        if let Seen::File { content, .. } = &seen {
            self.bytes += content.len() as u64;
        }
        self.seen.entry(real.to_owned()).or_insert(seen);
        if self.seen.len() > self.limits.max_files {
            return Err(SnapshotError::TooMany {
                path: real.to_owned(),
                place: self.namespace.description().to_owned(),
                limit: self.limits.max_files,
            });
        }
        Ok(())
    }

    fn special(&self, path: PathBuf, kind: &'static str) -> SnapshotError {
        SnapshotError::Special { path, place: self.namespace.description().to_owned(), kind }
    }

    fn finish(self, entry: &Entry) -> Snapshot {
        let base = entry.directory();
        let present = self.seen.iter().filter(|(_, seen)| !matches!(seen, Seen::Absent));
        let top = present.fold(base, |top, (path, seen)| match seen {
            Seen::Directory(_) => common(top, path),
            _ => common(top, path.parent().unwrap_or(top)),
        });
        let top = top.to_owned();
        let mut tree = Tree::directory();
        let mut inputs = Vec::with_capacity(self.seen.len());
        for (path, seen) in self.seen {
            let inside = path.strip_prefix(&top).unwrap_or(Path::new(""));
            let observation = match seen {
                Seen::File { content, executable } => {
                    let digest = Digest::of(&content);
                    tree.insert(inside, Tree::File { content, executable });
                    Observation::File { content: digest, executable }
                }
                Seen::Link(target) => {
                    tree.insert(inside, Tree::Link(self.namespace.portable_target(&path, &target)));
                    Observation::Link(target)
                }
                Seen::Directory(names) => {
                    tree.insert(inside, Tree::directory());
                    Observation::Directory(names)
                }
                Seen::Absent => Observation::Absent,
            };
            inputs.push((relative(base, &path), observation));
        }
        let name = entry.real.strip_prefix(&top).unwrap_or(&entry.real);
        Snapshot::of_tree(name.to_string_lossy().into_owned(), Inputs(inputs), &tree)
    }
}

impl Namespace {
    /// The target that a link in a copy needs to mean what it means here.
    fn portable_target(&self, link: &Path, target: &str) -> String {
        let directory = link.parent().unwrap_or(Path::new("/"));
        let depth = directory.components().count() - 1;
        let ups =
            Path::new(target).components().take_while(|component| *component == Component::ParentDir).count();
        if self.is_container() && (target.starts_with('/') || ups > depth) {
            let absolute = self.join(directory, Path::new(target)).unwrap_or_else(|_| target.into());
            relative(directory, &absolute)
        } else {
            target.to_owned()
        }
    }
}

/// The names in a directory that belong to a config.
fn list(namespace: &Namespace, node: &Node, path: &Path) -> Result<Vec<String>, LookupError> {
    let mut names = namespace.names(node, path)?;
    names.retain(|name| name != ".git");
    Ok(names)
}

/// Reads a regular file of at most `left` bytes.
fn read(
    namespace: &Namespace,
    node: &Node,
    path: &Path,
    left: u64,
    limit: u64,
) -> Result<(Vec<u8>, bool), SnapshotError> {
    let failed = |source| SnapshotError::LookUp(namespace.read_error(path, source));
    let too_large = || SnapshotError::TooLarge {
        path: path.to_owned(),
        place: namespace.description().to_owned(),
        limit,
    };
    let (size, executable) = node.size_and_mode().map_err(failed)?;
    if size > left {
        return Err(too_large());
    }
    let mut content = Vec::with_capacity(size as usize);
    // The file may grow while it is read.
    let file = node.open().map_err(failed)?;
    file.take(left.saturating_add(1)).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > left { Err(too_large()) } else { Ok((content, executable)) }
}

fn common<'a>(one: &'a Path, other: &Path) -> &'a Path {
    one.ancestors().find(|ancestor| other.starts_with(ancestor)).unwrap_or(Path::new("/"))
}

/// `path` as seen from `base`; both are absolute and normal.
fn relative(base: &Path, path: &Path) -> String {
    let common = common(base, path);
    let ups = base.strip_prefix(common).map_or(0, |rest| rest.components().count());
    let rest = path.strip_prefix(common).unwrap_or(path);
    let relative: PathBuf = std::iter::repeat_n(Path::new(".."), ups).chain([rest]).collect();
    if relative.as_os_str().is_empty() { ".".to_owned() } else { relative.to_string_lossy().into_owned() }
}

#[cfg(test)]
mod tests;
