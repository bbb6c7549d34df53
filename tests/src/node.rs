//! A node: containerd, and around it whatever a test asks for.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use environment::layout::Layout;

use crate::artifacts;
use crate::buildkit;
use crate::cache_server;
use crate::command::Outcome;
use crate::containerd::{Release, Snapshotter, search_path};
use crate::image::Image;
use crate::inventory::{Changes, Inventory};
use crate::isolation::isolated;
use crate::nix::{self, Store};
use crate::nix_snapshotter;
use crate::nixenv::{self, Threads};
use crate::recorder::{self, Specs};
use crate::registry::Registry;
use crate::service::{Service, Signal};
use crate::trace::{Exec, Trace};

/// Which low-level runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Debian's runc: 1.1.
    #[default]
    Runc,
    /// Debian 13's crun: 1.21.
    Crun,
}

impl Runtime {
    /// Its program.
    #[must_use]
    pub fn program(self) -> PathBuf {
        match self {
            Self::Runc => "/usr/sbin/runc".into(),
            Self::Crun => artifacts::engines().join("crun"),
        }
    }
}

/// What a node is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Its containerd.
    pub release: Release,
    /// Its low-level runtime.
    pub runtime: Runtime,
    /// What its Nix store has at first.
    pub store: Store,
    /// Whether containerd's transfer service unpacks for nixenv.
    pub transfer: bool,
    /// Whether the programs that its containerd starts are noted.
    pub traced: bool,
    /// Whether nix-snapshotter is there, too.
    pub nix_snapshotter: bool,
    /// Whether the specs before and after the runtime wrapper are kept.
    pub recorded: bool,
}

/// The example of the README.
pub const EXAMPLE: &str = r#"{ pkgs ? import <nixpkgs> {} }:
pkgs.mkShell { packages = [ pkgs.python3 pkgs.jq ]; GREETING = "hello"; }
"#;

/// A node of its own for one test.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    parts: Parts,
    /// The directory that stands first on containerd's PATH.
    runtime: PathBuf,
    /// Variables of containerd.
    environment: Vec<(&'static str, OsString)>,
    containerd: Option<Service>,
    nixenv: Option<Nixenv>,
}

/// The name of nixenv's daemon.
const DAEMON: &str = "nixenv-snapshotter";

/// What a node with nixenv has besides containerd; each may be taken away by a test.
#[derive(Debug)]
struct Nixenv {
    cache: Option<Service>,
    nix: Option<Service>,
    daemon: Option<Service>,
    strace: Option<Service>,
    nix_snapshotter: Option<Service>,
    /// The settings as they were installed.
    settings: String,
}

/// Runs a test on a node with nixenv.
///
/// # Panics
/// When the test fails.
pub fn on_a_node(test: impl FnOnce(&mut Node)) {
    on_a_node_of(Parts::default(), test);
}

/// Runs a test on a node of these parts, with nixenv.
///
/// # Panics
/// When the test fails.
pub fn on_a_node_of(parts: Parts, test: impl FnOnce(&mut Node)) {
    isolated(|directory| {
        parts.store.install(directory);
        let (cache, nix) = (cache_server::start(directory), nix::start_daemon(directory));
        parts.release.configure();
        if parts.nix_snapshotter {
            nix_snapshotter::configure();
        }
        let mut inner = parts.runtime.program();
        let mut runtime = nixenv::install(parts.release, &inner, parts.transfer);
        if parts.recorded {
            (runtime, inner) = recorder::install(directory, &runtime, &inner);
        }
        let nixenv = Nixenv {
            cache: Some(cache),
            nix: Some(nix),
            daemon: Some(nixenv::start_daemon(directory)),
            strace: None,
            nix_snapshotter: None,
            settings: fs::read_to_string(Layout::node().settings()).expect("nixenv is installed"),
        };
        let environment = vec![("NIXENV_RUNTIME", inner.into())];
        let (directory, containerd) = (directory.to_owned(), None);
        test(Node { directory, parts, runtime, environment, containerd, nixenv: Some(nixenv) }.start());
    });
}

