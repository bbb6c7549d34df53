//! What is known of a snapshot, as containerd's `snapshots.Info` has it.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// A snapshot's labels.
pub type Labels = BTreeMap<String, String>;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its key while it is active or a view, its name once it is committed.
    pub name: String,
    /// The name of its parent; empty when it has none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created: SystemTime,
    /// When its labels changed last.
    pub updated: SystemTime,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It shows its parent and cannot be committed.
    View,
    /// It is written to, and may be committed.
    Active,
    /// It is complete, and never changes.
    Committed,
}

impl Kind {
    /// The name that filters know it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}
