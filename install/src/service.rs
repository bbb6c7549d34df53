//! The daemon and containerd as running services: under systemd, or as plain processes.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use environment::layout::Layout;
use environment::protocol::{Client, Request, Response, Status};
use rustix::process::{Pid, Signal};

use crate::change::Step;
use crate::nix;
use crate::receipt::{Change, Receipt};

/// The daemon's unit.
pub const UNIT: &str = "nixenv-snapshotter.service";
/// The daemon's program.
pub const DAEMON: &str = "nixenv-snapshotter";
/// Where the daemon logs when it is a plain process.
pub const LOG: &str = "/var/log/nixenv/snapshotter.log";

/// Something that has to run anew for the changes to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The daemon.
    Daemon,
    /// containerd, which is systemd's.
    Containerd,
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon if systemd_runs() => write!(f, "enable and start {UNIT}"),
            Self::Daemon => write!(f, "start {DAEMON} as a plain process, with its log in {LOG}"),
            Self::Containerd => write!(f, "restart containerd (its containers go on running)"),
        }
    }
}

impl Restart {
    /// Restarts it, after noting in the receipt how to undo that.
    pub fn carry_out(self, layout: &Layout, receipt: &mut Receipt, bin_dir: &Path) -> Result<()> {
        match self {
            Self::Daemon if systemd_runs() => {
                receipt.record(Change::Unit { name: UNIT.to_owned() });
                receipt.save(layout)?;
                nix::output("systemctl", ["daemon-reload"])?;
                nix::output("systemctl", ["enable", UNIT])?;
                nix::output("systemctl", ["restart", UNIT])?;
            }
            Self::Daemon => {
                let pid_file = pid_file(layout);
                stop_process(&pid_file)?;
                let logs = Path::new(LOG).parent().unwrap_or(Path::new("/"));
                Step::Directory { path: logs.to_owned(), mode: 0o755 }.apply(layout, receipt)?;
                receipt.record(Change::Process { pid_file });
                receipt.save(layout)?;
                start_process(layout, &bin_dir.join(DAEMON))?;
            }
            Self::Containerd => {
                nix::output("systemctl", ["daemon-reload"])?;
                nix::output("systemctl", ["restart", "containerd.service"])?;
            }
        }
        Ok(())
    }
}

/// Whether the daemon answers, and is the program that is installed now.
pub fn daemon_is_current(layout: &Layout) -> bool {
    let Ok(stream) = UnixStream::connect(layout.socket()) else { return false };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { return false };
    let program = fs::read_link(format!("/proc/{}/exe", peer.pid.as_raw_nonzero()));
    program.is_ok_and(|program| program.exists()) && daemon_status(layout).is_ok()
}

/// Whether systemd runs this machine, as `sd_booted(3)` tells.
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The file that holds the process id of a daemon that is a plain process.
pub fn pid_file(layout: &Layout) -> PathBuf {
    layout.run().join("snapshotter.pid")
}

/// Asks the daemon how it is.
pub fn daemon_status(layout: &Layout) -> Result<Status> {
    let socket = layout.socket();
    let mut client =
        Client::connect(&socket).with_context(|| format!("nothing answers at {}", socket.display()))?;
    match client.ask(&Request::Status, None, Some(Duration::from_secs(5)), |_| ())? {
        Response::Status(status) => Ok(status),
        other => bail!("the daemon gave an answer of another kind: {other:?}"),
    }
}

/// Starts the daemon as a plain process and waits until it answers.
pub fn start_process(layout: &Layout, program: &Path) -> Result<()> {
    fs::create_dir_all(layout.run())?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(LOG)
        .with_context(|| format!("cannot open {LOG}"))?;
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let file = pid_file(layout);
    fs::write(&file, format!("{}\n", child.id()))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon_status(layout).is_err() {
        if let Some(status) = child.try_wait()? {
            fs::remove_file(&file)?;
            bail!(
                "{} ended with {status}; its log {LOG} ends with:\n{}",
                program.display(),
                tail(Path::new(LOG))
            );
        }
        if Instant::now() > deadline {
            bail!("{} does not answer after 10 s; see its log {LOG}", program.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Stops the daemon that was started as a plain process; whether there was one.
pub fn stop_process(pid_file: &Path) -> Result<bool> {
    let Some(pid) = running(pid_file) else {
        let _ = fs::remove_file(pid_file);
        return Ok(false);
    };
    rustix::process::kill_process(pid, Signal::TERM).context("cannot stop the daemon")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while running(pid_file).is_some() {
        if Instant::now() > deadline {
            rustix::process::kill_process(pid, Signal::KILL).context("cannot kill the daemon")?;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(pid_file).with_context(|| format!("cannot remove {}", pid_file.display()))?;
    Ok(true)
}

/// The daemon's process, if the one in `pid_file` still is a daemon.
fn running(pid_file: &Path) -> Option<Pid> {
    let pid = Pid::from_raw(fs::read_to_string(pid_file).ok()?.trim().parse().ok()?)?;
    let name = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The kernel cuts names to 15 bytes, and a zombie no longer runs: proc_pid_stat(5).
    let (name, rest) = name.split_once('(')?.1.rsplit_once(')')?;
    (DAEMON.starts_with(name) && name.len() == 15 && !rest.starts_with(" Z")).then_some(pid)
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_that_now_is_another_program_is_not_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        assert!(!stop_process(&file).unwrap());
        assert!(!file.exists());
    }
}
