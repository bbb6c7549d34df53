//! Runs Nix's commands, and containerd's and systemd's: each failure carries the command and what it said.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use environment::store_path::StorePath;

/// The Nix daemon's socket.
pub const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// Runs a program and returns what it printed, without the last newline.
pub fn output<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if program.starts_with("nix") && Path::new(DAEMON_SOCKET).exists() {
        command.env("NIX_REMOTE", "daemon");
    }
    let output =
        command.output().with_context(|| format!("cannot run {program}; is it installed and on PATH?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!("{program} {} failed with {}: {}", arguments.join(" "), output.status, said.trim());
    }
    let text = String::from_utf8(output.stdout).with_context(|| format!("{program} did not print UTF-8"))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// What `<nixpkgs>` means to the user's own Nix, if anything.
pub fn find_nixpkgs() -> Option<PathBuf> {
    output("nix-instantiate", ["--find-file", "nixpkgs"]).ok().map(PathBuf::from).filter(|path| path.exists())
}

/// The store path that a directory has under a name, without version control data; `add` makes it valid.
///
/// `builtins.path` in a config gives the same path, and then copies nothing.
pub fn store_path_of(directory: &Path, name: &str, add: bool) -> Result<StorePath> {
    const PATH: &str = "{ path, name }: builtins.path { inherit name; path = /. + path; \
        filter = file: type: !(type == \"directory\" && baseNameOf file == \".git\"); }";
    let directory = directory.to_str().context("a package set's path must be UTF-8")?;
    let mut arguments =
        vec!["--eval", "--json", "-E", PATH, "--argstr", "path", directory, "--argstr", "name", name];
    if add {
        arguments.push("--read-write-mode");
    }
    let printed = output("nix-instantiate", arguments)?;
    let path: String = serde_json::from_str(&printed).context("nix-instantiate did not print a path")?;
    Ok(path.parse()?)
}

/// The NAR hash of a valid store path, in Nix's base 32.
pub fn nar_hash(path: &StorePath) -> Result<String> {
    let printed = output("nix-store", ["--query", "--hash", path.as_str()])?;
    let hash =
        printed.strip_prefix("sha256:").with_context(|| format!("'{printed}' is not a SHA-256 hash"))?;
    Ok(hash.to_owned())
}
