//! Which runtime to become.
//!
//! The one that `NIXENV_RUNTIME` names, else the next `runc` or `crun` on PATH that is not this program. Not this
//! program means another file (device and inode): `runc` may be a link to us, or a directory be on PATH twice. Copies
//! of us and scripts that start us are other files, though. So a variable tells the next program what was tried: after
//! an `execve` the process id is the same, and what was tried before us is passed over; scripts that start us as a
//! child are counted.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::Context as _;

/// Names an inner runtime by its absolute path; `nixenv install` sets it for containerd.
const CONFIGURED: &str = "NIXENV_RUNTIME";

/// Says what was tried before: `DEPTH PID DEVICE:INODE...`.
const GUARD: &str = "NIXENV_RUNC_GUARD";

/// Programs between the engine and us that start us as a child. An OCI hook that calls the runtime is one as well.
const MAX_DEPTH: u32 = 8;

/// Where runtimes are when there is no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which file it is, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// The runtime to become.
#[derive(Debug)]
pub struct InnerRuntime {
    program: PathBuf,
    guard: Guard,
    follows_another_wrapper: bool,
}

/// What was tried on the way here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Guard {
    depth: u32,
    process: u32,
    tried: Vec<FileId>,
}

/// What a process knows of itself.
struct Own<'a> {
    called_as: Option<&'a OsStr>,
    configured: Option<&'a OsStr>,
    path: Option<&'a OsStr>,
    guard: Option<Guard>,
    process: u32,
    file: FileId,
}

impl InnerRuntime {
    /// Finds the runtime.
    pub fn find() -> anyhow::Result<Self> {
        let (called_as, configured, path) =
            (env::args_os().next(), env::var_os(CONFIGURED), env::var_os("PATH"));
        let file = fs::metadata("/proc/self/exe").context("cannot read /proc/self/exe")?;
        find(Own {
            called_as: called_as.as_deref(),
            configured: configured.as_deref(),
            path: path.as_deref(),
            guard: env::var(GUARD).ok().and_then(|guard| Guard::parse(&guard)),
            process: std::process::id(),
            file: FileId::of(&file),
        })
    }

    /// Whether a copy of this program became us: it has done what there was to do.
    pub fn follows_another_wrapper(&self) -> bool {
        self.follows_another_wrapper
    }

    /// Becomes the runtime.
    pub fn become_with(&self, args: &[OsString]) -> anyhow::Result<Infallible> {
        let error = Command::new(&self.program).args(args).env(GUARD, self.guard.to_string()).exec();
        Err(error).with_context(|| format!("cannot start the runtime {}", self.program.display()))
    }
}

fn find(own: Own<'_>) -> anyhow::Result<InnerRuntime> {
    let depth = own.guard.as_ref().map_or(0, |guard| guard.depth);
    let before_us = own.guard.filter(|guard| guard.process == own.process);
    let follows_another_wrapper = before_us.is_some();
    let mut guard = match before_us {
        Some(guard) => guard,
        None => Guard { depth: depth + 1, process: own.process, tried: Vec::new() },
    };
    anyhow::ensure!(
        guard.depth <= MAX_DEPTH,
        "the runtime on PATH starts nixenv-runc again and again; \
         set {CONFIGURED} in the engine's environment to the absolute path of runc"
    );
    if !guard.tried.contains(&own.file) {
        guard.tried.push(own.file);
    }
    let untried = |program: PathBuf| {
        let metadata = fs::metadata(&program).ok()?;
        let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        let file = FileId::of(&metadata);
        (executable && !guard.tried.contains(&file)).then_some((program, file))
    };
    let found = match own.configured.filter(|configured| !configured.is_empty()) {
        Some(configured) => {
            anyhow::ensure!(
                Path::new(configured).is_absolute(),
                "{CONFIGURED} is {configured:?}; it must be the absolute path of a runtime"
            );
            untried(configured.into()).with_context(|| {
                format!("{CONFIGURED} is {configured:?}, which is no program, or nixenv-runc itself; set it to runc's path")
            })?
        }
        None => candidates(own.called_as, own.path)
            .find_map(untried)
            .context("there is no runc and no crun on PATH besides nixenv-runc; install one")?,
    };
    let (program, file) = found;
    guard.tried.push(file);
    Ok(InnerRuntime { program, guard, follows_another_wrapper })
}

