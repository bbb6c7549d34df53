//! What makes containerd, and whoever asks it for containers, use nixenv.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use environment::layout::Layout;
use environment::settings::Settings;

use crate::change::Step;
use crate::containerd::Containerd;
use crate::containerd_config::{self, Handler, Lines, Plugin, Replaced, SNAPSHOTTER, Transfer};
use crate::receipt::{Edit, Receipt};
use crate::{nerdctl, service, snapshots};

/// Who may use the snapshotter where nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DefaultFor {
    /// nerdctl.
    Nerdctl,
    /// Kubernetes' interface.
    Cri,
    /// The transfer service.
    Transfer,
    /// Nobody.
    None,
}

impl DefaultFor {
    /// What was chosen on the command line, if anything.
    pub fn chosen(arguments: &[Self]) -> Result<Option<Vec<Self>>> {
        ensure!(
            arguments.len() < 2 || !arguments.contains(&Self::None),
            "--default-snapshotter takes 'none' or names of clients"
        );
        Ok((!arguments.is_empty()).then(|| arguments.to_owned()))
    }
}

/// What of this node uses nixenv, and shall.
pub struct Wiring<'a> {
    /// nixenv's own paths.
    pub layout: &'a Layout,
    /// What an earlier installation did.
    pub receipt: &'a Receipt,
    /// The node's containerd.
    pub containerd: &'a Containerd,
    /// Its config.
    pub config: &'a Path,
    /// nerdctl's settings.
    pub nerdctl_config: &'a Path,
    /// The runtime wrapper.
    pub wrapper: PathBuf,
    /// Who shall use the snapshotter by default; none: as before.
    pub defaults: Option<Vec<DefaultFor>>,
}