/// Runs a test on a node without nixenv and Nix.
///
/// # Panics
/// When the test fails.
pub fn on_a_plain_node(parts: Parts, test: impl FnOnce(&mut Node)) {
    isolated(|directory| {
        let runtime = directory.join("runtime");
        fs::create_dir_all(&runtime).expect("a directory can be made");
        symlink(parts.runtime.program(), runtime.join("runc")).expect("a link can be made");
        parts.release.configure();
        let (directory, environment) = (directory.to_owned(), Vec::new());
        test(Node { directory, parts, runtime, environment, containerd: None, nixenv: None }.start());
    });
}

impl Node {
    fn start(&mut self) -> &mut Self {
        self.start_containerd();
        if self.parts.nix_snapshotter {
            self.services().nix_snapshotter = Some(nix_snapshotter::start(&self.directory));
        }
        self.load(self.image("busybox"));
        self
    }

    fn start_containerd(&mut self) {
        let release = self.parts.release;
        let daemon = release.daemon();
        let mut command = if self.parts.traced { self.trace().of(&daemon) } else { Command::new(daemon) };
        self.containerd =
            Some(release.start(&self.directory, &mut command, &self.runtime, &self.environment));
    }

    /// Adds lines to the node's settings as they were installed; none gives those back.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn set(&self, lines: &str) {
        let installed = &self.nixenv.as_ref().expect("this node has nixenv").settings;
        fs::write(Layout::node().settings(), format!("{installed}{lines}")).expect("the node is ours");
    }

    /// Starts an image of this name.
    #[must_use]
    pub fn image(&self, name: &str) -> Image {
        Image::busybox(&self.directory, name)
    }

    /// Makes an image and loads it.
    pub fn load(&self, image: Image) {
        let archive = image.archive();
        self.nerdctl(["load", "--quiet", "--input", archive.to_str().expect("ASCII")]).succeeds();
    }

    /// The working directory of [`Self::nerdctl`].
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Writes a file in the working directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().expect("in the working directory"))
            .expect("a directory can be made");
        fs::write(path, content).expect("a file can be written");
    }

    /// Where a test may write, outside of the working directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory).expect("a directory can be made");
        directory
    }

    /// Runs nerdctl in the working directory.
    #[must_use]
    pub fn nerdctl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        Outcome::of(&mut self.nerdctl_command(arguments))
    }

    /// nerdctl in the working directory, not yet run.
    #[must_use]
    pub fn nerdctl_command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(artifacts::engines().join("nerdctl"));
        command
            .args(["--cni-path", "/usr/lib/cni"])
            .args(arguments)
            .env("PATH", search_path(&[&self.parts.release.programs()]))
            // As a shell does; nerdctl hands it on.
            .env("PWD", self.work())
            .current_dir(self.work());
        command
    }

    /// Runs nixenv's own command in the working directory.
    #[must_use]
    pub fn nixenv<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        let mut command = Command::new(nixenv::COMMAND);
        Outcome::of(
            command
                .args(arguments)
                // nerdctl is always of the pinned release.
                .env("PATH", search_path(&[&self.parts.release.programs(), &artifacts::engines()]))
                .env("PWD", self.work())
                .current_dir(self.work()),
        )
    }

    /// Runs containerd's own client.
    #[must_use]
    pub fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        Outcome::of(&mut self.ctr_command(arguments))
    }

    fn ctr_command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(self.parts.release.programs().join("ctr"));
        command.args(arguments).current_dir(self.work());
        command
    }

    /// The node's engines with one of its snapshotters.
    #[must_use]
    pub fn on(&self, snapshotter: Snapshotter) -> On<'_> {
        On { node: self, snapshotter }
    }

    /// Starts a registry that is empty.
    #[must_use]
    pub fn start_registry(&self) -> Registry {
        Registry::start(&self.directory)
    }

    /// Starts BuildKit, which builds on a snapshotter.
    #[must_use]
    pub fn start_buildkit(&self, snapshotter: Snapshotter) -> Service {
        buildkit::start(&self.directory, snapshotter)
    }

    /// Boots a container of the busybox image into a config, runs `script` in it, and removes it.
    #[must_use]
    pub fn boot(&self, config: &str, script: &str) -> Outcome {
        self.boot_with(config, &[], script)
    }

    /// The same, with more options for `nerdctl run`.
    #[must_use]
    pub fn boot_with(&self, config: &str, options: &[&str], script: &str) -> Outcome {
        let config = format!("nixenv={config}");
        let run = ["run", "--rm", "--net", "none", "--annotation", &config];
        // What is started again is warm.
        twice(|| {
            self.nerdctl(
                run.into_iter().chain(options.iter().copied()).chain(["busybox", "sh", "-c", script]),
            )
        })
    }

    /// Evaluations so far: how often the daemon or its children have started Nix's evaluator.
    #[must_use]
    pub fn evaluations(&self) -> usize {
        self.trace().execs(DAEMON).iter().filter(|exec| exec.is_evaluation()).count()
    }

    /// The greatest number of evaluations that ran at one time.
    #[must_use]
    pub fn evaluations_at_once(&self) -> usize {
        self.trace().evaluations_at_once(DAEMON)
    }

    /// Every program that a traced containerd has started, with its shims and runtimes.
    #[must_use]
    pub fn execs(&self) -> Vec<Exec> {
        self.trace().execs("containerd")
    }

    /// The specs of the last container that was created, on a node that records them.
    #[must_use]
    pub fn specs(&self) -> Specs {
        recorder::specs(&self.directory)
    }

    /// What the runtime of a running container has logged; containerd's shim keeps it in the bundle.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn runtime_log(&self, container: &str) -> String {
        let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/default").join(container);
        fs::read_to_string(bundle.join("log.json")).expect("the runtime has a log")
    }

    /// How many containers hold an environment.
    #[must_use]
    pub fn holds(&self) -> usize {
        fs::read_dir(Layout::node().holds()).map_or(0, Iterator::count)
    }

    fn trace(&self) -> Trace {
        Trace::new(&self.directory)
    }

    /// Ends containerd by a signal, and starts it again.
    ///
    /// # Panics
    /// When it does not end, or does not start.
    pub fn restart_containerd(&mut self, signal: Signal) {
        self.containerd.take().expect("containerd runs").end_by(signal);
        self.start_containerd();
    }

    /// Ends nixenv's daemon by a signal.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn end_daemon(&mut self, signal: Signal) {
        self.services().daemon.take().expect("the daemon runs").end_by(signal);
    }

    /// Kills nixenv's daemon, if it runs.
    pub fn kill_daemon(&mut self) {
        let nixenv = self.services();
        (nixenv.daemon, nixenv.strace) = (None, None);
    }

    /// Starts nixenv's daemon again, without the trace that costs it time.
    ///
    /// # Panics
    /// When it does not start.
    pub fn untrace_daemon(&mut self) -> &Service {
        self.kill_daemon();
        let daemon = nixenv::start_untraced_daemon(&self.directory);
        self.services().daemon.insert(daemon)
    }

    /// Starts nixenv's daemon, again if it runs.
    pub fn start_daemon(&mut self) {
        self.kill_daemon();
        let daemon = nixenv::start_daemon(&self.directory);
        self.services().daemon = Some(daemon);
    }

    /// Starts nixenv's daemon again, with a `fault` (strace's `--inject`) that kills it, or without.
    pub fn restart_daemon_to_be_killed(&mut self, fault: Option<&str>, threads: Threads) {
        let Some(fault) = fault else { return self.start_daemon() };
        self.kill_daemon();
        let daemon = nixenv::start_untraced_daemon(&self.directory);
        let strace = nixenv::inject_into_daemon(&self.directory, &daemon, fault, threads);
        let nixenv = self.services();
        (nixenv.daemon, nixenv.strace) = (Some(daemon), Some(strace));
    }

    /// Gives the runtime wrapper a `fault` (strace's `--inject`) that kills it, or none.
    pub fn let_wrapper_be_killed(&mut self, fault: Option<&str>) {
        nixenv::inject_into_wrapper(fault);
    }

    /// What there is on the node.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        Inventory::take(&self.directory)
    }

    /// Expects that these are the changes since `before`, and that there is no container.
    ///
    /// # Panics
    /// When something else has changed.
    #[track_caller]
    pub fn changed_only(&self, before: &Inventory, expected: &Changes) {
        self.nerdctl(["ps", "--all", "--quiet"]).prints("");
        let changes = Inventory::settle(&self.directory, before, expected).besides(expected);
        assert!(changes == Changes::default(), "too much (+) or too little (-) is there:\n{changes:?}");
    }

    /// Stops the Nix daemon and the binary cache.
    pub fn stop_nix(&mut self) {
        let nixenv = self.services();
        nixenv.nix.take().expect("the Nix daemon runs").kill();
        nixenv.cache.take().expect("the binary cache runs").kill();
    }

    fn services(&mut self) -> &mut Nixenv {
        self.nixenv.as_mut().expect("this node has nixenv")
    }
}

