//! What an installation wants to be true of the node, step by step, and how each step is undone.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use environment::digest::Digest;
use environment::layout::Layout;
use environment::settings::Settings;

use crate::package_set::Pin;
use crate::receipt::{Change, Edit, Receipt};
use crate::{durable, nix, service};

/// One thing that shall be true of the node.
pub enum Step {
    /// A directory exists.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file has exactly this content.
    File {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// A file exists; what it says is up to the node's owner.
    Default {
        /// The file.
        path: PathBuf,
        /// Its content if there is none yet.
        content: &'static str,
    },
    /// A symbolic link exists.
    Link {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A file holds lines of ours.
    Edit {
        /// The file.
        path: PathBuf,
        /// The lines.
        edit: Edit,
    },
    /// A package set is in the store, rooted, and named in the settings.
    Pin {
        /// The package set.
        pin: Pin,
        /// The directory that it is a copy of.
        source: PathBuf,
        /// The node's settings.
        settings: PathBuf,
        /// The GC root.
        root: PathBuf,
    },
    /// A system user exists, who may talk to the Nix daemon.
    User {
        /// Its name.
        name: &'static str,
    },
    /// A change that is no longer wanted is undone.
    Withdraw {
        /// What the receipt says of it.
        change: Change,
    },
}

/// Whether a file that is written whole is a drop-in for containerd.
fn is_containerds(path: &Path) -> bool {
    path.ends_with("nixenv.toml") || path.ends_with("containerd.service.d/nixenv.conf")
}

impl Change {
    /// Whether containerd has to be started anew when it is undone.
    pub fn concerns_containerd(&self) -> bool {
        match self {
            Self::File { path, .. } => is_containerds(path),
            Self::Edit { edit, .. } => matches!(edit, Edit::Containerd(_)),
            _ => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, .. } => write!(f, "create the directory {}", path.display()),
            Self::File { path, .. } if path.exists() => write!(f, "replace {}", path.display()),
            Self::File { path, .. } => write!(f, "write {}", path.display()),
            Self::Default { path, .. } => write!(f, "write {}", path.display()),
            Self::Link { path, target } => write!(f, "link {} to {}", path.display(), target.display()),
            Self::Edit { path, edit } => write!(f, "{edit} in {}", path.display()),
            Self::Withdraw { change: Change::Edit { path, .. } } => {
                write!(f, "take nixenv's lines out of {}", path.display())
            }
            Self::Withdraw { .. } => write!(f, "undo an earlier change"),
            Self::Pin { pin, source, settings, .. } => {
                let Pin { name, path, .. } = pin;
                write!(
                    f,
                    "let <{name}> mean {path}, a copy of {}, in {}",
                    source.display(),
                    settings.display()
                )
            }
            Self::User { name } => write!(f, "create the system user {name}, for evaluations"),
        }
    }
}

impl Step {
    /// Whether nothing is left to do.
    pub fn is_done(&self) -> Result<bool> {
        Ok(match self {
            Self::Directory { path, .. } => path.is_dir(),
            Self::File { path, mode, content } => {
                read(path)?.as_deref() == Some(content)
                    && fs::metadata(path)?.permissions().mode() & 0o7777 == *mode
            }
            Self::Default { path, .. } => path.exists(),
            Self::Link { path, target } => fs::read_link(path).is_ok_and(|actual| actual == *target),
            Self::Edit { path, edit } => {
                let text = read_text(path)?;
                text.is_some() && edit.apply(text.as_deref().unwrap_or_default())? == text.unwrap_or_default()
            }
            Self::Pin { pin, settings, root, .. } => {
                let settings = Settings::load(settings)?;
                settings.package_sets.get(&pin.name).is_some_and(|set| set.path == pin.path)
                    && fs::read_link(root).is_ok_and(|target| target == pin.path.as_path())
                    && nix::nar_hash(&pin.path).is_ok()
            }
            Self::User { name } => user_exists(name)?,
            Self::Withdraw { .. } => false,
        })
    }

    /// The file that it writes.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Edit { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Whether containerd has to be started anew for it.
    pub fn concerns_containerd(&self) -> bool {
        self.path().is_some_and(is_containerds)
            || matches!(self, Self::Edit { edit: Edit::Containerd(_), .. })
    }

