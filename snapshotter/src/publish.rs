//! Environment to disk: the stub, then the GC root, then the manifest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use environment::cache::{self, PublishError};
use environment::key::{Key, ViewId};
use environment::layout::Layout;
use environment::manifest::Manifest;
use environment::store_path::StorePath;
use environment::view::{self, ViewError};

/// An environment that cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishEnvironmentError {
    /// The stub of its view cannot be made.
    #[error("cannot make the environment's view")]
    View(#[source] ViewError),
    /// It cannot be protected.
    #[error("cannot write the GC root {path}")]
    Root {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its manifest cannot be written.
    #[error("cannot publish the environment")]
    Manifest(#[source] PublishError),
}

/// Publishes an environment, whose GC root leads to `root`. After a failure nothing of it is left.
///
/// # Errors
/// When a step fails.
pub fn publish(
    layout: &Layout,
    manifest: &Manifest,
    root: &StorePath,
    closure: &[StorePath],
) -> Result<(), PublishEnvironmentError> {
    let result = make_root(layout, &manifest.key, root)
        .and_then(|()| cache::publish(layout, manifest, closure).map_err(PublishEnvironmentError::Manifest));
    if result.is_err() {
        remove_orphans(layout);
    }
    result
}

/// Makes the stub of a closure's view.
///
/// # Errors
/// When it cannot be written.
pub fn build_view(layout: &Layout, closure: &[StorePath]) -> Result<ViewId, PublishEnvironmentError> {
    view::build_stub(layout, closure).map_err(|error| {
        remove_orphans(layout);
        PublishEnvironmentError::View(error)
    })
}

fn make_root(layout: &Layout, key: &Key, target: &StorePath) -> Result<(), PublishEnvironmentError> {
    let path = layout.gc_root(key);
    let new = path.with_file_name(format!("new-{key}"));
    let make = || {
        let _ = fs::remove_file(&new);
        symlink(target.as_str(), &new)?;
        fs::rename(&new, &path)?;
        File::open(layout.gc_roots())?.sync_all()
    };
    make().map_err(|source| PublishEnvironmentError::Root { path: path.clone(), source })
}

/// Removes GC roots and stubs that no published environment has, and that no container can be using.
///
/// Whoever calls this must be the only one that publishes.
pub fn remove_orphans(layout: &Layout) {
    let keys = names(&layout.environments());
    let published: Vec<Manifest> = keys
        .iter()
        .filter_map(|name| name.parse::<Key>().ok())
        .filter_map(|key| Manifest::load(&layout.manifest(&key), &key).ok())
        .collect();
    let views: BTreeSet<String> = published.iter().map(|manifest| manifest.view.to_string()).collect();
    for name in names(&layout.gc_roots()) {
        let orphan =
            name.parse::<Key>().is_ok_and(|key| !published.iter().any(|manifest| manifest.key == key));
        if orphan || name.starts_with("new-") {
            log_removal("GC root", fs::remove_file(layout.gc_roots().join(&name)), &name);
        }
    }
    for name in names(&layout.stubs()) {
        // A view that is mounted, or may be, is somebody's.
        if !views.contains(&name) && !layout.mount_points().join(&name).exists() {
            log_removal("stub", fs::remove_dir_all(layout.stubs().join(&name)), &name);
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn log_removal(what: &str, result: io::Result<()>, name: &str) {
    match result {
        Ok(()) => tracing::info!(name, "removed a {what} that belongs to no environment"),
        Err(error) => tracing::warn!(name, %error, "cannot remove a {what} that belongs to no environment"),
    }
}
