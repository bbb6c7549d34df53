//! Where a config lies: inside a container, through its mounts and rootfs, or below a directory of the host.
//!
//! Paths are walked one component at a time, each opened below the one before
//! (`openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`), and symbolic links are followed in the
//! container's own terms. Whatever a rootfs holds, nothing outside of the container is reached, and what was opened
//! is what is read.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde_json::Value;

/// Links followed in one look-up, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A file system as its user sees it. Paths in it are absolute and have no `.` or `..`.
#[derive(Debug)]
pub struct Namespace {
    root: OwnedFd,
    mounts: Vec<Mount>,
    working_directory: PathBuf,
    /// Whether `..` at the root stays there, as in a container; otherwise leaving the root is refused.
    clamped: bool,
    /// What messages call this place.
    description: String,
}

#[derive(Debug)]
struct Mount {
    destination: PathBuf,
    /// The source of a bind mount; other mounts are new file systems, in which no config can lie.
    source: Option<PathBuf>,
}

/// What was found at the end of a walk.
#[derive(Debug)]
pub enum Found {
    /// A regular file.
    File(Node),
    /// A directory.
    Directory(Node),
    /// Neither; a FIFO, a device, a socket: its kind in words.
    Special(&'static str),
    /// Nothing.
    Absent,
}

/// An opened file or directory (`O_PATH`); a directory that exists only because something is mounted in it, or as a
/// new file system, has no descriptor.
#[derive(Debug)]
pub struct Node(Option<OwnedFd>);

/// The result of a walk that follows links.
#[derive(Debug)]
pub struct Visit {
    /// The path without links; for something absent, where it would be.
    pub real: PathBuf,
    /// The links followed: their own real paths and their targets.
    pub links: Vec<(PathBuf, String)>,
    /// What is at `real`.
    pub found: Found,
}

/// A look-up that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The spec lacks what a container must have.
    #[error("the OCI spec has no usable {0}")]
    Spec(&'static str),
    /// A directory to look in cannot be opened.
    #[error("cannot open {path}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A system call on a path failed.
    #[error("cannot read {path} in {place}")]
    Read {
        /// The path, in the place's own terms.
        path: PathBuf,
        /// Which place.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// Links form a loop.
    #[error("{path} in {place} goes through more than {MAX_LINKS} symbolic links")]
    Loop {
        /// The path.
        path: PathBuf,
        /// Which place.
        place: String,
    },
    /// A link or `..` leaves the place.
    #[error("{path} leaves {place}; a config and its files must lie below it")]
    Leaves {
        /// The path.
        path: PathBuf,
        /// Which place.
        place: String,
    },
    /// A name is not UTF-8.
    #[error("{path} in {place}: names and link targets must be UTF-8")]
    NotUtf8 {
        /// The path.
        path: PathBuf,
        /// Which place.
        place: String,
    },
}

impl Namespace {
    /// The file system that the container of an OCI spec will see: its rootfs and its bind mounts.
    ///
    /// # Errors
    /// When the spec names no rootfs or it cannot be opened.
    pub fn of_container(bundle: &Path, spec: &Value) -> Result<Self, LookupError> {
        let root = spec["root"]["path"].as_str().ok_or(LookupError::Spec("root.path"))?;
        let cwd = Path::new(spec["process"]["cwd"].as_str().unwrap_or("/"));
        let mut namespace = Self {
            root: open_directory(&bundle.join(root))?,
            mounts: Vec::new(),
            working_directory: normalise(Path::new("/"), cwd).0,
            clamped: true,
            description: "the container".to_owned(),
        };
        for mount in spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let Some(destination) = mount["destination"].as_str() else { continue };
            let options = mount["options"].as_array().map(Vec::as_slice).unwrap_or_default();
            let bind =
                mount["type"] == "bind" || options.iter().any(|option| option == "bind" || option == "rbind");
            let source = mount["source"].as_str().filter(|_| bind).map(|source| bundle.join(source));
            // The runtime resolves links in a destination inside of the container as it is by then.
            let destination = namespace.visit(Path::new(destination))?.real;
            namespace.mounts.retain(|earlier| !earlier.destination.starts_with(&destination));
            namespace.mounts.push(Mount { destination, source });
        }
        Ok(namespace)
    }

    /// A directory of the host and what is below it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of_directory(directory: &Path) -> Result<Self, LookupError> {
        Ok(Self {
            root: open_directory(directory)?,
            mounts: Vec::new(),
            working_directory: PathBuf::from("/"),
            clamped: false,
            description: directory.display().to_string(),
        })
    }

    /// What messages call this place.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether this is a container, where absolute paths have a meaning.
    #[must_use]
    pub fn is_container(&self) -> bool {
        self.clamped
    }

