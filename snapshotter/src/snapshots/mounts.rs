//! How a snapshot is mounted: what containerd's overlayfs snapshotter answers, and one mount for Nix layers.
//!
//! A chain without a Nix layer gets exactly what the built-in snapshotter gives it. With one it gets
//!
//! ```text
//! lowerdir=<contents of layers>:<mask>:<stubs of layers>:<root>/nix,redirect_dir=follow
//! ```
//!
//! The stubs redirect to `/store/NAME`, which the lowest layer, the node's `/nix`, has. Lookups go on below the layer
//! that redirects (kernel: `ovl_lookup`), so nothing that hides `/store` may lie between a stub and `/nix`: the mask,
//! which hides the names at the root of `/nix` from the container, lies above all stubs, and contents above the mask.

use std::fs;
use std::path::{Path, PathBuf};

use environment::settings::Snapshotter as Settings;

use super::id_mapping;
use super::info::{Kind, Labels};
use super::metadata::Ancestor;

const PARAMETERS: &str = "/sys/module/overlay/parameters";
/// The first kernel with id-mapped layers of overlayfs.
const ID_MAPPED_OVERLAY: (u32, u32) = (5, 19);
/// `TMPFS_MAGIC` (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// A mount, as containerd's `mount.Mount` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// Its options.
    pub options: Vec<String>,
}

/// What all mounts of a node have in common.
#[derive(Clone, Debug)]
pub struct Mounting {
    snapshots: PathBuf,
    options: Vec<String>,
    remap_ids: bool,
}

/// A snapshot to mount.
#[derive(Clone, Copy, Debug)]
pub struct Mountable<'a> {
    /// The number of its directory.
    pub id: u64,
    /// Active or a view.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'a Labels,
    /// Its ancestors, its parent first.
    pub ancestors: &'a [Ancestor],
}

impl Mounting {
    /// Learns what the kernel needs.
    #[must_use]
    pub fn new(snapshots: &Path, settings: &Settings) -> Self {
        let mut options = settings.mount_options.clone();
        let has = |options: &[String], name: &str| {
            options.iter().any(|option| option.split('=').next() == Some(name))
        };
        if !has(&options, "userxattr") && needs_user_attributes(snapshots) {
            options.push("userxattr".to_owned());
        }
        if !has(&options, "index") && Path::new(PARAMETERS).join("index").exists() {
            options.push("index=off".to_owned());
        }
        // What a kernel turns on by itself would leave attributes in upper directories that look like an image's.
        for name in ["redirect_dir", "metacopy"] {
            let default = fs::read_to_string(Path::new(PARAMETERS).join(name)).unwrap_or_default();
            if default.trim() == "Y" && !has(&options, name) {
                options.push(format!("{name}=off"));
            }
        }
        Self {
            snapshots: snapshots.to_owned(),
            options,
            remap_ids: settings.remap_ids && kernel_version() >= ID_MAPPED_OVERLAY,
        }
    }

    /// The directory of a snapshot's content.
    #[must_use]
    pub fn content(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string()).join("fs")
    }

    /// The mount of a chain without Nix layers.
    #[must_use]
    pub fn plain(&self, snapshot: Mountable<'_>) -> Mount {
        let mut options = self.id_options(snapshot.labels);
        let bind = |id, access: &str, mut options: Vec<String>| {
            options.extend([access.to_owned(), "rbind".to_owned()]);
            Mount { kind: "bind", source: display(&self.content(id)), options }
        };
        match (snapshot.kind, snapshot.ancestors) {
            (Kind::View, []) => return bind(snapshot.id, "ro", options),
            (_, []) => return bind(snapshot.id, "rw", options),
            (Kind::View, [parent]) => return bind(parent.id, "ro", options),
            _ => {}
        }
        self.add_upper(snapshot, &mut options);
        let lowers = snapshot.ancestors.iter().map(|ancestor| self.content(ancestor.id));
        options.push(lower_option(lowers));
        options.extend(self.options.iter().cloned());
        overlay(options)
    }

    /// The mount of a chain with Nix layers; `mask` and `nix` go above and below all stubs.
    #[must_use]
    pub fn with_store(&self, snapshot: Mountable<'_>, mask: &Path, nix: &Path) -> Mount {
        let mut options = self.id_options(snapshot.labels);
        self.add_upper(snapshot, &mut options);
        let contents = snapshot.ancestors.iter().filter(|ancestor| ancestor.has_content);
        let stubs = snapshot.ancestors.iter().filter(|ancestor| ancestor.has_stub);
        let lowers = contents
            .map(|ancestor| self.content(ancestor.id))
            .chain([mask.to_owned()])
            .chain(stubs.map(|ancestor| self.content(ancestor.id).with_file_name("stub")))
            .chain([nix.to_owned()]);
        options.push(lower_option(lowers));
        let ours = self.options.iter().filter(|option| !option.starts_with("redirect_dir="));
        options.extend(ours.cloned());
        options.push("redirect_dir=follow".to_owned());
        overlay(options)
    }

    fn id_options(&self, labels: &Labels) -> Vec<String> {
        if self.remap_ids { id_mapping::mount_options(labels).collect() } else { Vec::new() }
    }

    fn add_upper(&self, snapshot: Mountable<'_>, options: &mut Vec<String>) {
        if snapshot.kind == Kind::Active {
            let upper = self.content(snapshot.id);
            options.push(format!("workdir={}", display(&upper.with_file_name("work"))));
            options.push(format!("upperdir={}", display(&upper)));
        }
    }
}