    /// Makes it true, after noting in the receipt how to undo that.
    pub fn apply(&self, layout: &Layout, receipt: &mut Receipt) -> Result<()> {
        let note = |receipt: &mut Receipt, change| {
            receipt.record(change);
            receipt.save(layout)
        };
        match self {
            Self::Directory { path, mode } => {
                let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
                for directory in missing.into_iter().rev() {
                    note(receipt, Change::Directory { path: directory.to_owned() })?;
                    let mode = if directory == path { *mode } else { 0o755 };
                    fs::DirBuilder::new()
                        .mode(mode)
                        .create(directory)
                        .with_context(|| cannot("create", directory))?;
                }
                Ok(())
            }
            Self::File { path, mode, content } => {
                let before = match (read(path)?, receipt.file(path)) {
                    (Some(bytes), Some((written, before))) if Digest::of(&bytes) == *written => {
                        before.copied()
                    }
                    (Some(bytes), _) if bytes == *content => None,
                    (Some(bytes), _) => Some(back_up(layout, &bytes)?),
                    (None, _) => None,
                };
                note(receipt, Change::File { path: path.clone(), written: Digest::of(content), before })?;
                durable::replace(path, content, Some(*mode)).with_context(|| cannot("write", path))
            }
            Self::Default { path, content } => {
                let written = Digest::of(content.as_bytes());
                note(receipt, Change::File { path: path.clone(), written, before: None })?;
                durable::replace(path, content.as_bytes(), Some(0o644)).with_context(|| cannot("write", path))
            }
            Self::Link { path, target } => {
                note(receipt, Change::Link { path: path.clone(), target: target.clone() })?;
                match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        Err(error).with_context(|| cannot("replace", path))
                    }
                    _ => symlink(target, path).with_context(|| cannot("create", path)),
                }
            }
            Self::Edit { path, edit } => {
                let text = read_text(path)?;
                let before = match (&text, receipt.edit(path, edit)) {
                    (Some(text), Some((written, before, _))) if Digest::of(text.as_bytes()) == *written => {
                        before.copied()
                    }
                    (Some(text), Some((_, _, known))) => {
                        Some(back_up(layout, known.revert(text)?.as_bytes())?)
                    }
                    (Some(text), None) => Some(back_up(layout, text.as_bytes())?),
                    (None, _) => None,
                };
                let edited = edit.apply(text.as_deref().unwrap_or_default())?;
                let written = Digest::of(edited.as_bytes());
                note(receipt, Change::Edit { path: path.clone(), written, before, edit: edit.clone() })?;
                durable::replace(path, edited.as_bytes(), None).with_context(|| cannot("edit", path))
            }
            Self::Pin { pin, source, settings, root } => {
                let (root, parent) = (root.clone(), root.parent().unwrap_or(root).to_owned());
                // Rooted first: a path that is not valid yet only makes a dangling root.
                Self::Directory { path: parent, mode: 0o755 }.apply(layout, receipt)?;
                Self::Link { path: root, target: pin.path.as_path().to_owned() }.apply(layout, receipt)?;
                let edit = Edit::Pin(pin.clone().add_to_store(source)?);
                Self::Edit { path: settings.clone(), edit }.apply(layout, receipt)
            }
            Self::User { name } => {
                note(receipt, Change::User { name: (*name).to_owned() })?;
                // Debian's Nix lets only this group talk to its daemon.
                let group = if group_exists("nix-users")? { &["--groups", "nix-users"][..] } else { &[] };
                let always = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"];
                let shell = ["--shell", "/usr/sbin/nologin", name];
                let added = nix::output("useradd", always.iter().chain(group).chain(&shell));
                // An interrupted installation's own useradd may have been faster.
                if user_exists(name)? { Ok(()) } else { added.map(drop) }
            }
            Self::Withdraw { change } => {
                undo(layout, change)?.inspect(|left| say!("  kept: {left}"));
                receipt.changes.retain(|known| known != change);
                receipt.save(layout)
            }
        }
    }
}

