//! The node's settings: `/etc/nixenv/config.toml`.
//!
//! ```toml
//! [package-sets.nixpkgs]              # what <nixpkgs> means; `nixenv install --nixpkgs PATH` writes it
//! path = "/nix/store/...-nixpkgs"     # a store path
//! sha256 = "..."                      # its NAR hash, as `nix-store --query --hash` prints it without "sha256:"
//!
//! [evaluation]
//! timeout-seconds = 60                # wall time of one evaluation
//! memory-mib = 4096                   # address space of one evaluation
//! parallel = 2                        # evaluations at once
//!
//! [config]
//! max-bytes = 16777216                # all files of one config
//! max-files = 1000
//!
//! [variables]
//! allow = []                          # of LD_PRELOAD, LD_AUDIT, LD_LIBRARY_PATH
//!
//! [start]
//! wait-seconds = 600                  # how long a container's start waits for its environment
//!
//! [snapshotter]                       # as containerd's own overlayfs snapshotter has them
//! root = "/var/lib/nixenv/snapshotter"
//! mount-options = []                  # appended to those of every overlay mount
//! upperdir-label = false              # adds the label containerd.io/snapshot/overlay.upperdir
//! remap-ids = true                    # id-mapped mounts for containers in user namespaces, where the kernel has them
//! believe-store-only = false          # believe images that say that a layer holds store paths and nothing else
//!
//! [metrics]
//! listen = "unix:/run/nixenv/metrics.sock"  # or an address of the loopback interface, "127.0.0.1:9750"; or "off"
//! allow-remote = false                # lets `listen` be another address: whoever reaches it can read the metrics
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, FieldHasher};
use crate::store_path::StorePath;

/// The node's settings; every field has a default, unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// What `<NAME>` means, by name.
    pub package_sets: BTreeMap<String, PackageSet>,
    /// Limits of evaluations.
    pub evaluation: Evaluation,
    /// Limits of configs.
    pub config: ConfigLimits,
    /// Which variables may pass.
    pub variables: Variables,
    /// Limits of container starts.
    pub start: Start,
    /// containerd's snapshots.
    pub snapshotter: Snapshotter,
    /// Where metrics are told.
    pub metrics: Metrics,
}

/// A pinned package set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PackageSet {
    /// The store path that holds it.
    pub path: StorePath,
    /// Its NAR hash in Nix base-32, base-16 or SRI form.
    pub sha256: String,
}

/// Limits of one evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Evaluation {
    /// Wall time, in seconds.
    pub timeout_seconds: u64,
    /// Address space, in MiB.
    pub memory_mib: u64,
    /// Evaluations and builds that run at once.
    pub parallel: usize,
}

/// Limits of a config, counted over all its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigLimits {
    /// Bytes.
    pub max_bytes: u64,
    /// Files, directories and links.
    pub max_files: usize,
}

/// Which variables may pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Variables {
    /// Names among those that are refused by default.
    pub allow: Vec<String>,
}

/// Limits of a container's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Start {
    /// How long a start waits for its environment, in seconds. Under CRI never longer than 90.
    pub wait_seconds: u64,
}

/// containerd's snapshots; the options are those of its overlayfs snapshotter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Snapshotter {
    /// Where they are kept, if not in the usual place.
    pub root: Option<PathBuf>,
    /// Options that are appended to those of every overlay mount.
    pub mount_options: Vec<String>,
    /// Whether the label `containerd.io/snapshot/overlay.upperdir` names the upper directory.
    pub upperdir_label: bool,
    /// Whether mounts are id-mapped for containers in user namespaces, where the kernel can.
    pub remap_ids: bool,
    /// Whether images are believed that say of a layer that it holds store paths and nothing else.
    pub believe_store_only: bool,
}

/// Where metrics are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Metrics {
    /// `unix:PATH`, `ADDRESS:PORT` or `off`; without it a socket beside the daemon's own.
    pub listen: Option<String>,
    /// Whether the address may be another than the loopback interface's.
    pub allow_remote: bool,
}

impl Default for Snapshotter {
    fn default() -> Self {
        Self {
            root: None,
            mount_options: Vec::new(),
            upperdir_label: false,
            remap_ids: true,
            believe_store_only: false,
        }
    }
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { timeout_seconds: 60, memory_mib: 4096, parallel: 2 }
    }
}

impl Default for ConfigLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_files: 1000 }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self { wait_seconds: 600 }
    }
}

impl Start {
    /// How long a start waits.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadSettingsError {
    /// The file is there, and cannot be read.
    #[error("cannot read the settings {path}")]
    Read {
        /// The settings file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what is expected.
    #[error("the settings {path} are wrong; mend or remove the named line")]
    Parse {
        /// The settings file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// Reads the settings; an absent file means the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or is not valid.
    pub fn load(path: &Path) -> Result<Self, LoadSettingsError> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|source| LoadSettingsError::Parse {
                path: path.to_owned(),
                source: Box::new(source),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(LoadSettingsError::Read { path: path.to_owned(), source }),
        }
    }

    /// The digest of the settings that an environment depends on: limits and waits are not among them.
    #[must_use]
    pub fn evaluation_digest(&self) -> Digest {
        let mut hasher = FieldHasher::new("nixenv settings");
        for (name, set) in &self.package_sets {
            hasher = hasher.field(name).field(set.path.as_str()).field(&set.sha256);
        }
        let mut allow = self.variables.allow.clone();
        allow.sort();
        allow.dedup();
        allow.iter().fold(hasher.field("variables"), FieldHasher::field).finish()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn limits_do_not_change_the_digest_and_pins_do() {
        let plain = parse("");
        assert_eq!(plain.evaluation_digest(), parse("[evaluation]\nmemory-mib = 1").evaluation_digest());
        assert_ne!(
            plain.evaluation_digest(),
            parse("[variables]\nallow = [\"LD_AUDIT\"]").evaluation_digest()
        );
        let pin = |sha256| {
            parse(&format!(
                "[package-sets.nixpkgs]\npath = \"/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-n\"\nsha256 = \"{sha256}\""
            ))
        };
        assert_ne!(pin("a").evaluation_digest(), pin("b").evaluation_digest());
    }

    #[rstest]
    #[case::unknown_field("[evaluation]\nmemory = 1", "memory")]
    #[case::not_a_store_path("[package-sets.n]\npath = \"/etc\"\nsha256 = \"\"", "not a store path")]
    #[case::wrong_type("[start]\nwait-seconds = \"x\"", "wait-seconds")]
    fn errors_name_the_line(#[case] text: &str, #[case] expected: &str) {
        let error = toml::from_str::<Settings>(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