fn overlay(options: Vec<String>) -> Mount {
    Mount { kind: "overlay", source: "overlay".to_owned(), options }
}

fn lower_option(lowers: impl Iterator<Item = PathBuf>) -> String {
    let lowers: Vec<_> = lowers.map(|path| display(&path)).collect();
    format!("lowerdir={}", lowers.join(":"))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Whether attributes `user.overlay.*` take the place of `trusted.overlay.*`, which only the initial user namespace
/// has: containerd's `overlayutils.NeedsUserXAttr`.
fn needs_user_attributes(directory: &Path) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let is_tmpfs = rustix::fs::statfs(directory).is_ok_and(|status| status.f_type == TMPFS);
    !is_initial && !is_tmpfs
}

fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PLAIN: Ancestor = Ancestor { id: 2, has_stub: false, has_content: true };
    const BASE: Ancestor = Ancestor { id: 1, has_stub: false, has_content: true };
    const STORE_ONLY: Ancestor = Ancestor { id: 3, has_stub: true, has_content: false };
    const MIXED: Ancestor = Ancestor { id: 4, has_stub: true, has_content: true };

    fn mounting() -> Mounting {
        Mounting { snapshots: "/r/s".into(), options: vec!["index=off".to_owned()], remap_ids: true }
    }

    #[rstest]
    #[case::an_active_one_without_a_parent(Kind::Active, &[], "bind", "/r/s/9/fs rw rbind")]
    #[case::a_view_without_a_parent(Kind::View, &[], "bind", "/r/s/9/fs ro rbind")]
    #[case::a_view_of_one(Kind::View, &[BASE], "bind", "/r/s/1/fs ro rbind")]
    #[case::a_view_of_two(Kind::View, &[PLAIN, BASE], "overlay", "overlay lowerdir=/r/s/2/fs:/r/s/1/fs index=off")]
    #[case::an_active_one(
        Kind::Active,
        &[BASE],
        "overlay",
        "overlay workdir=/r/s/9/work upperdir=/r/s/9/fs lowerdir=/r/s/1/fs index=off"
    )]
    fn plain_mounts_are_those_of_overlayfs(
        #[case] kind: Kind,
        #[case] ancestors: &[Ancestor],
        #[case] expected: &str,
        #[case] options: &str,
    ) {
        let labels = Labels::new();
        let mount = mounting().plain(Mountable { id: 9, kind, labels: &labels, ancestors });
        assert_eq!(mount.kind, expected);
        assert_eq!(format!("{} {}", mount.source, mount.options.join(" ")), options);
    }

    #[test]
    fn stubs_lie_between_the_mask_and_the_store() {
        let labels = Labels::new();
        let ancestors = [PLAIN, MIXED, STORE_ONLY, BASE];
        let snapshot = Mountable { id: 9, kind: Kind::View, labels: &labels, ancestors: &ancestors };
        let mount = mounting().with_store(snapshot, Path::new("/r/mask"), Path::new("/r/nix"));
        let lowers = "lowerdir=/r/s/2/fs:/r/s/4/fs:/r/s/1/fs:/r/mask:/r/s/4/stub:/r/s/3/stub:/r/nix";
        assert_eq!(mount.options, [lowers, "index=off", "redirect_dir=follow"]);
    }

    #[test]
    fn mapped_ids_come_first() {
        let labels = Labels::from([("containerd.io/snapshot/uidmapping".to_owned(), "0:7:1".to_owned())]);
        let mount =
            mounting().plain(Mountable { id: 9, kind: Kind::Active, labels: &labels, ancestors: &[] });
        assert_eq!(mount.options, ["uidmap=0:7:1", "rw", "rbind"]);
    }
}
