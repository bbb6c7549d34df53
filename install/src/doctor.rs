//! `nixenv doctor`: looks at everything that a start depends on.

mod snapshotter;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use environment::layout::Layout;
use environment::settings::Settings;
use environment::store_path::StorePath;
use environment::view;
use rustix::fs::XattrFlags;
use tempfile::TempDir;

use crate::containerd::{self, Containerd, RUNTIME_DIRECTORY};
use crate::install::USER;
use crate::{change, elf, nix, package_set, service};

/// Check this node; every finding comes with its remedy.
///
/// The exit status is 1 when a check failed; a warning does not count.
#[derive(Args)]
pub struct Doctor {}

/// What a check found; what is wrong comes with its remedy.
enum Finding {
    Good(String),
    Warning(String, &'static str),
    Failed(String, &'static str),
}

use Finding::{Failed, Good, Warning};

type Check = (&'static str, fn(&Layout) -> Finding);

const CHECKS: [Check; 16] = [
    ("state", state),
    ("disk", disk),
    ("xattrs", trusted_xattrs),
    ("overlayfs", overlayfs),
    ("wrapper", wrapper),
    ("runtime", runtime),
    ("containerd", containerd),
    ("nix", nix_version),
    ("nix-daemon", nix_daemon),
    ("nixpkgs", package_sets),
    ("user", user),
    ("daemon", daemon),
    ("snapshotter", snapshotter::registered),
    ("snapshots", snapshotter::file_system),
    ("default", snapshotter::defaults),
    ("leftovers", leftovers),
];

impl Doctor {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(rustix::process::geteuid().is_root(), "only root can look at all of it; run it with sudo");
        let layout = Layout::node();
        let mut failed = 0;
        for (name, check) in CHECKS {
            let (mark, found, remedy) = match check(&layout) {
                Good(found) => ("ok", found, None),
                Warning(found, remedy) => ("warning", found, Some(remedy)),
                Failed(found, remedy) => {
                    failed += 1;
                    ("FAILED", found, Some(remedy))
                }
            };
            say!("{mark:<8} {name:<11} {found}");
            remedy.inspect(|remedy| say!("{:21}-> {remedy}", ""));
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A finding that is good, or failed with one remedy.
fn demand(outcome: Result<String>, remedy: &'static str) -> Finding {
    outcome.map_or_else(|error| Failed(format!("{error:#}"), remedy), Good)
}

fn state(layout: &Layout) -> Finding {
    let path = layout.state();
    let outcome = fs::metadata(&path).context("cannot be read").and_then(|metadata| {
        ensure!(metadata.is_dir() && metadata.uid() == 0, "is not a directory of root's");
        ensure!(metadata.mode() & 0o7777 == 0o700, "has mode {:o}, not 0700", metadata.mode() & 0o7777);
        Ok(format!("{} is root's alone", path.display()))
    });
    demand(outcome.with_context(|| path.display().to_string()), "run `nixenv install`, or `chmod 0700` it")
}

fn disk(layout: &Layout) -> Finding {
    const REMEDY: &str = "free space there, for example with `nix-collect-garbage`";
    let mut least = u64::MAX;
    let mut found = Vec::new();
    for path in [layout.state(), layout.store()] {
        let Ok(free) = rustix::fs::statvfs(&path) else { continue };
        let mib = (free.f_bavail * free.f_frsize) >> 20;
        least = least.min(mib);
        found.push(format!("{mib} MiB free below {}", path.display()));
    }
    let found = found.join(", ");
    match least {
        0..64 => Failed(found, REMEDY),
        64..1024 => Warning(found, REMEDY),
        _ => Good(found),
    }
}

/// A directory on the file system of another, be that there already or not.
fn directory_on_the_disk_of(path: &Path) -> Result<TempDir> {
    let there = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    tempfile::tempdir_in(there).with_context(|| format!("cannot create a directory in {}", there.display()))
}

fn trusted_xattrs(layout: &Layout) -> Finding {
    let outcome = directory_on_the_disk_of(&layout.state()).and_then(|directory| {
        rustix::fs::lsetxattr(directory.path(), "trusted.nixenv", b"y", XattrFlags::CREATE)
            .context("refused")?;
        Ok(format!("trusted extended attributes work in {}", layout.state().display()))
    });
    match outcome {
        Ok(found) => Good(found),
        Err(error) => Warning(
            format!("trusted extended attributes: {error:#}"),
            "put /var/lib/nixenv on ext4, xfs or btrfs; without them every store path is a mount of its own",
        ),
    }
}

/// Makes and mounts a view of one store path, as a container's start does.
fn overlayfs(layout: &Layout) -> Finding {
    let try_it = || -> Result<String> {
        let directory = directory_on_the_disk_of(&layout.state())?;
        let trial = Layout::under(directory.path());
        let path: StorePath = "/nix/store/00000000000000000000000000000000-probe".parse()?;
        let inside = trial.store().join(path.base_name());
        fs::create_dir_all(&inside)?;
        fs::write(inside.join("file"), "seen")?;
        let id = view::build_stub(&trial, std::slice::from_ref(&path))?;
        let mounted = view::ensure_mounted(&trial, &id);
        let text =
            mounted.as_ref().ok().map(|view| fs::read_to_string(view.join(path.base_name()).join("file")));
        view::unmount(&trial.mount_point(&id))?;
        let text = text.transpose()?;
        mounted?;
        ensure!(text.as_deref() == Some("seen"), "the view does not show its store path");
        Ok("a view of one store path was mounted and read".to_owned())
    };
    demand(
        try_it(),
        "`modprobe overlay`; the kernel must be 5.11 or newer, with overlayfs, redirects and metacopy",
    )
}

fn wrapper(_: &Layout) -> Finding {
    let runc = Path::new(RUNTIME_DIRECTORY).join("runc");
    let look = || -> Result<String> {
        let program = runc.canonicalize().with_context(|| runc.display().to_string())?;
        ensure!(containerd::is_program(&program), "{} is not executable", program.display());
        let size = fs::metadata(&program)?.len() >> 10;
        ensure!(elf::is_static(&program)?, "{} is not a static program", program.display());
        Ok(format!("{} is static, {size} KiB", program.display()))
    };
    demand(look(), "run `nixenv install` from a release build")
}

fn runtime(_: &Layout) -> Finding {
    let look = || -> Result<String> {
        let containerd = Containerd::find()?;
        let environment = containerd.environment.as_deref().unwrap_or_default();
        let runtime = match containerd::variable(environment, "NIXENV_RUNTIME") {
            Some(runtime) => runtime.to_owned(),
            None => containerd.runtime()?.display().to_string(),
        };
        let version = nix::output(&runtime, ["--version"])?;
        Ok(format!("{runtime}: {}", version.lines().next().unwrap_or_default()))
    };
    demand(look(), "install runc or crun, then run `nixenv install`")
}

fn containerd(_: &Layout) -> Finding {
    const REMEDY: &str =
        "run `nixenv install`; without systemd, start containerd with the PATH that it prints";
    let containerd = match Containerd::find() {
        Ok(containerd) => containerd,
        Err(error) => return Failed(format!("{error:#}"), "install containerd 1.6 or newer"),
    };
    let (version, socket) = (&containerd.version, containerd::socket());
    match &containerd.environment {
        None => Failed(format!("{version} does not answer at {}", socket.display()), "start it"),
        Some(_) if containerd.runs_ours() => {
            Good(format!("{version} runs, with nixenv's runc first on its PATH"))
        }
        Some(_) => {
            Warning(format!("{version} runs, and its PATH does not begin with {RUNTIME_DIRECTORY}"), REMEDY)
        }
    }
}

fn nix_version(_: &Layout) -> Finding {
    demand(nix::output("nix-store", ["--version"]), "apt install nix-bin nix-setup-systemd")
}

fn nix_daemon(_: &Layout) -> Finding {
    let outcome = UnixStream::connect(nix::DAEMON_SOCKET)
        .map(|_| format!("answers at {}", nix::DAEMON_SOCKET))
        .with_context(|| format!("does not answer at {}", nix::DAEMON_SOCKET));
    demand(outcome, "`systemctl start nix-daemon.socket`, or start `nix-daemon`")
}

fn package_sets(layout: &Layout) -> Finding {
    let settings = match Settings::load(&layout.settings()) {
        Ok(settings) => settings,
        Err(error) => return Failed(format!("{:#}", anyhow::Error::from(error)), "mend the settings"),
    };
    if settings.package_sets.is_empty() {
        return Warning(
            "no package set is pinned: a config must not say <nixpkgs>".to_owned(),
            "`nixenv install --nixpkgs PATH`",
        );
    }
    let look = || -> Result<String> {
        let mut found = Vec::new();
        for (name, set) in &settings.package_sets {
            let hash = nix::nar_hash(&set.path)?;
            ensure!(
                hash == set.sha256,
                "{} has the hash {hash}, and the settings say {}",
                set.path,
                set.sha256
            );
            let root = package_set::gc_root(layout, name);
            let target = fs::read_link(&root).with_context(|| format!("no GC root {}", root.display()))?;
            ensure!(target == set.path.as_path(), "the GC root {} keeps another path", root.display());
            found.push(format!("<{name}> is {}", set.path));
        }
        Ok(found.join(", "))
    };
    demand(look(), "pin it again: `nixenv install --nixpkgs PATH`")
}

fn user(_: &Layout) -> Finding {
    let look = || -> Result<String> {
        if !change::user_exists(USER)? {
            bail!("there is no user {USER}, whom evaluations run as");
        }
        Ok(format!("evaluations run as {USER}"))
    };
    demand(look(), "run `nixenv install`")
}

fn daemon(layout: &Layout) -> Finding {
    let outcome = service::daemon_status(layout).map(|status| {
        format!(
            "{} with Nix {}, {} evaluations so far",
            status.version, status.nix_version, status.evaluations
        )
    });
    let remedy = if service::systemd_runs() {
        "`systemctl start nixenv-snapshotter`; its log: `journalctl -u nixenv-snapshotter`"
    } else {
        "run `nixenv install`; its log: /var/log/nixenv/snapshotter.log"
    };
    demand(outcome, remedy)
}

/// Views are mounted once a boot and may stay; a mount whose stub is gone shows nothing.
fn leftovers(layout: &Layout) -> Finding {
    let count = |directory: &Path| fs::read_dir(directory).map_or(0, Iterator::count);
    let stale: Vec<String> = fs::read_dir(layout.mount_points())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !layout.stubs().join(entry.file_name()).exists())
        .map(|entry| entry.path().display().to_string())
        .collect();
    if stale.is_empty() {
        let (views, holds) = (count(&layout.mount_points()), count(&layout.holds()));
        Good(format!("{views} views mounted, {holds} containers in an environment"))
    } else {
        Warning(format!("views without a stub: {}", stale.join(", ")), "`umount` them")
    }
}
