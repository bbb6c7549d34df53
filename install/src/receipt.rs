//! The receipt: what `nixenv install` created and changed, so that `nixenv uninstall` undoes exactly that.
//!
//! A change is recorded before it is made. After an interruption the receipt may therefore name changes that
//! were never made; undoing those finds nothing to do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail, ensure};
use environment::digest::Digest;
use environment::layout::Layout;
use serde::{Deserialize, Serialize};

use crate::containerd_config::Lines;
use crate::package_set::Pin;
use crate::{durable, nerdctl};

/// The version of the receipt's form.
const VERSION: u32 = 1;

/// What was created and changed, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Receipt {
    version: u32,
    /// The changes, oldest first; at most one of each kind for a path.
    pub changes: Vec<Change>,
}

/// One change of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Change {
    /// A directory that was not there.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A file that was written whole.
    File {
        /// The file.
        path: PathBuf,
        /// What was written.
        written: Digest,
        /// The backup of what was there.
        before: Option<Digest>,
    },
    /// A symbolic link.
    Link {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A file of which some lines are ours.
    Edit {
        /// The file.
        path: PathBuf,
        /// Its whole content after the edit.
        written: Digest,
        /// The backup of its content without our lines; none when there was no file.
        before: Option<Digest>,
        /// The lines.
        edit: Edit,
    },
    /// A system user that was not there.
    User {
        /// Its name.
        name: String,
    },
    /// A systemd unit that was enabled and started.
    Unit {
        /// Its name.
        name: String,
    },
    /// The daemon, started as a plain process.
    Process {
        /// The file that holds its process id.
        pid_file: PathBuf,
    },
}

/// Lines of ours in somebody else's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "kebab-case")]
pub enum Edit {
    /// The runtime handler and the snapshotter in containerd's config.
    #[serde(rename = "handler")]
    Containerd(Lines),
    /// The snapshotter in nerdctl's settings.
    Nerdctl(nerdctl::Snapshotter),
    /// A package set in the node's settings.
    Pin(Pin),
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Containerd(Lines { snapshotter: None, .. }) => {
                write!(f, "add the runtime handler nixenv-runc")
            }
            Self::Containerd(Lines { snapshotter: Some(plugin), .. }) => {
                write!(f, "add the runtime handler nixenv-runc and the snapshotter nixenv{plugin}")
            }
            Self::Nerdctl(_) => write!(f, "make nixenv nerdctl's snapshotter"),
            Self::Pin(pin) => write!(f, "let <{}> mean {}", pin.name, pin.path),
        }
    }
}

impl Edit {
    /// The text with our lines.
    pub fn apply(&self, text: &str) -> Result<String> {
        match self {
            Self::Containerd(lines) => lines.add_to(text),
            Self::Nerdctl(line) => line.add_to(text),
            Self::Pin(pin) => pin.add_to(text),
        }
    }

    /// The text without our lines.
    pub fn revert(&self, text: &str) -> Result<String> {
        match self {
            Self::Containerd(lines) => lines.remove_from(text),
            Self::Nerdctl(line) => line.remove_from(text),
            Self::Pin(pin) => pin.remove_from(text),
        }
    }
}

impl Change {
    /// Whether `other` supersedes this one.
    fn same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory { path: a }, Self::Directory { path: b })
            | (Self::File { path: a, .. }, Self::File { path: b, .. })
            | (Self::Link { path: a, .. }, Self::Link { path: b, .. }) => a == b,
            (Self::Edit { path: a, edit: one, .. }, Self::Edit { path: b, edit: two, .. }) => {
                a == b && std::mem::discriminant(one) == std::mem::discriminant(two)
            }
            (one, two) => one == two,
        }
    }
}

impl Receipt {
    /// Where the receipt lies.
    pub fn path(layout: &Layout) -> PathBuf {
        layout.state().join("receipt.json")
    }

