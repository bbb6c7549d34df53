//! Every path that nixenv owns on a node.
//!
//! ```text
//! /etc/nixenv/config.toml                   the node's settings
//! /etc/nixenv/configs/NAME                  configs that `@NAME` means
//! /var/lib/nixenv/                          root's, 0700
//!   node.json                               facts about this node's Nix, written by the daemon
//!   environments/KEY/manifest.json          one directory per environment, complete or absent
//!   environments/KEY/closure                its store paths, one a line, sorted
//!   inputs/SELECTOR.json                    first step of the look-up: the inputs seen for an entry file
//!   views/VIEW/                             the stub of a view (see the view module)
//!   baselines/DERIVATION.json               build environments that are empty, to tell noise
//!   scratch/                                work in progress; emptied when the daemon starts
//!   snapshotter/                            containerd's snapshots (see the daemon's module `snapshots`)
//! /run/nixenv/                              root's, 0700; gone after a reboot
//!   nixenv.sock                             the daemon
//!   snapshotter.sock                        the daemon, for containerd
//!   views/VIEW/                             mount points of views
//!   metrics.sock                            the daemon, for Prometheus
//!   hits                                    a byte for each start that the cache had the environment for
//!   containers/HOLD/                        what a running container has in use
//! /nix/var/nix/gcroots/nixenv/KEY           the GC root of an environment
//! /nix/var/nix/gcroots/nixenv/snapshots/ID/ the GC roots of a snapshot
//! ```

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::key::{Key, Selector, ViewId};

/// The paths of a node, or of a test's own directory.
#[derive(Clone, Debug)]
pub struct Layout {
    prefix: PathBuf,
}

impl Layout {
    /// The paths of this node.
    #[must_use]
    pub fn node() -> Self {
        Self::under("/")
    }

    /// The same tree below `prefix`.
    #[must_use]
    pub fn under(prefix: impl Into<PathBuf>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The node's settings.
    #[must_use]
    pub fn settings(&self) -> PathBuf {
        self.prefix.join("etc/nixenv/config.toml")
    }

    /// The directory of named configs.
    #[must_use]
    pub fn configs(&self) -> PathBuf {
        self.prefix.join("etc/nixenv/configs")
    }

    /// The root of everything durable.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.prefix.join("var/lib/nixenv")
    }

    /// The root of everything that ends with a reboot.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.prefix.join("run/nixenv")
    }

    /// Facts about the node's Nix.
    #[must_use]
    pub fn node_facts(&self) -> PathBuf {
        self.state().join("node.json")
    }

    /// The directory of all environments.
    #[must_use]
    pub fn environments(&self) -> PathBuf {
        self.state().join("environments")
    }

    /// The directory of one environment.
    #[must_use]
    pub fn environment(&self, key: &Key) -> PathBuf {
        self.environments().join(key.to_string())
    }

    /// The manifest of one environment.
    #[must_use]
    pub fn manifest(&self, key: &Key) -> PathBuf {
        self.environment(key).join("manifest.json")
    }

    /// The closure of one environment.
    #[must_use]
    pub fn closure(&self, key: &Key) -> PathBuf {
        self.environment(key).join("closure")
    }

    /// The directory of input lists.
    #[must_use]
    pub fn inputs(&self) -> PathBuf {
        self.state().join("inputs")
    }

    /// The inputs seen for one entry file.
    #[must_use]
    pub fn inputs_of(&self, selector: &Selector) -> PathBuf {
        self.inputs().join(format!("{selector}.json"))
    }

    /// The directory of all stubs.
    #[must_use]
    pub fn stubs(&self) -> PathBuf {
        self.state().join("views")
    }

    /// The stub of one view.
    #[must_use]
    pub fn stub(&self, view: &ViewId) -> PathBuf {
        self.stubs().join(view.to_string())
    }

    /// Build environments that are empty.
    #[must_use]
    pub fn baselines(&self) -> PathBuf {
        self.state().join("baselines")
    }

    /// Work in progress.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.state().join("scratch")
    }

    /// The snapshots, unless the settings name another directory.
    #[must_use]
    pub fn snapshotter(&self) -> PathBuf {
        self.state().join("snapshotter")
    }

    /// The daemon's socket for containerd.
    #[must_use]
    pub fn snapshotter_socket(&self) -> PathBuf {
        self.run().join("snapshotter.sock")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run().join("nixenv.sock")
    }

    /// Where the daemon tells its metrics, unless the settings say otherwise.
    #[must_use]
    pub fn metrics_socket(&self) -> PathBuf {
        self.run().join("metrics.sock")
    }

    /// The count of warm starts.
    #[must_use]
    pub fn hits(&self) -> PathBuf {
        self.run().join("hits")
    }

    /// The directory of all mount points of views.
    #[must_use]
    pub fn mount_points(&self) -> PathBuf {
        self.run().join("views")
    }

    /// The mount point of one view.
    #[must_use]
    pub fn mount_point(&self, view: &ViewId) -> PathBuf {
        self.mount_points().join(view.to_string())
    }

    /// The directory of all holds.
    #[must_use]
    pub fn holds(&self) -> PathBuf {
        self.run().join("containers")
    }

    /// The hold of one container.
    #[must_use]
    pub fn hold(&self, container: &Digest) -> PathBuf {
        self.holds().join(container.to_string())
    }

    /// The directory of nixenv's GC roots.
    #[must_use]
    pub fn gc_roots(&self) -> PathBuf {
        self.prefix.join("nix/var/nix/gcroots/nixenv")
    }

    /// The GC root of one environment.
    #[must_use]
    pub fn gc_root(&self, key: &Key) -> PathBuf {
        self.gc_roots().join(key.to_string())
    }

    /// The directory of the GC roots of snapshots.
    #[must_use]
    pub fn snapshot_gc_roots(&self) -> PathBuf {
        self.gc_roots().join("snapshots")
    }

    /// The physical directory of store paths.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.prefix.join("nix/store")
    }

    /// The prefix itself.
    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }
}
