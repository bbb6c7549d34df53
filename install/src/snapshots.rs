//! What is in the snapshotter, as containerd knows it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use environment::layout::Layout;
use environment::settings::Settings;

use crate::containerd_config::SNAPSHOTTER;
use crate::nix;

/// What one of containerd's namespaces has in the snapshotter.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    /// The namespace.
    pub namespace: String,
    /// The containers whose file systems are there, by the names of their snapshots.
    pub containers: Vec<String>,
    /// The images that are unpacked there.
    pub images: Vec<String>,
    /// Snapshots of all kinds.
    pub snapshots: usize,
}

/// Where the snapshots are.
pub fn root(layout: &Layout) -> Result<PathBuf> {
    let settings = Settings::load(&layout.settings())?;
    Ok(settings.snapshotter.root.unwrap_or_else(|| layout.snapshotter()))
}

/// Whether there is a snapshot on the disk.
pub fn any(root: &Path) -> bool {
    fs::read_dir(root.join("snapshots")).is_ok_and(|mut entries| entries.next().is_some())
}

/// What is in the snapshotter, by namespace.
///
/// # Errors
/// When containerd or the snapshotter does not answer.
pub fn contents() -> Result<Vec<Contents>> {
    let mut all = Vec::new();
    for namespace in ctr("default", &["namespaces", "list", "--quiet"])?.lines() {
        let listed = ctr(namespace, &["snapshots", "--snapshotter", SNAPSHOTTER, "list"])?;
        let keys: Vec<_> = keys(&listed).collect();
        if keys.is_empty() {
            continue;
        }
        let known = ctr(namespace, &["containers", "list", "--quiet"])?;
        // Who looks into an image makes snapshots for that, too.
        let containers = known.lines().filter(|id| keys.contains(id)).map(str::to_owned).collect();
        let checked = ctr(namespace, &["images", "check", "--snapshotter", SNAPSHOTTER])?;
        let images = parse_images(&checked);
        all.push(Contents { namespace: namespace.to_owned(), containers, images, snapshots: keys.len() });
    }
    Ok(all)
}

fn ctr(namespace: &str, arguments: &[&str]) -> Result<String> {
    nix::output("ctr", ["--namespace", namespace].iter().chain(arguments)).context("cannot ask containerd")
}

/// The keys in what `ctr snapshots list` prints: key, parent and kind.
fn keys(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().skip(1).filter_map(|line| line.split_whitespace().next())
}

/// The images that are unpacked in what `ctr images check` prints: names first, `true` or `false` last.
fn parse_images(checked: &str) -> Vec<String> {
    let unpacked = checked.lines().skip(1).filter(|line| line.split_whitespace().next_back() == Some("true"));
    unpacked.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, containers, images, snapshots } = self;
        writeln!(f, "  namespace {namespace}: {snapshots} snapshots")?;
        for container in containers {
            writeln!(f, "    container {container}: nerdctl --namespace {namespace} rm --force {container}")?;
        }
        for image in images {
            writeln!(f, "    image {image}: ctr --namespace {namespace} images remove {image}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_unpacked_are_told_from_others() {
        let checked = "REF TYPE DIGEST STATUS SIZE UNPACKED\n\
            docker.io/library/busybox:latest application/x sha256:aa complete (2/2) 1.0 MiB/1.0 MiB true\n\
            docker.io/library/other:latest   application/x sha256:bb incomplete (1/2) 1.0 MiB/2.0 MiB false\n";
        assert_eq!(parse_images(checked), ["docker.io/library/busybox:latest"]);
    }
}