/// Undoes a change; says what was left, and why.
pub fn undo(layout: &Layout, change: &Change) -> Result<Option<String>> {
    match change {
        Change::Directory { path } => match fs::remove_dir(path) {
            // The roots of environments go with the environments.
            Err(error)
                if error.kind() == ErrorKind::DirectoryNotEmpty && path.starts_with(layout.gc_roots()) =>
            {
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                Ok(Some(format!("{} is not empty", path.display())))
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| cannot("remove", path))
            }
            _ => Ok(None),
        },
        Change::File { path, written, before } => match read(path)? {
            None => Ok(None),
            Some(bytes) if Digest::of(&bytes) == *written => {
                restore(layout, path, before.as_ref()).map(|()| None)
            }
            Some(_) => Ok(Some(format!("{} was changed since it was installed", path.display()))),
        },
        Change::Link { path, target } => {
            if fs::read_link(path).is_ok_and(|actual| actual == *target) {
                fs::remove_file(path).with_context(|| cannot("remove", path))?;
            }
            Ok(None)
        }
        Change::Edit { path, written, before, edit } => match read_text(path)? {
            None => Ok(None),
            Some(text) if Digest::of(text.as_bytes()) == *written => {
                restore(layout, path, before.as_ref()).map(|()| None)
            }
            Some(text) => {
                let reverted = edit.revert(&text)?;
                if reverted == text {
                    return Ok(None);
                }
                durable::replace(path, reverted.as_bytes(), None).with_context(|| cannot("edit", path))?;
                Ok(Some(format!("{} was changed since: only nixenv's lines were taken out", path.display())))
            }
        },
        Change::User { name } => {
            if user_exists(name)? {
                let removed = nix::output("userdel", [name]);
                // An interrupted removal's own userdel may have been faster.
                if user_exists(name)? {
                    removed?;
                }
            }
            Ok(None)
        }
        Change::Unit { name } => {
            if nix::output("systemctl", ["cat", name]).is_ok() {
                nix::output("systemctl", ["disable", "--now", name])?;
            }
            Ok(None)
        }
        Change::Process { pid_file } => {
            service::stop_process(pid_file)?;
            // It lies in a directory of ours.
            let _ = fs::remove_file(service::LOG);
            Ok(None)
        }
    }
}

fn cannot(operation: &str, path: &Path) -> String {
    format!("cannot {operation} {}", path.display())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| cannot("read", path)),
    }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    read(path)?.map(|bytes| String::from_utf8(bytes).with_context(|| cannot("edit", path))).transpose()
}

/// Where the backups lie, each named by the digest of its content.
pub fn backups(layout: &Layout) -> PathBuf {
    layout.state().join("backups")
}

fn back_up(layout: &Layout, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    let directory = backups(layout);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| cannot("create", &directory))?;
    let path = directory.join(digest.to_string());
    durable::replace(&path, bytes, Some(0o600)).with_context(|| cannot("write", &path))?;
    Ok(digest)
}

fn restore(layout: &Layout, path: &Path, before: Option<&Digest>) -> Result<()> {
    let Some(digest) = before else { return fs::remove_file(path).with_context(|| cannot("remove", path)) };
    let backup = backups(layout).join(digest.to_string());
    let bytes = fs::read(&backup).with_context(|| cannot("read", &backup))?;
    ensure!(
        Digest::of(&bytes) == *digest,
        "the backup {} is damaged; {} stays as it is",
        backup.display(),
        path.display()
    );
    durable::replace(path, &bytes, None).with_context(|| cannot("restore", path))
}

/// Whether the system has a user of this name.
pub fn user_exists(name: &str) -> Result<bool> {
    has_entry("/etc/passwd", name)
}

fn group_exists(name: &str) -> Result<bool> {
    has_entry("/etc/group", name)
}