    /// The absolute form of `path`, which may be relative to the working directory, with `..` resolved in the text
    /// as Nix does (`canonPath`).
    ///
    /// # Errors
    /// When it leaves a directory of the host.
    pub fn absolute(&self, path: &Path) -> Result<PathBuf, LookupError> {
        self.join(&self.working_directory, path)
    }

    /// `path` below `base`, with `..` resolved in the text.
    ///
    /// # Errors
    /// When it leaves a directory of the host.
    pub fn join(&self, base: &Path, path: &Path) -> Result<PathBuf, LookupError> {
        let (normal, left) = normalise(base, path);
        if left && !self.clamped { Err(self.leaves(path)) } else { Ok(normal) }
    }

    /// Walks `path` (absolute), following links.
    ///
    /// # Errors
    /// When a step fails for another reason than absence.
    pub fn visit(&self, path: &Path) -> Result<Visit, LookupError> {
        let mut links = Vec::new();
        // Components still to walk, last first; `trail` is where the walk is.
        let mut pending: Vec<OsString> = components(path).rev().map(OsStr::to_owned).collect();
        let mut trail: Vec<Step> = Vec::new();
        while let Some(name) = pending.pop() {
            if name == ".." {
                if trail.pop().is_none() && !self.clamped {
                    return Err(self.leaves(path));
                }
                continue;
            }
            let real = real_path(&trail).join(&name);
            let Some(opened) = self.open(&trail, &name, &real)? else {
                return Ok(Visit { real: below(real, &pending), links, found: Found::Absent });
            };
            match self.kind(&opened, &real)? {
                FileType::Symlink => {
                    if links.len() == MAX_LINKS {
                        return Err(LookupError::Loop {
                            path: path.to_owned(),
                            place: self.description.clone(),
                        });
                    }
                    let target = self.read_link(&opened, &real)?;
                    if target.starts_with('/') {
                        if !self.clamped {
                            return Err(self.leaves(&real));
                        }
                        trail.clear();
                    }
                    pending.extend(raw_components(Path::new(&target)).rev().map(OsStr::to_owned));
                    links.push((real, target));
                }
                FileType::Directory => trail.push(Step { name, node: opened }),
                kind if pending.is_empty() => {
                    let found = match special(kind) {
                        Some(kind) => Found::Special(kind),
                        None => Found::File(opened),
                    };
                    return Ok(Visit { real, links, found });
                }
                // A component below something that is no directory.
                _ => {
                    return Ok(Visit { real: below(real, &pending), links, found: Found::Absent });
                }
            }
        }
        let real = real_path(&trail);
        let directory = trail.pop().map_or_else(|| self.reopen_root(), |step| Ok(step.node))?;
        Ok(Visit { real, links, found: Found::Directory(directory) })
    }

