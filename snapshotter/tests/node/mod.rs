//! A node with a Nix daemon, a small package set and the daemon under test.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::command::Outcome;
use e2e::service::Service;
use environment::layout::Layout;
use environment::lookup::Namespace;
use environment::protocol::{Client, Request as Frame, Response, Status};
use environment::reference::{ConfigReference, Request};
use environment::resolve::{self, ResolveError, Resolved};
use environment::settings::Settings;

/// What stands in for nixpkgs: `mkShell`, a standard environment that sets variables, and a package.
const PACKAGE_SET: &str = r#"
{ system ? builtins.currentSystem, ... }:
let
  bash = builtins.path { path = ./bash; name = "bash"; };
  setup = builtins.path { path = ./stdenv; name = "stdenv"; };
  stdenv = { outPath = "${setup}"; inherit mkDerivation; };
  mkDerivation = attrs: derivation ({
    inherit system;
    builder = "${bash}/bin/bash";
    args = [ "-c" "echo built > $out" ];
    stdenv = "${setup}";
    CC = "cc";
  } // attrs) // { inherit stdenv; };
in
{
  inherit bash;
  lib.version = "1";
  mkShell = attrs: mkDerivation ({ name = "nix-shell"; packages = [ ]; } // attrs);
  # A package with one file; its builder is the given text of bash.
  build = name: text: mkDerivation { inherit name; args = [ "-ec" text ]; };
}
"#;
/// Sourced first of all in a build environment.
const SETUP: &str = r#"
PATH=${builder%/*}
for package in $packages; do PATH=$package/bin:$PATH; done
export PATH NIX_LDFLAGS="-rpath $out/lib" XDG_DATA_DIRS=/nix/none:
"#;

/// A node of a test's own.
pub struct Node {
    pub layout: Layout,
    directory: PathBuf,
    nix: Option<Service>,
    daemon: Option<Service>,
}

impl Node {
    /// Starts the Nix daemon and the daemon; `settings` follow the pin of the package set.
    pub fn start(directory: &Path, settings: &str) -> Self {
        let mut node =
            Self { layout: Layout::node(), directory: directory.to_owned(), nix: None, daemon: None };
        fs::create_dir_all("/etc/nix").unwrap();
        fs::write("/etc/nix/nix.conf", "substituters =\nbuild-users-group = nixbld\nsandbox = false\n")
            .unwrap();
        fs::create_dir_all("/etc/nixenv").unwrap();
        fs::write("/etc/nixenv/config.toml", pin_package_set(directory) + settings).unwrap();
        node.start_nix();
        node.start_daemon();
        node
    }

    /// Adds the package set again, after a garbage collection.
    pub fn pin_again(&self) {
        pin_package_set(&self.directory);
    }

    pub fn start_nix(&mut self) {
        let mut service = Service::start(&self.directory, "nix-daemon", &mut Command::new("nix-daemon"));
        service.wait_until(|| UnixStream::connect("/nix/var/nix/daemon-socket/socket").is_ok());
        self.nix = Some(service);
    }

    pub fn stop_nix(&mut self) {
        self.nix.take().unwrap().kill();
    }

    pub fn start_daemon(&mut self) {
        let socket = self.layout.socket();
        let mut command = daemon();
        // A directory of the test's own comes first.
        command.env("PATH", format!("{}:/usr/bin", self.programs().display()));
        let mut service = Service::start(&self.directory, "nixenv-snapshotter", &mut command);
        service.wait_until(|| UnixStream::connect(&socket).is_ok());
        self.daemon = Some(service);
    }

    pub fn kill_daemon(&mut self) {
        self.daemon.take().unwrap().kill();
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().pid()
    }

    /// Writes a file of the user's.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.configs().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn configs(&self) -> PathBuf {
        let path = self.directory.join("work/configs");
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn programs(&self) -> PathBuf {
        self.directory.join("work/programs")
    }

    /// Makes `program` the node's Nix.
    pub fn replace_nix(&self, program: &Path) {
        let link = self.programs().join("nix");
        fs::create_dir_all(self.programs()).unwrap();
        let _ = fs::remove_file(&link);
        symlink(program, link).unwrap();
    }

    pub fn resolve(&self, name: &str) -> Result<Resolved, ResolveError> {
        self.resolve_attr(name, None)
    }

    pub fn resolve_attr(&self, name: &str, attr: Option<&str>) -> Result<Resolved, ResolveError> {
        let mut request = Request::new(ConfigReference::Path(name.to_owned()));
        request.attr = attr.map(str::to_owned);
        self.ask(&request)
    }

    pub fn ask(&self, request: &Request) -> Result<Resolved, ResolveError> {
        let places = [Namespace::of_directory(&self.configs()).unwrap()];
        let settings = Settings::load(&self.layout.settings()).unwrap();
        resolve::resolve(&self.layout, &settings, request, &places, None, |_| ())
    }

    /// Writes `config` and resolves it, which must fail; gives the message.
    pub fn refuses(&self, config: &str) -> String {
        self.write("config.nix", config);
        chain(&self.resolve("config.nix").expect_err("the config is refused"))
    }

    pub fn status(&self) -> Status {
        let mut client = Client::connect(&self.layout.socket()).unwrap();
        match client.ask(&Frame::Status, None, None, |_| ()).unwrap() {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Everything that is left of work that is not published: nothing, in a healthy node.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = names(&self.layout.scratch());
        left.extend(names(&self.layout.environments()).into_iter().filter(|name| name.starts_with("new-")));
        let keys = names(&self.layout.environments());
        left.extend(names(&self.layout.gc_roots()).into_iter().filter(|name| !keys.contains(name)));
        left.extend(names(Path::new("/nix/var/nix/gcroots/auto")).into_iter().filter(|name| {
            let target = fs::read_link(Path::new("/nix/var/nix/gcroots/auto").join(name));
            target.is_ok_and(|target| target.starts_with(self.layout.state()))
        }));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains("/scratch/")).map(str::to_owned));
        left
    }
}

/// The daemon under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nixenv-snapshotter");

pub fn daemon() -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--log-level", "debug"]);
    command
}

/// An error and all its causes, as programs print it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The names in a directory that may not exist.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// The processes that are called this by whoever started them.
pub fn processes(name: &str) -> usize {
    let is_called = |pid: &String| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|&byte| byte == 0).next() == Some(name.as_bytes())
    };
    names(Path::new("/proc")).iter().filter(|pid| is_called(pid)).count()
}

/// Adds a directory with one program to the store, and gives the program's path.
pub fn add_program(directory: &Path, name: &str, text: &str) -> PathBuf {
    let source = directory.join("work/program");
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&source).unwrap();
    let program = source.join(name);
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Path::new(&nix_store(&["--add", source.to_str().unwrap()])).join(name)
}

fn nix_store(arguments: &[&str]) -> String {
    let mut command = Command::new("nix-store");
    Outcome::of(command.args(arguments).env("NIX_REMOTE", "local")).succeeds().trim().to_owned()
}

fn pin_package_set(directory: &Path) -> String {
    let set = directory.join("work/nixpkgs");
    for name in ["bash/bin", "stdenv"] {
        fs::create_dir_all(set.join(name)).unwrap();
    }
    fs::write(set.join("default.nix"), PACKAGE_SET).unwrap();
    fs::write(set.join("stdenv/setup"), SETUP).unwrap();
    fs::copy("/bin/bash-static", set.join("bash/bin/bash")).expect("bash-static is installed");
    let path = nix_store(&["--add", set.to_str().unwrap()]);
    let hash = nix_store(&["--query", "--hash", &path]);
    let hash = hash.trim_start_matches("sha256:");
    format!("[package-sets.nixpkgs]\npath = \"{path}\"\nsha256 = \"{hash}\"\n")
}
