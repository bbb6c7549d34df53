//! What layers show of the node's store instead of holding it.
//!
//! A layer's stub has an entry for each store path. Unpacked, the layer would take the sum of their sizes: that is what
//! it saves. Sizes are those of Nix's archives of the paths, which Nix knows without a look at the disk.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use environment::layout::Layout;
use environment::protocol::StoreLayers;
use environment::store_path::{STORE_DIR, StorePath};

use super::closure::{RealiseError, Store};
use crate::nix::Node;

/// What was learnt about layers and store paths; neither changes.
#[derive(Debug, Default)]
pub(super) struct Savings {
    layers: HashMap<u64, Layer>,
    sizes: HashMap<Arc<StorePath>, u64>,
}

/// A layer's store paths.
#[derive(Debug)]
struct Layer {
    /// When its stub was made: a snapshot that is made anew has another.
    version: (i64, i64),
    paths: Vec<Arc<StorePath>>,
}

impl Savings {
    /// Looks at the stubs of those `snapshots` that have GC roots.
    pub(super) fn look(&mut self, snapshots: &Path, layout: &Layout, node: &Node) -> StoreLayers {
        self.find_layers(snapshots, &layout.snapshot_gc_roots());
        let unknown: Vec<StorePath> = self
            .layers
            .values()
            .flat_map(|layer| &layer.paths)
            .filter(|path| !self.sizes.contains_key(*path))
            .map(|path| StorePath::clone(path))
            .collect::<HashSet<_>>()
            .into_iter()
            .collect();
        if !unknown.is_empty() {
            match sizes(layout, node, &unknown) {
                Ok(sizes) => self.sizes.extend(unknown.into_iter().map(Arc::new).zip(sizes)),
                Err(error) => {
                    tracing::debug!(
                        "the sizes of store paths are not known: {:#}",
                        anyhow::Error::new(error)
                    );
                }
            }
        }
        self.sum()
    }

    fn find_layers(&mut self, snapshots: &Path, roots: &Path) {
        let mut found = HashMap::new();
        for entry in fs::read_dir(roots).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
                continue;
            };
            let stub = snapshots.join(id.to_string()).join("stub/nix/store");
            // It is not there before the snapshot is.
            let Ok(metadata) = fs::metadata(&stub) else { continue };
            let version = (metadata.mtime(), metadata.mtime_nsec());
            let layer = match self.layers.remove(&id) {
                Some(known) if known.version == version => known,
                _ => Layer { version, paths: self.read_stub(&stub) },
            };
            found.insert(id, layer);
        }
        self.layers = found;
    }

    fn read_stub(&self, stub: &Path) -> Vec<Arc<StorePath>> {
        let entries = fs::read_dir(stub).into_iter().flatten().flatten();
        let paths =
            entries.filter_map(|entry| format!("{STORE_DIR}/{}", entry.file_name().to_str()?).parse().ok());
        paths
            .map(|path: StorePath| match self.sizes.get_key_value(&path) {
                Some((known, _)) => Arc::clone(known),
                None => Arc::new(path),
            })
            .collect()
    }

    fn sum(&self) -> StoreLayers {
        let mut sum = StoreLayers { layers: self.layers.len() as u64, ..StoreLayers::default() };
        let mut seen = HashSet::new();
        for path in self.layers.values().flat_map(|layer| &layer.paths) {
            let bytes = self.sizes.get(path).copied().unwrap_or_default();
            sum.paths += 1;
            sum.bytes += bytes;
            if seen.insert(path) {
                sum.distinct_paths += 1;
                sum.distinct_bytes += bytes;
            }
        }
        sum
    }
}

fn sizes(layout: &Layout, node: &Node, paths: &[StorePath]) -> Result<Vec<u64>, RealiseError> {
    Store::open(layout, node, &layout.store())?.sizes(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        format!("{STORE_DIR}/{}-{name}", "a".repeat(32)).parse().unwrap()
    }

    /// A snapshot with a stub of these paths; the directory has the GC roots, too.
    fn layer(directory: &Path, id: u64, paths: &[&str]) {
        for name in paths {
            let stub = directory.join(id.to_string()).join("stub/nix/store");
            fs::create_dir_all(stub.join(path(name).base_name())).unwrap();
        }
    }

    #[test]
    fn paths_that_layers_share_count_for_each_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        layer(directory, 1, &["a", "b"]);
        layer(directory, 2, &["b", "c"]);
        fs::create_dir(directory.join("new-3")).unwrap();
        fs::create_dir(directory.join("4")).unwrap();
        let mut savings = Savings::default();
        for (name, bytes) in [("a", 1), ("b", 10), ("c", 100)] {
            savings.sizes.insert(Arc::new(path(name)), bytes);
        }
        savings.find_layers(directory, directory);
        let sum = StoreLayers { layers: 2, paths: 4, bytes: 121, distinct_paths: 3, distinct_bytes: 111 };
        assert_eq!(savings.sum(), sum);

        fs::remove_dir_all(directory.join("1")).unwrap();
        layer(directory, 2, &["a"]);
        savings.find_layers(directory, directory);
        let sum = StoreLayers { layers: 1, paths: 3, bytes: 111, distinct_paths: 3, distinct_bytes: 111 };
        assert_eq!(savings.sum(), sum);
    }
}
