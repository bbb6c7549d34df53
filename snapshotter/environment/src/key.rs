//! Content addresses: of an environment, of the first step of its look-up, of a view.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, FieldHasher, ParseDigestError};
use crate::settings::Settings;
use crate::store_path::StorePath;

/// The Nix expression that calls a config; part of every key.
pub const PRELUDE: &str = include_str!("prelude.nix");

/// Bumped when the meaning of a manifest changes, so that older ones are misses.
pub const FORMAT: u32 = 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

address! {
    /// The content address of an environment: everything that its evaluation can depend on.
    Key
}
address! {
    /// The first step of a look-up: everything that is known before the entry file's other inputs are.
    Selector
}
address! {
    /// The content address of a view: its closure.
    ViewId
}

/// What an environment depends on besides the user's files.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The node's settings.
    pub settings: &'a Settings,
    /// Facts about the node's Nix.
    pub node: &'a NodeFacts,
    /// The attribute of the config's value to use (`nixenv.attr`).
    pub attr: Option<&'a str>,
}

/// Facts about the node's Nix, so that a warm start need not ask Nix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// What `nix --version` ends with: `2.8.0`.
    pub nix_version: String,
    /// The system double that configs are evaluated for: `x86_64-linux`.
    pub system: String,
}

impl World<'_> {
    fn hasher(&self, purpose: &str) -> FieldHasher {
        FieldHasher::new(purpose)
            .field(FORMAT.to_le_bytes())
            .field(PRELUDE)
            .field(self.settings.evaluation_digest().as_bytes())
            .field(&self.node.nix_version)
            .field(&self.node.system)
            .optional(self.attr)
    }

    /// The key of the environment that `archive` (the digest of a snapshot's Nix archive) and `entry` (the path
    /// of the entry file in it) give.
    #[must_use]
    pub fn key(&self, archive: &Digest, entry: &str) -> Key {
        Key(self.hasher("nixenv environment").field(archive.as_bytes()).field(entry).finish())
    }

    /// The selector for an entry file with this base name and content.
    #[must_use]
    pub fn selector(&self, entry_name: &str, content: &Digest) -> Selector {
        Selector(self.hasher("nixenv selector").field(entry_name).field(content.as_bytes()).finish())
    }
}

impl ViewId {
    /// The address of a closure, in any order.
    #[must_use]
    pub fn of_closure(closure: &[StorePath]) -> Self {
        let mut names: Vec<&str> = closure.iter().map(StorePath::base_name).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.iter().fold(FieldHasher::new("nixenv view"), |hasher, name| hasher.field(name)).finish())
    }
}
