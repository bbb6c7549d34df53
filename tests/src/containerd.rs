//! containerd, of the pinned release or Debian's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::artifacts;
use crate::service::Service;

/// Which snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshotter {
    /// The one that is built into containerd.
    Overlayfs,
    /// nixenv's.
    Nixenv,
    /// nix-snapshotter.
    NixSnapshotter,
}

impl Snapshotter {
    /// Its name in containerd.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Nixenv => "nixenv",
            Self::NixSnapshotter => "nix",
        }
    }

    /// The directory in which each of its snapshots has one of its own.
    #[must_use]
    pub fn snapshots(self) -> PathBuf {
        match self {
            Self::Overlayfs => "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots".into(),
            Self::Nixenv => "/var/lib/nixenv/snapshotter/snapshots".into(),
            Self::NixSnapshotter => "/var/lib/containerd/io.containerd.snapshotter.v1.nix/snapshots".into(),
        }
    }
}

/// Which containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// The one that `tests/run` builds by Go modules: 2.4.
    #[default]
    Pinned,
    /// Debian's: 1.6.
    Debian,
}

impl Release {
    /// Where its programs are.
    #[must_use]
    pub fn programs(self) -> PathBuf {
        match self {
            Self::Pinned => artifacts::engines(),
            Self::Debian => "/usr/bin".into(),
        }
    }

    /// Its configuration file.
    #[must_use]
    pub fn configuration(self) -> String {
        let version = match self {
            Self::Pinned => 3,
            Self::Debian => 2,
        };
        format!("version = {version}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
    }

    /// Writes its configuration file.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configure(self) {
        fs::create_dir_all("/etc/containerd").expect("/etc can be written");
        fs::write("/etc/containerd/config.toml", self.configuration()).expect("/etc can be written");
    }

    /// Its daemon.
    #[must_use]
    pub fn daemon(self) -> PathBuf {
        self.programs().join("containerd")
    }

    /// Starts it by `command`, with `first` before everything else on its PATH.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(
        self,
        directory: &Path,
        command: &mut Command,
        first: &Path,
        environment: &[(&str, OsString)],
    ) -> Service {
        command.env("PATH", search_path(&[first, &self.programs()])).envs(environment.iter().cloned());
        let mut service = Service::start(directory, "containerd", command);
        service.wait_until(|| {
            let version = Command::new(self.programs().join("ctr")).arg("version").output();
            version.is_ok_and(|output| output.status.success())
        });
        service
    }
}

/// A PATH of these directories, then this process's own.
///
/// # Panics
/// When a directory's name has a colon.
#[must_use]
pub fn search_path(first: &[&Path]) -> OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    env::join_paths(first.iter().map(|path| path.to_path_buf()).chain(env::split_paths(&own)))
        .expect("no colon")
}
