//! The node's Nix: which one it is, and its programs, run confined.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, io};

use environment::key::NodeFacts;
use environment::layout::Layout;

use crate::sandbox::{Access, Bind, Limits, Sandbox};
use crate::scratch::Scratch;

/// Where Nix's installers put it, for a daemon whose PATH does not name it.
const USUAL_DIRECTORIES: [&str; 4] =
    ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin", "/usr/local/bin", "/usr/bin"];
/// What an executable outside of the store may need.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr", "/bin", "/lib", "/lib64"];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
/// The unprivileged users that Nix may run as, the first that exists.
const USERS: [&str; 2] = ["nixenv", "nobody"];
const NOBODY: u32 = 65534;
/// Processes and threads of Nix' user, which may be others' user too; an evaluation needs a handful.
const MAX_PROCESSES: u64 = 4096;
/// No file that Nix writes here comes near: links, and caches in its home.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The node's Nix, looked at again whenever it is asked for.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    known: Mutex<Option<Arc<Nix>>>,
}

/// An installed Nix.
#[derive(Debug)]
pub struct Nix {
    /// Its version and system.
    pub facts: NodeFacts,
    program: PathBuf,
    identity: Identity,
}

/// Device, inode, and modification time in seconds and nanoseconds.
type Identity = (u64, u64, i64, i64);

/// A Nix that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// There is none.
    #[error(
        "no Nix on this node: there is no program nix on PATH or in {USUAL_DIRECTORIES:?}; install it (Debian: apt install nix-setup-systemd)"
    )]
    Absent,
    /// Its daemon does not answer.
    #[error(
        "the Nix daemon does not answer at {DAEMON_SOCKET}; start it: `systemctl start nix-daemon.socket`, or `nix-daemon` where there is no systemd"
    )]
    NoDaemon(#[source] io::Error),
    /// It does not say what it is.
    #[error("cannot learn the version of {program}: {what}")]
    Unknown {
        /// The executable.
        program: PathBuf,
        /// What it did instead.
        what: String,
    },
    /// What was learnt cannot be written down.
    #[error("cannot record the facts about Nix")]
    Record(#[source] environment::cache::PublishError),
}

impl Node {
    /// A node whose Nix is not known yet.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), known: Mutex::new(None) }
    }

    /// The Nix of this moment; another than before is written down for those who look up environments.
    ///
    /// # Errors
    /// When there is none, or it does not work.
    pub fn nix(&self) -> Result<Arc<Nix>, NixError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let program = find_program("nix").ok_or(NixError::Absent)?;
        let identity =
            fs::metadata(&program).map(|metadata| identity(&metadata)).map_err(|_| NixError::Absent)?;
        if let Some(nix) = known.as_ref().filter(|nix| nix.program == program && nix.identity == identity) {
            return Ok(Arc::clone(nix));
        }
        let nix = Nix { facts: learn_facts(&program)?, program, identity };
        tracing::info!(version = nix.facts.nix_version, system = nix.facts.system, program = %nix.program.display(), "found Nix");
        environment::cache::record_node_facts(&self.layout, &nix.facts).map_err(NixError::Record)?;
        Ok(Arc::clone(known.insert(Arc::new(nix))))
    }

    /// The Nix that was found last.
    pub fn known(&self) -> Option<Arc<Nix>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Nix {
    /// Checks that the Nix daemon is there.
    ///
    /// # Errors
    /// When nothing listens at its socket.
    pub fn check_daemon(&self) -> Result<(), NixError> {
        UnixStream::connect(DAEMON_SOCKET).map(drop).map_err(NixError::NoDaemon)
    }

    /// One of Nix's programs (`nix`, `nix-store`, `nix-instantiate`: they are one executable), confined to `scratch`.
    pub fn confined(&self, scratch: &Scratch, name: &str, arguments: &[&str], memory_mib: u64) -> Sandbox {
        let read = |path: &Path| Bind { path: path.to_owned(), access: Access::Read };
        let mut binds = vec![
            read(Path::new("/nix/store")),
            read(Path::new(DAEMON_SOCKET).parent().unwrap_or(Path::new("/"))),
            read(&scratch.config()),
            read(&scratch.settings()),
            Bind { path: scratch.output(), access: Access::Write },
        ];
        binds.extend(DEVICES.map(|path| Bind { path: path.into(), access: Access::Device }));
        let mut links = Vec::new();
        if !self.program.starts_with("/nix/store") {
            for directory in SYSTEM_DIRECTORIES.map(Path::new) {
                match fs::read_link(directory) {
                    Ok(target) => links.push((directory.to_owned(), target)),
                    Err(_) if directory.is_dir() => binds.push(read(directory)),
                    Err(_) => {}
                }
            }
            binds.extend(Some(Path::new("/etc/ld.so.cache")).filter(|path| path.is_file()).map(read));
        }
        let directory = scratch.output();
        let home = directory.display();
        let Account { user, group } = scratch.account;
        let files = [
            ("/etc/passwd", format!("nixenv:x:{user}:{group}::{home}:/noshell\n")),
            ("/etc/group", format!("nixenv:x:{group}:\n")),
            ("/etc/nsswitch.conf", "passwd: files\ngroup: files\n".to_owned()),
        ];
        let settings = scratch.settings();
        // What the collector of the evaluator's memory would read from /proc; more threads than this do not help it.
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(4).to_string();
        let environment = [
            ("GC_NPROCS", &*processors),
            ("PATH", "/usr/bin:/bin"),
            ("HOME", &home.to_string()),
            ("TMPDIR", &home.to_string()),
            ("USER", "nixenv"),
            ("LC_ALL", "C.UTF-8"),
            ("NIX_REMOTE", "daemon"),
            ("NIX_CONF_DIR", &settings.display().to_string()),
        ];
        Sandbox {
            root: scratch.root(),
            binds,
            links,
            files: files.map(|(path, text)| (path.into(), text)).into(),
            user,
            group,
            limits: Limits {
                memory_bytes: memory_mib.saturating_mul(1 << 20),
                cpu_seconds: None,
                processes: MAX_PROCESSES,
                file_bytes: MAX_FILE_BYTES,
            },
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            directory: directory.clone(),
            program: self.program.clone(),
            arguments: std::iter::once(name).chain(arguments.iter().copied()).map(str::to_owned).collect(),
        }
    }
}

