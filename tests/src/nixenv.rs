//! The product on a node: its daemon, and its runtime before containerd's.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use environment::layout::Layout;
use environment::protocol::{Client, Request};

use crate::artifacts;
use crate::command::Outcome;
use crate::containerd::{Release, search_path};
use crate::nix;
use crate::service::Service;
use crate::trace::Trace;

/// The directory that stands first on containerd's PATH.
const RUNTIME_DIRECTORY: &str = "/usr/local/libexec/nixenv/runtime";

/// Where `nixenv install` puts the wrapper.
const WRAPPER: &str = "/usr/local/bin/nixenv-runc";

/// Where it puts the command.
pub const COMMAND: &str = "/usr/local/bin/nixenv";

/// Where it puts the daemon.
const DAEMON: &str = "/usr/local/bin/nixenv-snapshotter";

/// Installs nixenv on the node, for containerd's `transfer` service as well or not, and returns the directory that has
/// to stand first on containerd's PATH.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn install(release: Release, runtime: &Path, transfer: bool) -> PathBuf {
    let mut command = Command::new(artifacts::product().join("nixenv"));
    command.args(["install", "--no-start", "--runtime"]).arg(runtime);
    command.arg("--nixpkgs").arg(nix::package_set()).env("PATH", search_path(&[&release.programs()]));
    if transfer {
        command.args(["--default-snapshotter", "transfer"]);
    }
    Outcome::of(&mut command).succeeds();
    RUNTIME_DIRECTORY.into()
}

/// Puts `runtime` in the place of the one that containerd starts.
fn replace_runtime(put: impl FnOnce(&Path)) {
    let new = Path::new(RUNTIME_DIRECTORY).join("new");
    put(&new);
    fs::rename(new, Path::new(RUNTIME_DIRECTORY).join("runc")).expect("the node is ours");
}

/// Lets the wrapper be killed when it creates a container and makes a certain system call: strace's `--inject`.
///
/// # Panics
/// When the wrapper cannot be replaced.
pub fn inject_into_wrapper(fault: Option<&str>) {
    let Some(fault) = fault else {
        return replace_runtime(|new| symlink(WRAPPER, new).expect("the node is ours"));
    };
    let text = format!(
        r#"#!/bin/sh
for argument; do
    if [ "$argument" = create ]; then
        exec strace {} --follow-forks --inject={fault} {WRAPPER} "$@"
    fi
done
exec {WRAPPER} "$@"
"#,
        INJECTION.join(" "),
    );
    replace_runtime(|new| {
        fs::write(new, text).expect("the node is ours");
        fs::set_permissions(new, fs::Permissions::from_mode(0o755)).expect("the node is ours");
    });
}

/// Options of strace that spare the programs which the traced one starts.
const INJECTION: [&str; 4] = ["--daemonize", "--detach-on=execve", "--signal=none", "--output=/dev/null"];

/// Starts the daemon; the programs that it starts are in the trace `nixenv-snapshotter`.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start_daemon(directory: &Path) -> Service {
    start(directory, &mut Trace::new(directory).of(Path::new(DAEMON)))
}

/// Which threads of the daemon may be its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Each.
    All,
    /// Those that are there before it is asked for something: they accept requests and answer them.
    Present,
}

/// Lets a daemon that runs be killed when it makes a certain system call: strace's `--inject`.
///
/// # Panics
/// When it cannot be traced.
#[must_use]
pub fn inject_into_daemon(directory: &Path, daemon: &Service, fault: &str, threads: Threads) -> Service {
    let present: Vec<String> = fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .expect("the daemon runs")
        .filter_map(|task| task.ok()?.file_name().into_string().ok())
        .collect();
    let mut strace = Command::new("strace");
    strace.args(&INJECTION[1..]).arg(format!("--inject={fault}"));
    match threads {
        Threads::All => strace.args(["--follow-forks", "--attach", &daemon.pid().to_string()]),
        Threads::Present => strace.args(present.iter().flat_map(|thread| ["--attach", thread])),
    };
    // It tells of each `--attach`.
    let told = if threads == Threads::All { 1 } else { present.len() };
    Service::start_until(directory, "strace", &mut strace, |log| log.matches(" attached").count() >= told)
}

/// Starts the daemon alone.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start_untraced_daemon(directory: &Path) -> Service {
    start(directory, &mut Command::new(DAEMON))
}

fn start(directory: &Path, command: &mut Command) -> Service {
    let mut service = Service::start(directory, "nixenv-snapshotter", command);
    service.wait_until(|| {
        let client = Client::connect(&Layout::node().socket());
        client.and_then(|mut client| client.ask(&Request::Status, None, None, |_| ())).is_ok()
            && UnixStream::connect(Layout::node().snapshotter_socket()).is_ok()
    });
    service
}
