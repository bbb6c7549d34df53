//! What an earlier daemon left behind.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context as _;
use environment::layout::Layout;
use environment::{cache, hits, hold};

use crate::{publish, scratch};

/// Makes the directories, and removes what is neither published nor in use: this daemon is the only one.
///
/// # Errors
/// When the directories cannot be made. What cannot be removed is logged.
pub fn recover(layout: &Layout) -> anyhow::Result<()> {
    // What Nix evaluates is read by another user.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    cache::prepare_directories(layout)
        .with_context(|| format!("cannot prepare {}", layout.state().display()))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(layout.gc_roots())
        .with_context(|| format!("cannot make {}; is Nix installed?", layout.gc_roots().display()))
        .unwrap_or_else(|error| tracing::warn!("{error:#}"));
    empty(&layout.scratch());
    scratch::remove_indirect_roots(layout, &layout.scratch());
    scratch::remove_direct_roots(layout);
    remove_unfinished(&layout.baselines());
    publish::remove_orphans(layout);
    if let Err(error) = hits::begin(layout) {
        tracing::warn!(%error, "warm starts are not counted");
    }
    match hold::sweep(layout) {
        Ok(0) => {}
        Ok(holds) => tracing::info!(holds, "released what containers that are gone held"),
        Err(error) => tracing::warn!("{:#}", anyhow::Error::new(error)),
    }
    Ok(())
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Err(error) = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)) {
            tracing::warn!(path = %path.display(), %error, "cannot remove unfinished work");
        }
    }
}

fn remove_unfinished(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("new-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}
