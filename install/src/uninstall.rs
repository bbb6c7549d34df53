//! `nixenv uninstall`: undoes what `nixenv install` did.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use environment::hold;
use environment::layout::Layout;

use crate::change;
use crate::receipt::{Change, Receipt};
use crate::{nix, service, snapshots};

/// Undo what `nixenv install` did on this node.
///
/// Environments stay in /var/lib/nixenv, so that a later installation starts warm, unless --purge is given.
#[derive(Args)]
pub struct Uninstall {
    /// Remove every environment and its GC root as well.
    #[arg(long)]
    purge: bool,
    /// Go on although containers use the snapshotter, or with --purge images do: they are lost.
    #[arg(long)]
    force: bool,
}

impl Uninstall {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(rustix::process::geteuid().is_root(), "only root can uninstall; run it with sudo");
        let layout = Layout::node();
        let mut receipt = Receipt::load(&layout)?;
        if receipt.changes.is_empty() && !self.purge {
            say!("there is no receipt of an installation on this node; there is nothing to undo");
            return Ok(ExitCode::SUCCESS);
        }
        hold::sweep(&layout)?;
        let holds = hold::list(&layout)?.len();
        ensure!(holds == 0, "{holds} running containers are in an environment; stop them first");
        let root = snapshots::root(&layout)?;
        if !self.force {
            self.check_snapshots(&root)?;
        }
        let restart = service::systemd_runs() && receipt.changes.iter().any(Change::concerns_containerd);
        // What runs ends first; a process may still need the files that are removed next.
        receipt.changes.sort_by_key(|change| matches!(change, Change::Unit { .. } | Change::Process { .. }));
        while let Some(change) = receipt.changes.pop() {
            if let Some(left) = change::undo(&layout, &change)? {
                say!("kept: {left}");
            }
            if self.purge && matches!(change, Change::Unit { .. } | Change::Process { .. }) {
                remove_all(&layout.gc_roots())?;
            }
            receipt.save(&layout)?;
        }
        if restart {
            nix::output("systemctl", ["daemon-reload"])?;
            nix::output("systemctl", ["try-restart", "containerd.service"])?;
        }
        unmount_views(&layout)?;
        if self.purge {
            remove_all(&layout.gc_roots())?;
            remove_all(&layout.state())?;
            remove_all(&root)?;
        } else {
            remove(&Receipt::path(&layout))?;
            remove_all(&change::backups(&layout))?;
            let state = layout.state();
            match fs::remove_dir(&state) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy && entries(&state)?.is_empty() => {}
                // A mount point is busy before it is found not to be empty.
                Err(error)
                    if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) =>
                {
                    say!("kept: the environments and snapshots in {}; --purge removes them", state.display());
                }
                outcome => absent_is_fine(outcome, &state)?,
            }
        }
        say!("nixenv is no longer installed on this node");
        Ok(ExitCode::SUCCESS)
    }
}

impl Uninstall {
    /// Refuses to take the snapshotter away from those who need it, and says who they are.
    fn check_snapshots(&self, root: &Path) -> Result<()> {
        if !snapshots::any(root) {
            return Ok(());
        }
        let contents = snapshots::contents().context(
            "cannot tell who uses the snapshotter; start containerd and nixenv-snapshotter, or give --force",
        )?;
        if contents.is_empty() {
            return Ok(());
        }
        let listed = contents.iter().map(ToString::to_string).collect::<String>();
        if contents.iter().any(|namespace| !namespace.containers.is_empty()) {
            bail!(
                "containers use the snapshotter; remove them first, or give --force and lose them:\n{listed}"
            );
        }
        if self.purge {
            bail!(
                "images are in the snapshotter; remove them first, or give --force and lose them:\n{listed}"
            );
        }
        say!(
            "kept: these images are in the snapshotter, which containerd will not know any more; pull them again:"
        );
        say!("{}", listed.trim_end());
        Ok(())
    }
}

fn unmount_views(layout: &Layout) -> Result<()> {
    for view in entries(&layout.mount_points())? {
        environment::view::unmount(&view)?;
    }
    remove_all(&layout.run())
}

/// The entries of a directory; one that is absent has none.
fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("cannot read {}", directory.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

fn remove(path: &Path) -> Result<()> {
    absent_is_fine(fs::remove_file(path), path)
}

/// Removes a directory with what is in it; one that is a mount point is only emptied.
fn remove_all(path: &Path) -> Result<()> {
    let is_empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy && is_empty() => Ok(()),
        outcome => absent_is_fine(outcome, path),
    }
}

fn absent_is_fine(outcome: std::io::Result<()>, path: &Path) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