    /// Reads the receipt; an absent one is empty.
    pub fn load(layout: &Layout) -> Result<Self> {
        let path = Self::path(layout);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, changes: vec![] });
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read the receipt {}", path.display()));
            }
        };
        let version =
            serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|v| v["version"].as_u64());
        let Some(version) = version else {
            bail!("the receipt {} is damaged: it has no version", path.display())
        };
        ensure!(
            version <= u64::from(VERSION),
            "the receipt {} has version {version}, and this nixenv knows {VERSION}; use the nixenv that installed it",
            path.display()
        );
        serde_json::from_slice(&text).with_context(|| format!("the receipt {} is damaged", path.display()))
    }

    /// Writes the receipt durably.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = Self::path(layout);
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        durable::replace(&path, &text, Some(0o600))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds a change, or replaces the one that it supersedes.
    pub fn record(&mut self, change: Change) {
        match self.changes.iter_mut().find(|known| known.same_place(&change)) {
            Some(known) => *known = change,
            None => self.changes.push(change),
        }
    }

    /// The record of a file that was written whole.
    pub fn file(&self, wanted: &Path) -> Option<(&Digest, Option<&Digest>)> {
        self.changes.iter().find_map(|change| match change {
            Change::File { path, written, before } if path == wanted => Some((written, before.as_ref())),
            _ => None,
        })
    }

    /// The record of our lines in a config of containerd.
    pub fn lines(&self, config: &Path) -> Option<&Lines> {
        self.changes.iter().find_map(|change| match change {
            Change::Edit { path, edit: Edit::Containerd(lines), .. } if path == config => Some(lines),
            _ => None,
        })
    }

    /// The record of our line in nerdctl's settings.
    pub fn nerdctl(&self) -> Option<(&Change, &Path, &nerdctl::Snapshotter)> {
        self.changes.iter().find_map(|change| match change {
            Change::Edit { path, edit: Edit::Nerdctl(line), .. } => Some((change, path.as_path(), line)),
            _ => None,
        })
    }

    /// The record of the lines like `wanted` in a file.
    pub fn edit(&self, wanted_path: &Path, wanted: &Edit) -> Option<(&Digest, Option<&Digest>, &Edit)> {
        self.changes.iter().find_map(|change| match change {
            Change::Edit { path, written, before, edit }
                if path == wanted_path && std::mem::discriminant(edit) == std::mem::discriminant(wanted) =>
            {
                Some((written, before.as_ref(), edit))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd_config::Handler;

    fn receipt() -> Receipt {
        Receipt {
            version: VERSION,
            changes: vec![
                Change::Directory { path: "/etc/nixenv".into() },
                Change::File {
                    path: "/usr/local/bin/nixenv".into(),
                    written: Digest::of(b"new"),
                    before: Some(Digest::of(b"old")),
                },
                Change::Link { path: "/l".into(), target: "/t".into() },
                Change::Edit {
                    path: "/etc/containerd/config.toml".into(),
                    written: Digest::of(b"x"),
                    before: None,
                    edit: Edit::Containerd(Lines {
                        handler: Handler {
                            binary: "/usr/local/bin/nixenv-runc".into(),
                            version: 2,
                            runc: None,
                        },
                        snapshotter: None,
                    }),
                },
                Change::User { name: "nixenv".into() },
                Change::Unit { name: "nixenv-snapshotter.service".into() },
                Change::Process { pid_file: "/run/nixenv/snapshotter.pid".into() },
            ],
        }
    }

    /// A receipt of this version, as an earlier build wrote it: it must be read for ever.
    const VERSION_1: &str = include_str!("../tests/receipt-1.json");

    #[test]
    fn a_receipt_survives_a_round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        fs::create_dir_all(layout.state()).unwrap();
        receipt().save(&layout).unwrap();
        assert_eq!(Receipt::load(&layout).unwrap(), receipt());
    }

    #[test]
    fn receipts_of_version_1_are_read() {
        assert_eq!(serde_json::from_str::<Receipt>(VERSION_1).unwrap(), receipt());
    }

    #[test]
    fn a_receipt_of_a_newer_nixenv_is_refused_by_its_version() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        fs::create_dir_all(layout.state()).unwrap();
        fs::write(Receipt::path(&layout), r#"{"version": 2, "changes": "of another form"}"#).unwrap();
        assert!(format!("{:#}", Receipt::load(&layout).unwrap_err()).contains("version 2"));
    }

    #[test]
    fn a_later_change_of_the_same_file_replaces_the_record() {
        let mut receipt = receipt();
        let count = receipt.changes.len();
        let path = Path::new("/usr/local/bin/nixenv");
        receipt.record(Change::File { path: path.into(), written: Digest::of(b"newer"), before: None });
        assert_eq!(receipt.changes.len(), count);
        assert_eq!(receipt.file(path), Some((&Digest::of(b"newer"), None)));
    }
}
