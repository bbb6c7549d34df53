//! Store paths to valid ones, through the Nix daemon.
//!
//! To realise a path that is no derivation is to substitute it, with whatever `nix.conf` says about substituters and
//! signatures. Nothing is evaluated or built. Nix's client runs confined all the same: it gets words of an image.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use environment::layout::Layout;
use environment::store_path::{ParseStorePathError, StorePath};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::labels::MAX_PATHS;
use crate::child;
use crate::nix::{Account, Nix, NixError, Node};
use crate::scratch::{Scratch, ScratchError};

/// The list of store paths in nixpkgs' `closureInfo`.
const LIST: &str = "store-paths";
/// As much as [`MAX_PATHS`] of the longest names take.
const MAX_LIST_BYTES: u64 = (MAX_PATHS * 256) as u64;
/// Arguments of one process: the sandbox gets them as one argument, which the kernel limits to 128 KiB.
const MAX_ARGUMENT_BYTES: usize = 96 << 10;
/// A client of the Nix daemon, whose substituters may be slow. containerd waits as long.
const MAX_TIME: Duration = Duration::from_secs(3600);
const MEMORY_MIB: u64 = 4096;

/// Store paths that this node cannot have.
#[derive(Debug, thiserror::Error)]
pub enum RealiseError {
    /// There is no Nix to ask.
    #[error(transparent)]
    Nix(NixError),
    /// There is no place to run it.
    #[error("cannot make a place to work")]
    Scratch(#[source] ScratchError),
    /// It cannot be started, or writes without end.
    #[error("cannot run nix-store")]
    Run(#[source] io::Error),
    /// It says why not.
    #[error("{messages}")]
    Refused {
        /// What Nix said.
        messages: String,
    },
    /// What it printed is no list of store paths.
    #[error("nix-store printed something else than store paths")]
    Output(#[source] ParseStorePathError),
    /// What it printed are no sizes.
    #[error("nix-store printed something else than the size of each path")]
    Sizes,
}

/// A closure's list of store paths that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadListError {
    /// It is not there, or no regular file within its store path.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is too long.
    #[error("{path} has more than {MAX_PATHS} lines")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line is something else.
    #[error("{path} must list store paths")]
    Line {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ParseStorePathError,
    },
    /// It names a path that Nix does not keep together with it.
    #[error("{path} lists {stranger}, to which its own store path does not refer")]
    Stranger {
        /// The file.
        path: PathBuf,
        /// The path.
        stranger: StorePath,
    },
}

/// The Nix daemon, to a layer.
pub(super) struct Store<'a> {
    nix: std::sync::Arc<Nix>,
    scratch: Scratch,
    directory: &'a Path,
}

impl<'a> Store<'a> {
    /// A connection to the node's store, which lies in `directory`.
    pub(super) fn open(layout: &Layout, node: &Node, directory: &'a Path) -> Result<Self, RealiseError> {
        let nix = node.nix().map_err(RealiseError::Nix)?;
        nix.check_daemon().map_err(RealiseError::Nix)?;
        let scratch = Scratch::new(layout, Account::of_node()).map_err(RealiseError::Scratch)?;
        fs::create_dir(scratch.config()).map_err(RealiseError::Run)?;
        Ok(Self { nix, scratch, directory })
    }

    /// Makes `paths` valid; with GC roots that were made before, they stay so: what is realised is protected until
    /// Nix's client is gone, and a collector that started later knows the roots.
    pub(super) fn realise(&self, paths: &[StorePath]) -> Result<(), RealiseError> {
        batches(paths).try_for_each(|paths| self.run(&["--realise"], paths).map(drop))
    }

    /// The store paths that a valid path refers to itself: one question to Nix, however many they are.
    pub(super) fn references(&self, path: &StorePath) -> Result<HashSet<StorePath>, RealiseError> {
        self.query("--references", path)
    }

    /// The closure of a valid path: a question for each path in it.
    pub(super) fn requisites(&self, path: &StorePath) -> Result<HashSet<StorePath>, RealiseError> {
        self.query("--requisites", path)
    }

    fn query(&self, what: &str, path: &StorePath) -> Result<HashSet<StorePath>, RealiseError> {
        let output = self.run(&["--query", what], std::slice::from_ref(path))?;
        let lines = output.lines().map(str::parse);
        lines.collect::<Result<_, _>>().map_err(RealiseError::Output)
    }

    /// The sizes in bytes of the archives of valid paths, in their order.
    pub(super) fn sizes(&self, paths: &[StorePath]) -> Result<Vec<u64>, RealiseError> {
        let mut sizes = Vec::with_capacity(paths.len());
        for batch in batches(paths) {
            let output = self.run(&["--query", "--size"], batch)?;
            let printed = output.lines().map(str::parse).collect::<Result<Vec<u64>, _>>();
            let printed = printed.ok().filter(|sizes| sizes.len() == batch.len());
            sizes.extend(printed.ok_or(RealiseError::Sizes)?);
        }
        Ok(sizes)
    }

    /// The store paths that a valid closure lists, sorted and each once; all belong to `requisites`.
    pub(super) fn list(
        &self,
        closure: &StorePath,
        requisites: &HashSet<StorePath>,
    ) -> Result<Vec<StorePath>, ReadListError> {
        let path = closure.as_path().join(LIST);
        let paths = read_list(&self.directory.join(closure.base_name()), &path)?;
        match paths.iter().find(|path| !requisites.contains(path)) {
            Some(stranger) => Err(ReadListError::Stranger { path, stranger: stranger.clone() }),
            None => Ok(paths),
        }
    }