/// Runs a command again that has said nothing: nerdctl 2.0 was seen to lose the output of a short process on a busy
/// machine.
fn twice(run: impl Fn() -> Outcome) -> Outcome {
    let outcome = run();
    if outcome.status.success() && outcome.stdout.is_empty() {
        println!("no output: once more");
        return run();
    }
    outcome
}

/// containerd waits between its attempts to reach a plugin, 3 s at most (`proxyClients.getClient` in its `cmd/containerd/server`).
pub const RECONNECTED: Duration = Duration::from_secs(20);

/// A node's engines with one of its snapshotters.
#[derive(Clone, Copy, Debug)]
pub struct On<'a> {
    node: &'a Node,
    snapshotter: Snapshotter,
}

impl On<'_> {
    /// The snapshotter.
    #[must_use]
    pub fn snapshotter(self) -> Snapshotter {
        self.snapshotter
    }

    /// Runs nerdctl in the working directory.
    #[must_use]
    pub fn nerdctl<'a>(self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        self.node.nerdctl(["--snapshotter", self.snapshotter.name()].into_iter().chain(arguments))
    }

    /// Runs a script that says something in a container.
    #[must_use]
    pub fn tell(self, container: &str, script: &str) -> Outcome {
        twice(|| self.nerdctl(["exec", container, "sh", "-euc", script]))
    }

    /// Runs containerd's own client.
    #[must_use]
    pub fn ctr<'a>(self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        Outcome::of(self.node.ctr_command(arguments).env("CONTAINERD_SNAPSHOTTER", self.snapshotter.name()))
    }

    /// Waits until containerd has found the snapshotter again.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_reconnection(self) {
        let deadline = Instant::now() + RECONNECTED;
        while !self.ctr(["snapshots", "list"]).status.success() {
            assert!(Instant::now() < deadline, "containerd does not come back to the daemon");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The keys of every snapshot, whatever its namespace.
    #[must_use]
    pub fn keys(self) -> Vec<String> {
        let namespaces = self.ctr(["namespaces", "list", "--quiet"]).succeeds();
        let list = |namespace| self.ctr(["--namespace", namespace, "snapshots", "list"]).succeeds();
        let lists = namespaces.lines().map(list).collect::<Vec<_>>();
        let rows = lists.iter().flat_map(|list| list.lines().skip(1));
        rows.filter_map(|row| Some(row.split_whitespace().next()?.to_owned())).collect()
    }
}
