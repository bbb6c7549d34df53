//! A node: containerd, and around it whatever a test asks for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts;
use crate::command::Outcome;
use crate::containerd::{Release, search_path};
use crate::image::Image;
use crate::isolation::isolated;
use crate::service::Service;

/// Which low-level runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// runc.
    #[default]
    Runc,
    /// crun.
    Crun,
}

impl Runtime {
    /// Its program, as Debian installs it.
    #[must_use]
    pub fn program(self) -> &'static Path {
        Path::new(match self {
            Self::Runc => "/usr/sbin/runc",
            Self::Crun => "/usr/bin/crun",
        })
    }
}

/// What a node is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Its containerd.
    pub release: Release,
    /// Its low-level runtime.
    pub runtime: Runtime,
}

/// A node of its own for one test.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    parts: Parts,
    containerd: Service,
}

/// Runs a test on a node without nixenv.
///
/// # Panics
/// When the test fails.
pub fn on_a_plain_node(parts: Parts, test: impl FnOnce(&mut Node)) {
    isolated(|directory| test(&mut Node::start(directory, parts)));
}

impl Node {
    fn start(directory: &Path, parts: Parts) -> Self {
        let first = directory.join("runtime");
        fs::create_dir_all(&first).expect("a directory can be made");
        symlink(parts.runtime.program(), first.join("runc")).expect("a link can be made");
        parts.release.configure();
        let containerd = parts.release.start(directory, &first, &[]);
        let node = Self { directory: directory.to_owned(), parts, containerd };
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
}
