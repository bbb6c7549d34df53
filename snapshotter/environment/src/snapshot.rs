//! The snapshot of a config: every file that its evaluation can read, observed once.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What was observed when a snapshot was taken; as long as it holds, a new snapshot would be the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs(pub Vec<(String, Observation)>);

/// What was seen at one path (relative to the directory of the entry file).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observation {
    /// A regular file with this content.
    File {
        /// The digest of its content.
        content: Digest,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symbolic link with this target.
    Link(String),
    /// A directory with these names.
    Directory(Vec<String>),
    /// Nothing.
    Absent,
}