impl Wiring<'_> {
    /// Our lines for containerd's config.
    pub fn lines(&self) -> Result<Lines> {
        let release = self.containerd.release();
        let theirs = self.theirs()?;
        let mut handler = Handler {
            binary: self.wrapper.clone(),
            version: containerd_config::version_of(&Containerd::default_config()?.parse()?),
            runc: None,
        };
        if release < (2, 0) && containerd_config::runc_handler(&theirs)?.is_none() {
            handler.runc = containerd_config::runc_handler(&Containerd::default_config()?)?;
        }
        let (cri, transfer) = self.chosen()?;
        // Kubernetes' interface pulls through the transfer service since then.
        let transfer = transfer || (cri && release >= (2, 1));
        let settings = Settings::load(&self.layout.settings())?.snapshotter;
        let knows_more = release >= (1, 7);
        let plugin = Plugin {
            address: self.layout.snapshotter_socket(),
            root: knows_more.then(|| settings.root.unwrap_or_else(|| self.layout.snapshotter())),
            capabilities: if knows_more && settings.remap_ids && overlays_can_be_id_mapped() {
                vec!["remap-ids".to_owned()]
            } else {
                vec![]
            },
            cri: match cri {
                true => Some(Replaced { before: containerd_config::cri_snapshotter(&theirs)? }),
                false => None,
            },
            transfer: transfer.then(|| Transfer::new(&theirs, release, architecture())).transpose()?,
        };
        Ok(Lines { handler, snapshotter: Some(Box::new(plugin)) })
    }

    /// What puts `lines` and the rest in place; `runtime` is what containers ran with before.
    pub fn steps(&self, lines: &Lines, runtime: &Path) -> Result<Vec<Step>> {
        let text = self.text()?;
        let place = self.place()?;
        let directory = place.parent().unwrap_or(Path::new("/")).to_owned();
        let mut steps = vec![Step::Directory { path: directory, mode: 0o755 }];
        steps.push(match text {
            Some(text) if place != *self.config => {
                let content = lines.drop_in(&text)?.into_bytes();
                Step::File { path: place, mode: 0o644, content }
            }
            _ => Step::Edit { path: place, edit: Edit::Containerd(lines.clone()) },
        });
        if service::systemd_runs() {
            let path = systemd("containerd.service.d/nixenv.conf");
            let text = include_str!("../units/containerd.conf")
                .replace("@path@", &self.containerd.wanted_path())
                .replace("@runtime@", &runtime.to_string_lossy());
            steps.push(Step::Directory { path: systemd("containerd.service.d"), mode: 0o755 });
            steps.push(Step::File { path, mode: 0o644, content: text.into_bytes() });
        }
        steps.extend(self.image_directory_steps(lines)?);
        steps.extend(self.nerdctl_steps()?);
        Ok(steps)
    }

    /// Shows the kubelet where images are: before 1.7 containerd does not know a proxy plugin's `root`, and names a
    /// directory of its own that nobody makes (`imageFSPath` in its `pkg/cri/server`).
    fn image_directory_steps(&self, lines: &Lines) -> Result<Vec<Step>> {
        let is_default = lines.snapshotter.as_ref().is_some_and(|plugin| plugin.cri.is_some());
        if !is_default || self.containerd.release() >= (1, 7) {
            return Ok(vec![]);
        }
        let root = containerd_config::root(&self.text()?.unwrap_or_default())?;
        let path = root.join(format!("io.containerd.snapshotter.v1.{SNAPSHOTTER}"));
        let target = snapshots::root(self.layout)?;
        Ok(vec![Step::Directory { path: root, mode: 0o711 }, Step::Link { path, target }])
    }

    fn nerdctl_steps(&self) -> Result<Vec<Step>> {
        let known = self.receipt.nerdctl();
        let wanted = self.defaults.as_ref().map(|chosen| chosen.contains(&DefaultFor::Nerdctl));
        match (wanted.unwrap_or(known.is_some()), known) {
            (true, known) => {
                let path = known.map_or(self.nerdctl_config, |(_, path, _)| path).to_owned();
                let text = read(&path)?.unwrap_or_default();
                let theirs = known.map_or(Ok(text.clone()), |(_, _, line)| line.remove_from(&text))?;
                let edit = Edit::Nerdctl(nerdctl::Snapshotter::new(&theirs)?);
                let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
                Ok(vec![Step::Directory { path: directory, mode: 0o755 }, Step::Edit { path, edit }])
            }
            (false, Some((change, ..))) => Ok(vec![Step::Withdraw { change: change.clone() }]),
            (false, None) => Ok(vec![]),
        }
    }

    /// Whether Kubernetes' interface and the transfer service shall use our snapshotter.
    fn chosen(&self) -> Result<(bool, bool)> {
        if let Some(chosen) = &self.defaults {
            return Ok((chosen.contains(&DefaultFor::Cri), chosen.contains(&DefaultFor::Transfer)));
        }
        if let Some(lines) = self.receipt.lines(self.config) {
            let plugin = lines.snapshotter.as_ref();
            return Ok(
                plugin.map_or((false, false), |plugin| (plugin.cri.is_some(), plugin.transfer.is_some()))
            );
        }
        let place = self.place()?;
        match self.receipt.file(&place).and(read(&place)?) {
            Some(drop_in) => containerd_config::defaults(&drop_in),
            None => Ok((false, false)),
        }
    }

    fn place(&self) -> Result<PathBuf> {
        containerd_config::place(self.config, self.text()?.as_deref(), self.containerd.release().0)
    }

    fn text(&self) -> Result<Option<String>> {
        read(self.config)
    }

    /// containerd's config without our lines.
    fn theirs(&self) -> Result<String> {
        let text = self.text()?.unwrap_or_default();
        self.receipt.lines(self.config).map_or(Ok(text.clone()), |lines| lines.remove_from(&text))
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    let text = path.exists().then(|| fs::read_to_string(path)).transpose();
    text.with_context(|| format!("cannot read {}", path.display()))
}

/// A file of systemd's.
pub fn systemd(name: &str) -> PathBuf {
    Path::new("/etc/systemd/system").join(name)
}

/// The machine's architecture in the words of OCI images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the kernel mounts an overlay on id-mapped layers: 5.19.
fn overlays_can_be_id_mapped() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(19))
}
