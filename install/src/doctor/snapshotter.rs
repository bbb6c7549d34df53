//! The checks of the snapshotter.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use environment::layout::Layout;
use rustix::fs::{Dir, FileType, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Finding::{self, Good, Warning};
use super::{demand, directory_on_the_disk_of};
use crate::containerd::{self, Containerd};
use crate::containerd_config::{self, SNAPSHOTTER};
use crate::receipt::{Change, Edit, Receipt};
use crate::status::plugin_status;
use crate::{nix, snapshots};

/// containerd knows the snapshotter, which answers.
pub fn registered(layout: &Layout) -> Finding {
    let look = || -> Result<String> {
        let socket = layout.snapshotter_socket();
        UnixStream::connect(&socket).with_context(|| format!("does not answer at {}", socket.display()))?;
        let plugins = nix::output("ctr", ["plugins", "list"])?;
        match plugin_status(&plugins).as_deref() {
            Some("ok") => {
                Ok(format!("containerd knows it as {SNAPSHOTTER}; it answers at {}", socket.display()))
            }
            Some(status) => bail!("containerd knows {SNAPSHOTTER} with the status '{status}'"),
            None => bail!("containerd does not know the snapshotter {SNAPSHOTTER}"),
        }
    };
    demand(look(), "run `nixenv install`, then restart containerd")
}

/// Whoever was made to use the snapshotter by default does.
pub fn defaults(layout: &Layout) -> Finding {
    let look = || -> Result<String> {
        let receipt = Receipt::load(layout)?;
        let mut users = Vec::new();
        for change in &receipt.changes {
            let (Change::Edit { path, .. } | Change::File { path, .. }) = change else { continue };
            match change {
                Change::Edit { edit: Edit::Nerdctl(line), .. } => {
                    let text = fs::read_to_string(path).unwrap_or_default();
                    ensure!(line.add_to(&text)? == text, "{} does not say it any more", path.display());
                    users.push("nerdctl");
                }
                Change::Edit { edit: Edit::Containerd(_), .. } => users.extend(of_containerd(path)?),
                Change::File { .. } if path.ends_with("nixenv.toml") => users.extend(of_containerd(path)?),
                _ => {}
            }
        }
        Ok(match users[..] {
            [] => format!("nobody's default; `--snapshotter {SNAPSHOTTER}` chooses it"),
            _ => format!("the default of {}", users.join(", ")),
        })
    };
    match look() {
        Ok(found) => Good(found),
        Err(error) => Warning(format!("{error:#}"), "run `nixenv install` again"),
    }
}

/// Which parts of containerd use the snapshotter, as our lines in `place` say; containerd must read the same.
fn of_containerd(place: &Path) -> Result<Vec<&'static str>> {
    const PARTS: [&str; 2] = ["Kubernetes' interface", "the transfer service"];
    let text = fs::read_to_string(place).with_context(|| format!("cannot read {}", place.display()))?;
    let (ours, read) = (
        containerd_config::defaults(&text)?,
        containerd_config::defaults(&containerd::merged_config(&Containerd::find()?.config)?)?,
    );
    let mut users = Vec::new();
    for (part, ours, read) in [(PARTS[0], ours.0, read.0), (PARTS[1], ours.1, read.1)] {
        ensure!(!ours || read, "another file hides that {SNAPSHOTTER} is for {part}");
        users.extend(ours.then_some(part));
    }
    Ok(users)
}

/// The file system with the snapshots can have the upper directory of an overlay.
pub fn file_system(layout: &Layout) -> Finding {
    let try_it = || -> Result<String> {
        let root = snapshots::root(layout)?;
        let trial = directory_on_the_disk_of(&root)?;
        let path = |name: &str| trial.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(path(name))?;
        }
        fs::write(path("lower/file"), "")?;
        let entries = Dir::new(rustix::fs::open(
            path("lower"),
            OFlags::RDONLY | OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )?)?;
        for entry in entries {
            ensure!(
                entry?.file_type() != FileType::Unknown,
                "directories do not tell the types of their entries (d_type)"
            );
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| path(name).display().to_string());
        let options = std::ffi::CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))?;
        mount("overlay", path("merged"), "overlay", MountFlags::empty(), Some(&*options))
            .context("an overlay cannot be mounted")?;
        let removed = fs::remove_file(path("merged/file"));
        unmount(path("merged"), UnmountFlags::DETACH)?;
        removed.context("a file of a lower layer cannot be removed")?;
        let whiteout = fs::symlink_metadata(path("upper/file"))?;
        ensure!(whiteout.file_type().is_char_device(), "removing a file of a lower layer left no trace");
        Ok(format!("an overlay over {} was mounted and written to", root.display()))
    };
    demand(
        try_it(),
        "put it on ext4, xfs (with ftype=1) or btrfs: `root` in the section [snapshotter] of the settings moves it",
    )
}
