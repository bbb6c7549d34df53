//! The parsers of the snapshotter, by themselves: with the services around them a build would take minutes.

#![allow(dead_code, reason = "the targets call the parsers alone")]

use std::time::SystemTime;

/// The modules that have no more than the parsers in them, where the program has them.
#[path = "../../src/snapshots"]
pub mod snapshots {
    pub mod filter;
    pub mod id_mapping;
    pub mod info;

    pub mod layer {
        pub mod labels;

        /// The store paths that labels were taken to name.
        pub fn paths(named: labels::NamedPaths) -> Vec<environment::store_path::StorePath> {
            match named.paths {
                labels::Paths::Closure(path) => vec![path],
                labels::Paths::Listed(paths) => paths,
            }
        }
    }
}

use snapshots::info::{Info, Kind, Labels};

/// A snapshot with labels.
pub fn snapshot(labels: Labels) -> Info {
    let now = SystemTime::UNIX_EPOCH;
    Info {
        name: "name".into(),
        parent: String::new(),
        kind: Kind::Active,
        labels,
        created: now,
        updated: now,
    }
}

/// The labels `KEY=VALUE` of a text, one a line; below `containerd.io/snapshot/`, where a key begins with `/`.
pub fn labels(text: &str) -> Labels {
    let label = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let key = key.strip_prefix('/').map_or(key.to_owned(), |key| format!("containerd.io/snapshot/{key}"));
        Some((key, value.to_owned()))
    };
    text.lines().filter_map(label).collect()
}

/// Fails when a message is long: it travels in a header.
pub fn assert_is_short(error: &impl std::error::Error) {
    let length = error.to_string().len();
    assert!(length < 2048, "{length} bytes");
}