fn has_entry(database: &str, name: &str) -> Result<bool> {
    let text = fs::read_to_string(database).with_context(|| cannot("read", Path::new(database)))?;
    Ok(text.lines().any(|line| line.split(':').next() == Some(name)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::containerd_config::{Handler, Lines};

    struct Node {
        directory: tempfile::TempDir,
        layout: Layout,
        receipt: Receipt,
    }

    impl Node {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let layout = Layout::under(directory.path());
            fs::create_dir_all(layout.state()).unwrap();
            let receipt = Receipt::load(&layout).unwrap();
            Self { directory, layout, receipt }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn apply(&mut self, step: &Step) {
            step.apply(&self.layout, &mut self.receipt).unwrap();
            assert!(step.is_done().unwrap());
        }

        fn undo_all(&self) -> Vec<String> {
            let receipt = Receipt::load(&self.layout).unwrap();
            receipt.changes.iter().rev().filter_map(|change| undo(&self.layout, change).unwrap()).collect()
        }

        fn edit(&self) -> Step {
            let path = self.path("config.toml");
            Step::Edit { path, edit: lines("/usr/local/bin/nixenv-runc") }
        }
    }

    fn lines(binary: &str) -> Edit {
        let handler = Handler { binary: binary.into(), version: 2, runc: None };
        Edit::Containerd(Lines { handler, snapshotter: None })
    }

    #[rstest]
    #[case::no_file_before(None)]
    #[case::another_file_before(Some("theirs"))]
    fn a_file_gives_way_to_what_was_there(#[case] before: Option<&str>) {
        let mut node = Node::new();
        let path = node.path("f");
        before.inspect(|text| fs::write(&path, text).unwrap());
        for content in ["first", "an upgrade"] {
            node.apply(&Step::File { path: path.clone(), mode: 0o755, content: content.into() });
        }
        assert_eq!(node.undo_all(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
    }

    #[test]
    fn a_file_that_was_changed_since_is_kept_and_named() {
        let mut node = Node::new();
        let path = node.path("f");
        node.apply(&Step::File { path: path.clone(), mode: 0o644, content: b"ours".into() });
        fs::write(&path, "edited").unwrap();
        assert!(node.undo_all()[0].contains("was changed"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "edited");
    }

    #[rstest]
    #[case::no_file(None)]
    #[case::a_file_without_a_newline_at_its_end(Some("version = 2"))]
    #[case::windows_line_ends(Some("version = 2\r\n"))]
    fn an_edit_is_undone_to_the_same_bytes(#[case] before: Option<&str>) {
        let mut node = Node::new();
        before.inspect(|text| fs::write(node.path("config.toml"), text).unwrap());
        let step = node.edit();
        node.apply(&step);
        assert_eq!(node.undo_all(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(node.path("config.toml")).ok().as_deref(), before);
    }

    #[test]
    fn an_edit_of_a_file_that_was_changed_since_loses_only_our_lines() {
        let mut node = Node::new();
        let path = node.path("config.toml");
        fs::write(&path, "version = 2\n").unwrap();
        let step = node.edit();
        node.apply(&step);
        let edited = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# theirs\n{edited}")).unwrap();
        assert!(node.undo_all()[0].contains("only nixenv's lines"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "# theirs\nversion = 2\n");
    }

    #[test]
    fn a_second_edit_after_a_foreign_one_is_undone_to_the_foreign_one() {
        let mut node = Node::new();
        let path = node.path("config.toml");
        fs::write(&path, "version = 2\n").unwrap();
        let step = node.edit();
        node.apply(&step);
        fs::write(&path, fs::read_to_string(&path).unwrap().replace("version = 2", "version = 2 # theirs"))
            .unwrap();
        node.apply(&Step::Edit { path: path.clone(), edit: lines("/opt/nixenv-runc") });
        assert_eq!(node.undo_all(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(&path).unwrap(), "version = 2 # theirs\n");
    }

    #[test]
    fn a_change_that_was_recorded_and_never_made_is_undone_silently() {
        let mut node = Node::new();
        let (path, written) = (node.path("never"), Digest::of(b"x"));
        node.receipt.record(Change::File { path: path.clone(), written, before: None });
        node.receipt.record(Change::Directory { path: path.clone() });
        node.receipt.record(Change::Link { path: path.clone(), target: "/t".into() });
        node.receipt.record(Change::Process { pid_file: path });
        node.receipt.save(&node.layout).unwrap();
        assert_eq!(node.undo_all(), Vec::<String>::new());
    }

    #[test]
    fn directories_go_with_their_parents_and_stay_when_in_use() {
        let mut node = Node::new();
        node.apply(&Step::Directory { path: node.path("a/b/c"), mode: 0o755 });
        assert_eq!(node.undo_all(), Vec::<String>::new());
        assert!(!node.path("a").exists());
        node.apply(&Step::Directory { path: node.path("a/b"), mode: 0o755 });
        fs::write(node.path("a/theirs"), "").unwrap();
        assert_eq!(node.undo_all().len(), 1);
        assert!(!node.path("a/b").exists());
    }
}
