//! The confinement of Nix, seen from inside.
//!
//! Whoever may start a container may name a config, so what Nix evaluates is hostile. Nix therefore runs without
//! privileges, in namespaces of its own, with a root file system that holds what its executable needs, the store,
//! the Nix daemon's socket and one directory to write to. The daemon starts itself anew with a [`Sandbox`] as the
//! argument; [`become_confined`] gives up everything else and becomes Nix.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};

/// A confinement and the program that runs in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// An empty directory: the mount point of the root file system.
    pub root: PathBuf,
    /// What is visible, at the same path as outside.
    pub binds: Vec<Bind>,
    /// Symbolic links of the root directory: `/bin` to `usr/bin`.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files of the root file system and their text.
    pub files: Vec<(PathBuf, String)>,
    /// The user that the program runs as; not root.
    pub user: u32,
    /// Its only group.
    pub group: u32,
    /// What the program may use.
    pub limits: Limits,
    /// Its working directory, home and place for temporary files.
    pub directory: PathBuf,
    /// Its environment, whole.
    pub environment: Vec<(String, String)>,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, its own name first.
    pub arguments: Vec<String>,
}

/// A file or directory that is visible in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where it is, inside and outside.
    pub path: PathBuf,
    /// What may be done with it.
    pub access: Access,
}

/// What may be done with a visible file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// It is read.
    Read,
    /// It is read and written.
    Write,
    /// It is a device.
    Device,
}

/// What a confined program may use; a resource without a limit here is bounded by a wall clock outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// Processor time in seconds.
    pub cpu_seconds: Option<u64>,
    /// Processes and threads, counted with all others of the same user.
    pub processes: u64,
    /// Size of a file in bytes.
    pub file_bytes: u64,
}

/// Confines this process as `plan` (a [`Sandbox`] in JSON) says, and becomes its program.
///
/// This process must have one thread and be the first of a new PID namespace. Its standard input must be a pipe that
/// its parent never writes to; when it is closed the parent is gone.
///
/// # Errors
/// When any step of the confinement fails: the program is then not started.
pub fn become_confined(plan: &str) -> anyhow::Result<()> {
    let sandbox: Sandbox = serde_json::from_str(plan).context("cannot read the sandbox's description")?;
    match sandbox.enter().context("cannot confine Nix")? {}
}

impl Sandbox {
    fn enter(&self) -> anyhow::Result<Infallible> {
        let flags = UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP;
        // SAFETY: no file descriptor table is unshared, and this process has one thread.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(flags) }.context("cannot make namespaces")?;
        rustix::process::setsid().context("cannot make a session")?;
        rustix::system::sethostname(b"nixenv").context("cannot set the host name")?;
        self.build_root()?;
        self.drop_privileges()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if parent_is_gone()? {
            anyhow::bail!("the daemon is gone");
        }
        self.limit().context("cannot set limits")?;
        let (name, arguments) = self.arguments.split_first().context("a program needs a name")?;
        let error = Command::new(&self.program)
            .arg0(name)
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .exec();
        Err(error).with_context(|| format!("cannot execute {}", self.program.display()))
    }

    /// Makes the root file system and enters it, so that nothing else of the node has a name any more.
    fn build_root(&self) -> anyhow::Result<()> {
        let sealed = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("cannot keep mounts from spreading")?;
        rustix::mount::mount("nixenv", &self.root, "tmpfs", MountFlags::NOSUID, c"size=1m,mode=0755")
            .with_context(|| format!("cannot mount {}", self.root.display()))?;
        for bind in &self.binds {
            self.bind(bind).with_context(|| format!("cannot bind {}", bind.path.display()))?;
        }
        for (path, target) in &self.links {
            symlink(target, self.inside(path)).with_context(|| format!("cannot link {}", path.display()))?;
        }
        for (path, text) in &self.files {
            let path = self.inside(path);
            make_directories(path.parent().unwrap_or(&self.root))
                .and_then(|()| fs::write(&path, text))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let proc = self.inside(Path::new("/proc"));
        make_directories(&proc)?;
        // Without the parts of /proc that are about the node (Linux 5.8).
        rustix::mount::mount("proc", &proc, "proc", sealed | MountFlags::NOEXEC, c"subset=pid")
            .context("cannot mount /proc")?;
        rustix::process::chdir(&self.root)?;
        rustix::process::pivot_root(".", ".").context("cannot change the root file system")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("cannot leave the old root file system")?;
        rustix::mount::mount_remount("/", MountFlags::BIND | sealed, c"")
            .context("cannot protect the root file system")?;
        rustix::process::chdir(&self.directory)
            .with_context(|| format!("cannot enter {}", self.directory.display()))
    }

    fn bind(&self, bind: &Bind) -> anyhow::Result<()> {
        let target = self.inside(&bind.path);
        if fs::metadata(&bind.path)?.is_dir() {
            make_directories(&target)?;
        } else {
            make_directories(target.parent().unwrap_or(&self.root))?;
            File::create(&target)?;
        }
        let flags = match bind.access {
            Access::Read => MountFlags::RDONLY | MountFlags::NODEV,
            Access::Write => MountFlags::NODEV | MountFlags::NOEXEC,
            Access::Device => MountFlags::NOEXEC,
        };
        rustix::mount::mount_bind(&bind.path, &target)?;
        rustix::mount::mount_remount(&target, MountFlags::BIND | MountFlags::NOSUID | flags, c"")?;
        Ok(())
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Becomes the unprivileged user, for good.
    fn drop_privileges(&self) -> anyhow::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        anyhow::ensure!(!user.is_root(), "Nix must not run as root");
        for capability in CapabilitySet::all().iter() {
            // A kernel older than the list does not know the last ones.
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error).context("cannot drop capabilities"),
            }
        }
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group).context("cannot change the group")?;
        rustix::thread::set_thread_res_uid(user, user, user).context("cannot change the user")?;
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).context("cannot drop capabilities")?;
        rustix::thread::clear_ambient_capability_set()?;
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    }

    fn limit(&self) -> io::Result<()> {
        let mut limits = vec![
            (Resource::As, self.limits.memory_bytes),
            (Resource::Nproc, self.limits.processes),
            (Resource::Fsize, self.limits.file_bytes),
            (Resource::Core, 0),
        ];
        limits.extend(self.limits.cpu_seconds.map(|seconds| (Resource::Cpu, seconds)));
        for (resource, limit) in limits {
            let hard = rustix::process::getrlimit(resource).maximum.map_or(limit, |hard| hard.min(limit));
            rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?;
        }
        Ok(())
    }
}

fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Whether the other end of standard input is closed: the death signal is set only now.
fn parent_is_gone() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}