    /// What is at the real path `path`; `Err(target)` inside for a link, which is not followed. A path that goes
    /// through a link has nothing at it.
    ///
    /// # Errors
    /// When a step fails for another reason than absence.
    pub fn observe(&self, path: &Path) -> Result<Result<Found, String>, LookupError> {
        let mut trail: Vec<Step> = Vec::new();
        let names: Vec<&OsStr> = components(path).collect();
        for (index, name) in names.iter().enumerate() {
            let real = real_path(&trail).join(name);
            let Some(opened) = self.open(&trail, name, &real)? else { return Ok(Ok(Found::Absent)) };
            let last = index + 1 == names.len();
            match self.kind(&opened, &real)? {
                FileType::Directory => trail.push(Step { name: name.into(), node: opened }),
                FileType::Symlink if last => return self.read_link(&opened, &real).map(Err),
                kind if last => {
                    return Ok(Ok(special(kind).map_or(Found::File(opened), Found::Special)));
                }
                _ => return Ok(Ok(Found::Absent)),
            }
        }
        let directory = trail.pop().map_or_else(|| self.reopen_root(), |step| Ok(step.node))?;
        Ok(Ok(Found::Directory(directory)))
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// When it cannot be read or a name is not UTF-8.
    pub fn names(&self, directory: &Node, path: &Path) -> Result<Vec<String>, LookupError> {
        let read = |source: rustix::io::Errno| self.read_error(path, source.into());
        let mounted = self.mounts.iter().filter(|mount| mount.destination.parent() == Some(path));
        let mut names: Vec<String> =
            mounted.filter_map(|mount| mount.destination.file_name()?.to_str().map(str::to_owned)).collect();
        if directory.0.is_some() {
            let opened =
                directory.reopen(OFlags::DIRECTORY).map_err(|source| self.read_error(path, source))?;
            for entry in rustix::fs::Dir::new(opened).map_err(read)? {
                let entry = entry.map_err(read)?;
                let name = entry.file_name().to_str().map_err(|_| self.not_utf8(path))?;
                if name != "." && name != ".." {
                    names.push(name.to_owned());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Opens the component `name` at the end of `trail`, unless it does not exist.
    fn open(&self, trail: &[Step], name: &OsStr, real: &Path) -> Result<Option<Node>, LookupError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let result = match self.mounts.iter().rev().find(|mount| mount.destination == real) {
            Some(Mount { source: Some(source), .. }) => rustix::fs::openat(CWD, source, flags, Mode::empty()),
            Some(Mount { source: None, .. }) => return Ok(Some(Node(None))),
            None => match trail
                .last()
                .map_or(Some(self.root.as_fd()), |step| step.node.0.as_ref().map(AsFd::as_fd))
            {
                Some(directory) => rustix::fs::openat2(
                    directory,
                    name,
                    flags | OFlags::NOFOLLOW,
                    Mode::empty(),
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
                ),
                None => Err(Errno::NOENT),
            },
        };
        match result {
            Ok(opened) => Ok(Some(Node(Some(opened)))),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                // The runtime makes missing directories on the way to a mount point.
                let implied = self.mounts.iter().any(|mount| mount.destination.starts_with(real));
                Ok(implied.then_some(Node(None)))
            }
            Err(source) => Err(self.read_error(real, source.into())),
        }
    }

    fn kind(&self, opened: &Node, real: &Path) -> Result<FileType, LookupError> {
        let Some(opened) = &opened.0 else { return Ok(FileType::Directory) };
        let stat = rustix::fs::fstat(opened).map_err(|source| self.read_error(real, source.into()))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn read_link(&self, opened: &Node, real: &Path) -> Result<String, LookupError> {
        let descriptor = opened.descriptor().map_err(|source| self.read_error(real, source))?;
        let target = rustix::fs::readlinkat(descriptor, "", Vec::new())
            .map_err(|source| self.read_error(real, source.into()))?;
        target.into_string().map_err(|_| self.not_utf8(real))
    }

    fn reopen_root(&self) -> Result<Node, LookupError> {
        self.root
            .try_clone()
            .map(|root| Node(Some(root)))
            .map_err(|source| self.read_error(Path::new("/"), source))
    }

    /// An error of reading `path` here.
    #[must_use]
    pub fn read_error(&self, path: &Path, source: io::Error) -> LookupError {
        LookupError::Read { path: path.to_owned(), place: self.description.clone(), source }
    }

    fn leaves(&self, path: &Path) -> LookupError {
        LookupError::Leaves { path: path.to_owned(), place: self.description.clone() }
    }

    fn not_utf8(&self, path: &Path) -> LookupError {
        LookupError::NotUtf8 { path: path.to_owned(), place: self.description.clone() }
    }
}

impl Node {
    /// Size in bytes and whether the owner may execute it.
    ///
    /// # Errors
    /// When `fstat` fails.
    pub fn size_and_mode(&self) -> io::Result<(u64, bool)> {
        let stat = rustix::fs::fstat(self.descriptor()?)?;
        Ok((u64::try_from(stat.st_size).unwrap_or(0), stat.st_mode & 0o100 != 0))
    }

    /// Opens the regular file for reading. The kind was checked on the `O_PATH` descriptor, so no FIFO or device
    /// is ever opened.
    ///
    /// # Errors
    /// When it may not be read.
    pub fn open(&self) -> io::Result<File> {
        self.reopen(OFlags::NONBLOCK | OFlags::NOCTTY).map(File::from)
    }

    /// The `O_PATH` descriptor.
    ///
    /// # Errors
    /// When there is none.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn reopen(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.descriptor()?.as_raw_fd());
        Ok(rustix::fs::openat(CWD, path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

#[derive(Debug)]
struct Step {
    name: OsString,
    node: Node,
}

fn real_path(trail: &[Step]) -> PathBuf {
    trail.iter().fold(PathBuf::from("/"), |path, step| path.join(&step.name))
}

/// The path of something below an absent `real`; `pending` holds the rest, last first.
fn below(real: PathBuf, pending: &[OsString]) -> PathBuf {
    let path = pending.iter().rev().fold(real, |path, name| path.join(name));
    normalise(Path::new("/"), &path).0
}

fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        _ => Some("no regular file"),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, LookupError> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| LookupError::Root { path: path.to_owned(), source: source.into() })
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Like [`components`], with `..`.
fn raw_components(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}

/// `path` below `base` without `.` and `..`, and whether it went above the root on the way.
fn normalise(base: &Path, path: &Path) -> (PathBuf, bool) {
    let mut left = false;
    let mut normal = PathBuf::from("/");
    for component in base.join(path).components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => left |= !normal.pop(),
            _ => (),
        }
    }
    (normal, left)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn container() -> (tempfile::TempDir, Namespace) {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("rootfs/app")).unwrap();
        fs::create_dir_all(at("rootfs/mnt")).unwrap();
        fs::create_dir_all(at("source/..2026")).unwrap();
        fs::write(at("rootfs/app/config.nix"), "image").unwrap();
        fs::write(at("source/..2026/config.nix"), "mounted").unwrap();
        fs::write(at("secret"), "secret").unwrap();
        symlink("..2026", at("source/..data")).unwrap();
        symlink("..data/config.nix", at("source/config.nix")).unwrap();
        symlink("/mnt/config.nix", at("rootfs/app/into-the-mount")).unwrap();
        symlink("../../../../secret", at("rootfs/app/escape")).unwrap();
        symlink(at("secret"), at("rootfs/app/absolute-escape")).unwrap();
        symlink("loop", at("rootfs/app/loop")).unwrap();
        symlink("mnt", at("rootfs/via")).unwrap();
        rustix::fs::mknodat(CWD, at("rootfs/app/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let spec = json!({
            "root": {"path": "rootfs"},
            "process": {"cwd": "/app"},
            "mounts": [
                {"destination": "/via", "type": "bind", "source": at("source"), "options": ["rbind", "ro"]},
                {"destination": "/file.nix", "source": at("source/config.nix"), "options": ["bind"]},
                {"destination": "/hidden", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/new/deep", "type": "bind", "source": at("source"), "options": ["bind"]},
            ],
        });
        let namespace = Namespace::of_container(directory.path(), &spec).unwrap();
        (directory, namespace)
    }

    fn read(namespace: &Namespace, path: &str) -> Result<(String, String), LookupError> {
        let visit = namespace.visit(&namespace.absolute(Path::new(path))?)?;
        let text = match visit.found {
            Found::File(node) => io::read_to_string(node.open().unwrap()).unwrap(),
            Found::Directory(_) => "a directory".into(),
            Found::Special(kind) => kind.into(),
            Found::Absent => "absent".into(),
        };
        Ok((visit.real.to_str().unwrap().to_owned(), text))
    }

    #[rstest]
    #[case::relative_to_the_working_directory("config.nix", "/app/config.nix", "image")]
    #[case::through_a_mount_whose_destination_is_a_link(
        "/via/config.nix",
        "/mnt/..2026/config.nix",
        "mounted"
    )]
    #[case::from_the_image_into_a_mount("into-the-mount", "/mnt/..2026/config.nix", "mounted")]
    #[case::a_mounted_file_without_mount_point("/file.nix", "/file.nix", "mounted")]
    #[case::an_escape_stays_inside("escape", "/secret", "absent")]
    #[case::a_fifo_is_not_opened("fifo", "/app/fifo", "a FIFO")]
    #[case::a_new_file_system_hides("/hidden/x", "/hidden/x", "absent")]
    #[case::a_mount_point_still_to_be_made("/new/deep/config.nix", "/new/deep/..2026/config.nix", "mounted")]
    #[case::above_a_mount_point("/new", "/new", "a directory")]
    #[case::below_a_file("config.nix/x", "/app/config.nix/x", "absent")]
    #[case::the_root("/", "/", "a directory")]
    #[case::dots("../app/./config.nix", "/app/config.nix", "image")]
    fn in_a_container(#[case] path: &str, #[case] real: &str, #[case] content: &str) {
        let (_directory, namespace) = container();
        assert_eq!(read(&namespace, path).unwrap(), (real.to_owned(), content.to_owned()));
    }

    #[test]
    fn an_absolute_link_means_the_container() {
        let (_directory, namespace) = container();
        assert_eq!(read(&namespace, "absolute-escape").unwrap().1, "absent");
    }

    #[test]
    fn a_loop_ends() {
        let (_directory, namespace) = container();
        assert!(matches!(read(&namespace, "loop"), Err(LookupError::Loop { .. })));
    }

    #[test]
    fn a_directory_of_the_host_is_not_left() {
        let (directory, _) = container();
        let namespace = Namespace::of_directory(&directory.path().join("rootfs/app")).unwrap();
        assert_eq!(read(&namespace, "config.nix").unwrap().1, "image");
        for path in ["../via", "escape", "absolute-escape"] {
            assert!(matches!(read(&namespace, path), Err(LookupError::Leaves { .. })), "{path}");
        }
    }

    #[test]
    fn observing_follows_no_link() {
        let (_directory, namespace) = container();
        let observe = |path: &str| namespace.observe(Path::new(path)).unwrap();
        assert_eq!(observe("/app/escape").unwrap_err(), "../../../../secret");
        assert!(matches!(observe("/app/config.nix"), Ok(Found::File(_))));
        assert!(matches!(observe("/mnt/..data/config.nix"), Ok(Found::Absent)));
    }
}