/// The user and group that Nix runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Never root.
    pub user: u32,
    /// Where the Nix daemon's socket is for one group only (Debian: `nix-users`), that one.
    pub group: u32,
}

impl Account {
    /// The account of this node.
    pub fn of_node() -> Self {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let Self { user, group } = USERS
            .iter()
            .find_map(|name| find_account(&passwd, name))
            .unwrap_or(Self { user: NOBODY, group: NOBODY });
        let socket = Path::new(DAEMON_SOCKET);
        let directory = socket.parent().and_then(|directory| fs::metadata(directory).ok());
        Self {
            user,
            group: socket_group(directory.as_ref(), fs::metadata(socket).ok().as_ref()).unwrap_or(group),
        }
    }
}

/// The group that may use the socket, if not everybody may.
fn socket_group(directory: Option<&Metadata>, socket: Option<&Metadata>) -> Option<u32> {
    let closed_to_others = |metadata: &&Metadata| {
        let needed = if metadata.file_type().is_socket() { 0o002 } else { 0o001 };
        metadata.mode() & needed == 0
    };
    directory.filter(closed_to_others).or(socket.filter(closed_to_others)).map(Metadata::gid)
}

fn find_account(passwd: &str, name: &str) -> Option<Account> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    (user != 0).then_some(Account { user, group })
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(USUAL_DIRECTORIES.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .find_map(|directory| fs::canonicalize(directory.join(name)).ok().filter(|path| path.is_file()))
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

fn learn_facts(program: &Path) -> Result<NodeFacts, NixError> {
    let ask = |name: &str, arguments: &[&str]| {
        let unknown = |what| NixError::Unknown { program: program.to_owned(), what };
        let output = Command::new(program)
            .arg0(name)
            .args(arguments)
            .env_clear()
            .env("HOME", "/")
            .output()
            .map_err(|error| unknown(error.to_string()))?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            return Err(unknown(format!("{} {}: {}", name, output.status, messages.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // `nix (Nix) 2.8.0`
    let version = ask("nix", &["--version"])?;
    let nix_version = version.rsplit(' ').next().unwrap_or_default().to_owned();
    // With a store that is none, so that the Nix daemon need not run yet.
    let arguments =
        ["--extra-experimental-features", "nix-command", "eval", "--impure", "--store", "dummy://"];
    let system = ask("nix", &[&arguments[..], &["--raw", "--expr", "builtins.currentSystem"]].concat())?;
    Ok(NodeFacts { nix_version, system })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/bin/false\ntoor:x:0:0::/:/\n";

    #[rstest]
    #[case::is_found("nobody", Some(Account { user: 65534, group: 65533 }))]
    #[case::root_under_another_name_is_refused("toor", None)]
    #[case::a_prefix_of_a_name_is_another_name("nobod", None)]
    fn an_account(#[case] name: &str, #[case] expected: Option<Account>) {
        assert_eq!(find_account(PASSWD, name), expected);
    }

    #[rstest]
    #[case::open_to_all(0o755, None)]
    #[case::for_a_group(0o770, Some(()))]
    fn the_group_of_the_socket_directory(#[case] mode: u32, #[case] expected: Option<()>) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let metadata = fs::metadata(directory.path()).unwrap();
        assert_eq!(socket_group(Some(&metadata), None), expected.map(|()| metadata.gid()));
    }
}