    fn run(&self, options: &[&str], paths: &[StorePath]) -> Result<String, RealiseError> {
        let arguments: Vec<&str> =
            options.iter().copied().chain(paths.iter().map(StorePath::as_str)).collect();
        let sandbox = self.nix.confined(&self.scratch, "nix-store", &arguments, MEMORY_MIB);
        let finished = child::run(&sandbox, Some(MAX_TIME), |_| ()).map_err(RealiseError::Run)?;
        if finished.status.success() {
            return Ok(String::from_utf8_lossy(&finished.output).into_owned());
        }
        let messages = match finished.timed_out {
            true => format!("nix-store was not ready within {} minutes", MAX_TIME.as_secs() / 60),
            false => crate::diagnostics::or_status(finished.messages.trim().to_owned(), finished.status),
        };
        Err(RealiseError::Refused { messages })
    }
}

/// The paths, so many at a time as one process can take.
fn batches(mut paths: &[StorePath]) -> impl Iterator<Item = &[StorePath]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = paths.iter().take_while(|path| {
            // In JSON, with quotes and a comma.
            bytes += path.as_str().len() + 3;
            bytes <= MAX_ARGUMENT_BYTES
        });
        let (batch, rest) = paths.split_at(fits.count());
        paths = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Reads the list in the store path at `directory`; errors call it `path`.
fn read_list(directory: &Path, path: &Path) -> Result<Vec<StorePath>, ReadListError> {
    let failed = |source| ReadListError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    open_list(directory)
        .map_err(failed)?
        .take(MAX_LIST_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_LIST_BYTES || text.lines().nth(MAX_PATHS).is_some() {
        return Err(ReadListError::TooLong { path: path.to_owned() });
    }
    let paths: Result<Vec<StorePath>, _> = text.lines().map(str::parse).collect();
    let mut paths = paths.map_err(|source| ReadListError::Line { path: path.to_owned(), source })?;
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// Opens the list, which is a regular file of this very store path: a builder may have made a link of it.
fn open_list(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::openat(CWD, directory, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let flags = flags | OFlags::NONBLOCK;
    let list = rustix::fs::openat2(directory, LIST, flags, Mode::empty(), ResolveFlags::BENEATH)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&list)?.st_mode) {
        FileType::RegularFile => Ok(list.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    const A: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a";
    const B: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj242-b";

    fn path(n: usize) -> StorePath {
        format!("/nix/store/{n:032}-{}", "n".repeat(200)).parse().unwrap()
    }

    #[test]
    fn every_path_is_in_one_batch_and_no_batch_is_too_long() {
        let paths: Vec<StorePath> = (0..5_000).map(path).collect();
        let seen: Vec<&[StorePath]> = batches(&paths).collect();
        assert_eq!(seen.concat(), paths);
        assert!(seen.len() < 20, "{}", seen.len());
        for batch in seen {
            let arguments = serde_json::to_string(batch).unwrap();
            assert!(arguments.len() <= MAX_ARGUMENT_BYTES + 2, "{}", arguments.len());
        }
        assert_eq!(batches(&[]).count(), 0);
    }

    fn read(write: impl FnOnce(&Path)) -> Result<Vec<String>, ReadListError> {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join(LIST));
        let paths = read_list(directory.path(), Path::new("list"))?;
        Ok(paths.into_iter().map(String::from).collect())
    }

    #[rstest]
    #[case::is_sorted_and_has_each_path_once(&format!("{B}\n{A}\n{B}\n"), &[A, B])]
    #[case::may_end_without_a_line_feed(A, &[A])]
    #[case::may_be_empty("", &[])]
    fn a_list(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(read(|file| fs::write(file, text).unwrap()).unwrap(), expected);
    }

    #[rstest]
    #[case::a_file_of_the_host("/etc/passwd\n")]
    #[case::a_way_out("/nix/store/../../etc\n")]
    #[case::an_empty_line("\n")]
    #[case::no_text("\u{0}")]
    fn a_list_is_refused_for(#[case] text: &str) {
        let error = read(|file| fs::write(file, format!("{A}\n{text}")).unwrap()).unwrap_err();
        assert!(matches!(error, ReadListError::Line { .. }), "{error}");
    }

    #[test]
    fn a_list_is_a_regular_file_of_its_own_store_path() {
        assert!(matches!(read(|_| ()), Err(ReadListError::Read { .. })));
        assert!(matches!(read(|file| fs::create_dir(file).unwrap()), Err(ReadListError::Read { .. })));
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), A).unwrap();
        assert!(matches!(
            read(|file| symlink(elsewhere.path(), file).unwrap()),
            Err(ReadListError::Read { .. })
        ));
        let fifo = |file: &Path| {
            rustix::fs::mknodat(CWD, file, FileType::Fifo, Mode::RWXU, 0).unwrap();
        };
        assert!(matches!(read(fifo), Err(ReadListError::Read { .. })));
    }

    #[test]
    fn an_endless_list_is_refused_before_it_is_read() {
        let sparse = |file: &Path| File::create(file).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(sparse), Err(ReadListError::TooLong { .. })));
        let many: String = (0..=MAX_PATHS).map(|_| format!("{A}\n")).collect();
        assert!(matches!(read(|file| fs::write(file, many).unwrap()), Err(ReadListError::TooLong { .. })));
    }
}
