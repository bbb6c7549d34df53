//! Manifests and input lists on disk; the two-step look-up of a warm start.
//!
//! As in ccache's direct mode: the entry file's content finds the lists of inputs that were observed with it
//! ([`Selector`]); the list that still holds names the environment ([`Key`]). Nothing is trusted by its time stamp.
//! What is published is complete: written under another name, synchronised, renamed.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::key::{Key, NodeFacts, Selector};
use crate::layout::Layout;
use crate::manifest::{Manifest, ReadManifestError, load_sealed, seal};
use crate::snapshot::Inputs;
use crate::store_path::StorePath;

/// Lists of inputs kept for one entry file; more are forgotten, oldest first.
const MAX_CANDIDATES: usize = 64;

/// One list of inputs, and the environment that they gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// What was observed.
    pub inputs: Inputs,
    /// The key of the environment.
    pub key: Key,
}

/// A record that cannot be made durable.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct PublishError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A closure that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadClosureError {
    /// Its file cannot be read.
    #[error("cannot read the closure {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is no store path.
    #[error("the closure {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which.
        source: crate::store_path::ParseStorePathError,
    },
}

/// Makes the directories of the state, root's alone, and removes what an interrupted publication left.
///
/// # Errors
/// When a directory cannot be made.
pub fn prepare_directories(layout: &Layout) -> Result<(), PublishError> {
    for path in [layout.state(), layout.environments(), layout.inputs(), layout.stubs(), layout.scratch()] {
        let failed = |source| PublishError { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    for directory in [layout.environments(), layout.inputs(), layout.state()] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("new-") {
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
    }
    Ok(())
}

/// Writes `content` to `path`, mode 0600, so that after a crash it is there whole or not at all.
///
/// # Errors
/// When a step fails; `path` is then as it was.
pub fn write_durably(path: &Path, content: &[u8]) -> Result<(), PublishError> {
    let failed = |source| PublishError { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix("new-").tempfile_in(directory).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_directory(directory)
}

/// Publishes an environment; its GC root and its stub must be there already. One that is there is replaced.
///
/// # Errors
/// When a step fails; what was there by then stays.
pub fn publish(layout: &Layout, manifest: &Manifest, closure: &[StorePath]) -> Result<(), PublishError> {
    let target = layout.environment(&manifest.key);
    let parent = layout.environments();
    let failed = |source| PublishError { path: target.clone(), source };
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(&parent).map_err(failed)?;
    let mut names: Vec<&str> = closure.iter().map(StorePath::as_str).collect();
    names.sort_unstable();
    write_durably(&new.path().join("closure"), (names.join("\n") + "\n").as_bytes())?;
    write_durably(&new.path().join("manifest.json"), &manifest.encode())?;
    if target.exists() {
        // Not atomic on purpose: between the two steps the environment is absent, which is a miss.
        fs::remove_dir_all(&target).map_err(failed)?;
    }
    fs::rename(new.keep(), &target).map_err(failed)?;
    sync_directory(&parent)
}

/// Remembers that `inputs` gave the environment `key`.
///
/// # Errors
/// When the list cannot be written; what was there stays.
pub fn record_inputs(
    layout: &Layout,
    selector: &Selector,
    inputs: &Inputs,
    key: &Key,
) -> Result<(), PublishError> {
    let new = Candidate { inputs: inputs.clone(), key: *key };
    let mut candidates = load_candidates(layout, selector).unwrap_or_default();
    if candidates.first() == Some(&new) {
        return Ok(());
    }
    candidates.retain(|candidate| candidate.inputs != new.inputs);
    candidates.insert(0, new);
    candidates.truncate(MAX_CANDIDATES);
    write_durably(&layout.inputs_of(selector), &seal("inputs", &candidates))
}

/// The lists of inputs observed with an entry file, newest first.
///
/// # Errors
/// When the record is there and cannot be used.
pub fn load_candidates(layout: &Layout, selector: &Selector) -> Result<Vec<Candidate>, ReadManifestError> {
    match load_sealed("inputs", &layout.inputs_of(selector)) {
        Err(ReadManifestError::Absent { .. }) => Ok(Vec::new()),
        result => result,
    }
}

/// The facts about the node's Nix, as the daemon wrote them last.
#[must_use]
pub fn load_node_facts(layout: &Layout) -> Option<NodeFacts> {
    load_sealed("node", &layout.node_facts()).ok()
}

/// Writes the facts about the node's Nix, unless they stand there already.
///
/// # Errors
/// When they cannot be written.
pub fn record_node_facts(layout: &Layout, facts: &NodeFacts) -> Result<(), PublishError> {
    if load_node_facts(layout).as_ref() == Some(facts) {
        return Ok(());
    }
    write_durably(&layout.node_facts(), &seal("node", facts))
}

/// Reads and verifies an environment: its manifest, and that its stub and its GC root are there.
///
/// # Errors
/// When it cannot be used; to the caller that is a miss.
pub fn load_environment(layout: &Layout, key: &Key) -> Result<Manifest, ReadManifestError> {
    let path = layout.manifest(key);
    let manifest = Manifest::load(&path, key)?;
    if !layout.stub(&manifest.view).is_dir() {
        return Err(ReadManifestError::Damaged { path, what: "the stub of its view is gone" });
    }
    if fs::metadata(layout.gc_root(key)).is_err() {
        return Err(ReadManifestError::Damaged { path, what: "its GC root is gone" });
    }
    Ok(manifest)
}

/// The store paths of an environment's closure, sorted.
///
/// # Errors
/// When they cannot be read.
pub fn load_closure(layout: &Layout, key: &Key) -> Result<Vec<StorePath>, LoadClosureError> {
    let path = layout.closure(key);
    let text =
        fs::read_to_string(&path).map_err(|source| LoadClosureError::Read { path: path.clone(), source })?;
    text.lines()
        .map(|line| line.parse().map_err(|source| LoadClosureError::Damaged { path: path.clone(), source }))
        .collect()
}

/// Every environment that can be used, newest first.
///
/// # Errors
/// When the directory of environments is there and cannot be read.
pub fn list(layout: &Layout) -> io::Result<Vec<Manifest>> {
    let entries = match fs::read_dir(layout.environments()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let keys = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Key>().ok());
    let mut manifests: Vec<Manifest> = keys.filter_map(|key| load_environment(layout, &key).ok()).collect();
    manifests.sort_by_key(|manifest| std::cmp::Reverse(manifest.created));
    Ok(manifests)
}

fn sync_directory(path: &Path) -> Result<(), PublishError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| PublishError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::digest::Digest;
    use crate::key::{ViewId, World};
    use crate::settings::Settings;
    use crate::snapshot::Observation;

    fn node() -> (tempfile::TempDir, Layout, Manifest, Selector) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        prepare_directories(&layout).unwrap();
        let facts = NodeFacts { nix_version: "2.8.0".into(), system: "x86_64-linux".into() };
        let settings = Settings::default();
        let world = World { settings: &settings, node: &facts, attr: None };
        let key = world.key(&Digest::of(b"a"), "config.nix");
        let selector = world.selector("config.nix", &Digest::of(b"b"));
        let manifest = Manifest {
            key,
            origin: "config.nix".into(),
            variables: BTreeMap::new(),
            shell_hook: None,
            view: ViewId::of_closure(&[]),
            closure_paths: 0,
            closure_bytes: 0,
            node: facts,
            created: 0,
            evaluation_ms: 0,
            build_ms: 0,
            warnings: Vec::new(),
        };
        fs::create_dir(layout.stub(&manifest.view)).unwrap();
        fs::create_dir_all(layout.gc_roots()).unwrap();
        symlink("/", layout.gc_root(&key)).unwrap();
        (directory, layout, manifest, selector)
    }

    #[test]
    fn what_is_published_is_found_and_may_be_replaced() {
        let (_directory, layout, mut manifest, _) = node();
        publish(&layout, &manifest, &[]).unwrap();
        assert_eq!(load_environment(&layout, &manifest.key).unwrap(), manifest);
        manifest.created = 1;
        publish(&layout, &manifest, &[]).unwrap();
        assert_eq!(list(&layout).unwrap(), [manifest]);
    }

    #[test]
    fn an_environment_without_stub_or_root_is_a_miss() {
        let (_directory, layout, manifest, _) = node();
        publish(&layout, &manifest, &[]).unwrap();
        fs::remove_file(layout.gc_root(&manifest.key)).unwrap();
        assert!(load_environment(&layout, &manifest.key).is_err());
        symlink("/", layout.gc_root(&manifest.key)).unwrap();
        fs::remove_dir(layout.stub(&manifest.view)).unwrap();
        assert!(load_environment(&layout, &manifest.key).is_err());
    }

    #[test]
    fn candidates_are_newest_first_and_bounded() {
        let (_directory, layout, manifest, selector) = node();
        let inputs = |index: usize| Inputs(vec![(index.to_string(), Observation::Absent)]);
        for index in 0..MAX_CANDIDATES + 3 {
            record_inputs(&layout, &selector, &inputs(index), &manifest.key).unwrap();
        }
        record_inputs(&layout, &selector, &inputs(10), &manifest.key).unwrap();
        let candidates = load_candidates(&layout, &selector).unwrap();
        assert_eq!(candidates.len(), MAX_CANDIDATES);
        assert_eq!(candidates[0].inputs, inputs(10));
        assert_eq!(candidates[1].inputs, inputs(MAX_CANDIDATES + 2));
    }

    #[test]
    fn damaged_candidates_are_reported_and_overwritten() {
        let (_directory, layout, manifest, selector) = node();
        record_inputs(&layout, &selector, &Inputs::default(), &manifest.key).unwrap();
        let path = layout.inputs_of(&selector);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(load_candidates(&layout, &selector).is_err());
        record_inputs(&layout, &selector, &Inputs::default(), &manifest.key).unwrap();
        assert_eq!(load_candidates(&layout, &selector).unwrap().len(), 1);
    }

    #[test]
    fn what_an_interrupted_publication_left_is_removed() {
        let (_directory, layout, manifest, _) = node();
        publish(&layout, &manifest, &[]).unwrap();
        fs::create_dir(layout.environments().join("new-x")).unwrap();
        fs::write(layout.inputs().join("new-y"), "").unwrap();
        prepare_directories(&layout).unwrap();
        assert_eq!(fs::read_dir(layout.environments()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(layout.inputs()).unwrap().count(), 0);
    }
}