/// The runtimes that PATH may have, the one that we are called as first.
fn candidates(called_as: Option<&OsStr>, path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let called_as = called_as.and_then(|name| Path::new(name).file_name());
    let names = if called_as == Some(OsStr::new("crun")) { ["crun", "runc"] } else { ["runc", "crun"] };
    let path = path.unwrap_or(OsStr::from_bytes(DEFAULT_PATH.as_bytes()));
    let directories: Vec<PathBuf> =
        env::split_paths(path).filter(|directory| directory.is_absolute()).collect();
    names
        .into_iter()
        .flat_map(move |name| directories.iter().map(|directory| directory.join(name)).collect::<Vec<_>>())
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Guard {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let (depth, process) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let file = |field: &str| {
            let (device, inode) = field.split_once(':')?;
            Some(FileId { device: device.parse().ok()?, inode: inode.parse().ok()? })
        };
        Some(Self { depth, process, tried: fields.map(file).collect::<Option<_>>()? })
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.depth, self.process)?;
        self.tried.iter().try_for_each(|file| write!(f, " {}:{}", file.device, file.inode))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Directories `a`, `b`, `c` with programs; `self` is this program.
    struct Node {
        directory: tempfile::TempDir,
    }

    impl Node {
        fn new(programs: &[&str]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let node = Self { directory };
            for program in programs.iter().chain(&["a/self"]) {
                let path = node.path(program);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn file(&self, name: &str) -> FileId {
            FileId::of(&fs::metadata(self.path(name)).unwrap())
        }

        fn find(
            &self,
            called_as: &str,
            configured: Option<&str>,
            guard: Option<Guard>,
        ) -> anyhow::Result<InnerRuntime> {
            let path = env::join_paths(["a", "b", "c"].map(|name| self.path(name))).unwrap();
            let configured = configured.map(|name| self.path(name).into_os_string());
            find(Own {
                called_as: Some(OsStr::new(called_as)),
                configured: configured.as_deref(),
                path: Some(&path),
                guard,
                process: 7,
                file: self.file("a/self"),
            })
        }

        fn found(&self, called_as: &str, configured: Option<&str>) -> Option<String> {
            let found = self.find(called_as, configured, None).ok()?.program;
            Some(found.strip_prefix(self.directory.path()).unwrap().to_str().unwrap().to_owned())
        }
    }

    #[rstest]
    #[case::the_next_on_path(&["b/runc", "c/runc"], "runc", Some("b/runc"))]
    #[case::runc_before_crun(&["b/crun", "c/runc"], "nixenv-runc", Some("c/runc"))]
    #[case::crun_when_called_as_crun(&["b/runc", "c/crun"], "/x/crun", Some("c/crun"))]
    #[case::crun_when_there_is_no_runc(&["c/crun"], "runc", Some("c/crun"))]
    #[case::nothing(&["b/other"], "runc", None)]
    fn the_runtime_is_found(
        #[case] programs: &[&str],
        #[case] called_as: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(Node::new(programs).found(called_as, None).as_deref(), expected);
    }

    #[test]
    fn links_to_ourselves_directories_and_plain_files_are_passed_over() {
        let node = Node::new(&["b/x", "c/crun"]);
        std::os::unix::fs::symlink(node.path("a/self"), node.path("a/runc")).unwrap();
        fs::hard_link(node.path("a/self"), node.path("b/runc")).unwrap();
        fs::create_dir(node.path("a/crun")).unwrap();
        fs::write(node.path("b/crun"), "").unwrap();
        assert_eq!(node.found("runc", None).as_deref(), Some("c/crun"));
    }

    #[rstest]
    #[case::a_program("c/mine", Some("c/mine"))]
    #[case::ourselves("a/self", None)]
    #[case::nothing("c/absent", None)]
    fn a_configured_runtime_is_the_only_candidate(#[case] configured: &str, #[case] expected: Option<&str>) {
        let node = Node::new(&["b/runc", "c/mine"]);
        assert_eq!(node.found("runc", Some(configured)).as_deref(), expected);
    }

    #[test]
    fn a_configured_runtime_must_be_absolute() {
        let own = Own {
            called_as: None,
            configured: Some(OsStr::new("runc")),
            path: None,
            guard: None,
            process: 7,
            file: FileId { device: 0, inode: 0 },
        };
        assert!(find(own).unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn what_was_tried_in_this_process_is_passed_over() {
        let node = Node::new(&["b/runc", "c/runc"]);
        let first = node.find("runc", None, None).unwrap();
        assert!(!first.follows_another_wrapper());
        assert_eq!(first.program, node.path("b/runc"));
        let second = node.find("runc", None, Some(first.guard)).unwrap();
        assert!(second.follows_another_wrapper());
        assert_eq!(second.program, node.path("c/runc"));
        assert!(node.find("runc", None, Some(second.guard)).is_err());
    }

    #[test]
    fn what_another_process_tried_is_not() {
        let node = Node::new(&["b/runc"]);
        let parent = Guard { depth: 1, process: 6, tried: vec![node.file("b/runc")] };
        let child = node.find("runc", None, Some(parent)).unwrap();
        assert!(!child.follows_another_wrapper());
        assert_eq!((child.program, child.guard.depth), (node.path("b/runc"), 2));
        let too_deep = Guard { depth: MAX_DEPTH, process: 6, tried: vec![] };
        assert!(node.find("runc", None, Some(too_deep)).unwrap_err().to_string().contains("again and again"));
    }

    #[test]
    fn a_guard_survives_its_text() {
        let guard = Guard { depth: 2, process: 77, tried: vec![FileId { device: 1, inode: 2 }] };
        assert_eq!(Guard::parse(&guard.to_string()), Some(guard));
        assert_eq!(Guard::parse("x"), None);
        assert_eq!(Guard::parse("1 2 3"), None);
    }
}
