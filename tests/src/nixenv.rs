//! The product on a node: its daemon, and its runtime before containerd's.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use environment::layout::Layout;

use crate::artifacts;
use crate::nix;
use crate::service::Service;

/// Writes the node's settings, and makes the directory that stands first on containerd's PATH.
///
/// # Panics
/// When the files cannot be written.
#[must_use]
pub fn install(directory: &Path) -> PathBuf {
    let layout = Layout::node();
    fs::create_dir_all(layout.configs()).expect("/etc can be written");
    fs::write(layout.settings(), nix::pin()).expect("/etc can be written");
    let runtime = directory.join("runtime");
    fs::create_dir_all(&runtime).expect("a directory can be made");
    fs::copy(artifacts::product().join("nixenv-runc"), runtime.join("runc")).expect("tests/run has built it");
    runtime
}

/// Starts the daemon, with every program that it and its children start noted.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start_daemon(directory: &Path) -> Service {
    let mut command = traced(&artifacts::product().join("nixenv-snapshotter"), &log(directory));
    let mut service = Service::start(directory, "nixenv-snapshotter", &mut command);
    service.wait_until(|| UnixStream::connect(Layout::node().socket()).is_ok());
    service
}

/// A program with every exec of it and its children noted; strace lets it stay the caller's own child.
fn traced(program: &Path, log: &Path) -> Command {
    let mut command = Command::new("strace");
    command
        .args(["--daemonize", "--follow-forks", "--seccomp-bpf", "--successful-only", "--trace=execve"])
        .args(["--signal=none", "--string-limit=4096", "--output-append-mode", "--output"])
        .arg(log)
        .arg(program);
    command
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log/execs")
}

/// The start of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Its process.
    pub process: u32,
    /// Its arguments, quoted as in C.
    pub arguments: String,
}

impl Exec {
    /// Whether it is Nix's evaluator.
    #[must_use]
    pub fn is_evaluation(&self) -> bool {
        self.arguments.contains("nix-instantiate\"")
    }
}

/// Every program that the daemon and its children have started, in order.
#[must_use]
pub fn execs(directory: &Path) -> Vec<Exec> {
    parse_execs(&fs::read_to_string(log(directory)).unwrap_or_default())
}

/// Reads strace's lines: `12 execve("/usr/bin/ls", ["ls"], 0x0 /* 36 vars */) = 0`.
fn parse_execs(log: &str) -> Vec<Exec> {
    log.lines()
        .filter_map(|line| {
            let (process, call) = line.split_once(' ')?;
            let arguments = call.trim_start().strip_prefix("execve(")?.rsplit_once(", 0x")?.0;
            Some(Exec { process: process.parse().ok()?, arguments: arguments.into() })
        })
        .collect()
}
