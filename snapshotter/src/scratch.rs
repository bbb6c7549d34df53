//! The directory of one piece of work, and the GC roots that protect what Nix makes for it.
//!
//! ```text
//! /var/lib/nixenv/scratch/XXXXXX/    root's
//!   config/                          the user's files, unpacked
//!   settings/nix.conf                Nix's settings
//!   output/                          Nix's home: the only place where it can write
//!   root/                            where its root file system is mounted
//! ```
//!
//! Nix's own `--add-root` and `--profile` put links into `output`, to which the Nix daemon then points from
//! `gcroots/auto`; for it to find them the paths inside the sandbox are those outside.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use environment::key::Key;
use environment::layout::Layout;
use environment::store_path::StorePath;
use tempfile::TempDir;

use crate::nix::Account;

/// Nix's settings here; nothing of a `nix.conf` of the node's or a user's applies.
const NIX_CONF: &str = "\
pure-eval = true
allow-import-from-derivation = false
experimental-features = nix-command
";

/// A directory for one piece of work; dropped, it and its GC roots are removed.
#[derive(Debug)]
pub struct Scratch {
    /// Whom `output` belongs to.
    pub account: Account,
    directory: TempDir,
    roots: Roots,
}

/// A directory that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct ScratchError {
    path: PathBuf,
    source: io::Error,
}

impl Scratch {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(layout: &Layout, account: Account) -> Result<Self, ScratchError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ScratchError { path, source }
        };
        let parent = layout.scratch();
        let directory = TempDir::new_in(&parent).map_err(failed(&parent))?;
        let scratch = Self { account, directory, roots: Roots { layout: layout.clone(), links: Vec::new() } };
        for path in [scratch.settings(), scratch.output(), scratch.root()] {
            fs::create_dir(&path).map_err(failed(&path))?;
        }
        let output = scratch.output();
        chown(&output, Some(account.user), Some(account.group))
            .and_then(|()| fs::set_permissions(&output, Permissions::from_mode(0o700)))
            .map_err(failed(&output))?;
        let settings = scratch.settings().join("nix.conf");
        fs::write(&settings, NIX_CONF).map_err(failed(&settings))?;
        Ok(scratch)
    }

    /// The user's files; not made yet.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// The directory of Nix's settings.
    pub fn settings(&self) -> PathBuf {
        self.directory.path().join("settings")
    }

    /// Where Nix can write.
    pub fn output(&self) -> PathBuf {
        self.directory.path().join("output")
    }

    /// Where Nix's root file system is mounted.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Protects `path`, which need not exist yet, for as long as this piece of work takes.
    ///
    /// # Errors
    /// When the GC root cannot be written.
    pub fn protect(&mut self, path: &StorePath) -> Result<(), ScratchError> {
        let name = self.directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let link = self.roots.layout.gc_roots().join(format!("{name}-{}", self.roots.links.len()));
        symlink(path.as_str(), &link).map_err(|source| ScratchError { path: link.clone(), source })?;
        self.roots.links.push(link);
        Ok(())
    }
}

/// What a link that Nix made in `output` finally leads to: a store path, through links in the same directory only.
///
/// # Errors
/// When it is no such link. Whoever evaluated may have made it, so nothing is followed that leads elsewhere.
pub fn read_root(link: &Path) -> io::Result<StorePath> {
    let mut link = link.to_owned();
    for _ in 0..3 {
        let target = fs::read_link(&link)?;
        if let Some(path) = target.to_str().and_then(|target| target.parse().ok()) {
            return Ok(path);
        }
        let name = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
        link = link.with_file_name(name);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} leads to no store path", link.display())))
}

/// Direct GC roots of a piece of work, and the indirect ones that Nix made for it.
#[derive(Debug)]
struct Roots {
    layout: Layout,
    links: Vec<PathBuf>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for link in &self.roots.links {
            let _ = fs::remove_file(link);
        }
        remove_indirect_roots(&self.roots.layout, self.directory.path());
    }
}

/// Removes the links in Nix's `gcroots/auto` that lead into `directory`; Nix itself does so only when it collects.
pub fn remove_indirect_roots(layout: &Layout, directory: &Path) {
    let automatic = layout.gc_roots().with_file_name("auto");
    for entry in fs::read_dir(automatic).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(directory)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the direct GC roots of work that ended with its daemon: those that are named for no environment.
pub fn remove_direct_roots(layout: &Layout) {
    for entry in fs::read_dir(layout.gc_roots()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().parse::<Key>().is_err() {
            let _ = fs::remove_file(entry.path());
        }
    }
}
