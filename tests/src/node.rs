//! A node: containerd, and around it whatever a test asks for.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts;
use crate::cache_server;
use crate::command::Outcome;
use crate::containerd::{Release, search_path};
use crate::image::Image;
use crate::isolation::isolated;
use crate::nix::{self, Store};
use crate::nixenv;
use crate::service::Service;

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
}

/// A node of its own for one test.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    parts: Parts,
    containerd: Service,
    nixenv: Option<Nixenv>,
}

/// What a node with nixenv has besides containerd; each may be taken away by a test.
#[derive(Debug)]
struct Nixenv {
    cache: Option<Service>,
    nix: Option<Service>,
    daemon: Option<Service>,
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
        parts.store.install();
        let runtime = nixenv::install(directory);
        let nixenv = Nixenv {
            cache: Some(cache_server::start(directory)),
            nix: Some(nix::start_daemon(directory)),
            daemon: Some(nixenv::start_daemon(directory)),
        };
        let inner = ("NIXENV_RUNTIME", parts.runtime.program().into());
        test(&mut Node::start(directory, parts, &runtime, &[inner], Some(nixenv)));
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
        test(&mut Node::start(directory, parts, &runtime, &[], None));
    });
}

impl Node {
    fn start(
        directory: &Path,
        parts: Parts,
        runtime: &Path,
        environment: &[(&str, OsString)],
        nixenv: Option<Nixenv>,
    ) -> Self {
        parts.release.configure();
        let containerd = parts.release.start(directory, runtime, environment);
        let node = Self { directory: directory.to_owned(), parts, containerd, nixenv };
        node.load(node.image("busybox"));
        node
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
            .current_dir(self.work());
        command
    }

    /// Runs containerd's own client.
    #[must_use]
    pub fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        let mut command = Command::new(self.parts.release.programs().join("ctr"));
        Outcome::of(command.args(arguments).current_dir(self.work()))
    }

    /// The node's containerd.
    #[must_use]
    pub fn containerd(&self) -> &Service {
        &self.containerd
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
        self.nerdctl(run.into_iter().chain(options.iter().copied()).chain(["busybox", "sh", "-c", script]))
    }

    /// Evaluations so far: how often the daemon or its children have started Nix's evaluator.
    #[must_use]
    pub fn evaluations(&self) -> usize {
        nixenv::execs(&self.directory).iter().filter(|exec| exec.is_evaluation()).count()
    }

    /// Kills nixenv's daemon.
    pub fn kill_daemon(&mut self) {
        self.nixenv().daemon.take().expect("the daemon runs").kill();
    }

    /// Starts nixenv's daemon again.
    pub fn start_daemon(&mut self) {
        let daemon = nixenv::start_daemon(&self.directory);
        self.nixenv().daemon = Some(daemon);
    }

    /// Stops the Nix daemon and the binary cache.
    pub fn stop_nix(&mut self) {
        let nixenv = self.nixenv();
        nixenv.nix.take().expect("the Nix daemon runs").kill();
        nixenv.cache.take().expect("the binary cache runs").kill();
    }

    fn nixenv(&mut self) -> &mut Nixenv {
        self.nixenv.as_mut().expect("this node has nixenv")
    }
}
