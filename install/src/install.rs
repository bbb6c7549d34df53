//! `nixenv install`: prepares this node.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use environment::layout::Layout;
use environment::settings::Settings;

use crate::change::{self, Step};
use crate::containerd::{self, Containerd, RUNTIME_DIRECTORY};
use crate::containerd_config::{self, Lines};
use crate::nix;
use crate::package_set::{self, Pin};
use crate::receipt::Receipt;
use crate::service::{self, Restart};
use crate::wiring::{DefaultFor, Wiring, systemd};

/// The programs that belong together.
const PROGRAMS: [&str; 3] = ["nixenv", "nixenv-runc", service::DAEMON];
/// The user of evaluations.
pub const USER: &str = "nixenv";

/// Prepare this node: programs, settings, containerd and the daemon.
///
/// Says what it changes before it changes anything, and notes it in /var/lib/nixenv/receipt.json, so that
/// `nixenv uninstall` undoes exactly that. Installing again repairs, upgrades, or changes nothing.
#[derive(Args)]
pub struct Install {
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Where the programs go.
    #[arg(long, value_name = "DIRECTORY", default_value = "/usr/local/bin")]
    bin_dir: PathBuf,
    /// The config of the containerd to prepare.
    #[arg(long, value_name = "FILE", default_value = containerd::DEFAULT_CONFIG)]
    containerd_config: PathBuf,
    /// The OCI runtime behind nixenv-runc; default: the runc or crun on containerd's PATH.
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// What <nixpkgs> means in configs: a directory or a store path; default: what it means to Nix here.
    #[arg(long, value_name = "PATH")]
    nixpkgs: Option<PathBuf>,
    /// Who uses the snapshotter where nothing else is asked for; default: as installed before, else nobody.
    ///
    /// `cri` is Kubernetes' interface, `transfer` lets containerd's transfer service unpack for it as well (`ctr images
    /// pull --snapshotter nixenv`), `none` takes earlier choices back.
    #[arg(long, value_name = "CLIENTS", value_delimiter = ',')]
    default_snapshotter: Vec<DefaultFor>,
    /// The settings of the nerdctl that `--default-snapshotter nerdctl` is about.
    #[arg(long, value_name = "FILE", default_value = crate::nerdctl::CONFIG)]
    nerdctl_config: PathBuf,
    /// Neither start the daemon nor restart containerd.
    #[arg(long)]
    no_start: bool,
}

impl Install {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(rustix::process::geteuid().is_root(), "only root can install; run it with sudo");
        nix::output("nix-store", ["--version"])
            .context("Nix is needed; apt install nix-bin nix-setup-systemd")?;
        let layout = Layout::node();
        let receipt = Receipt::load(&layout)?;
        let containerd = Containerd::find()?;
        let runtime = match &self.runtime {
            Some(runtime) if containerd::is_program(runtime) => runtime.clone(),
            Some(runtime) => bail!("{} is not a program", runtime.display()),
            None => containerd.runtime()?,
        };
        let wiring = Wiring {
            layout: &layout,
            receipt: &receipt,
            containerd: &containerd,
            config: &self.containerd_config,
            nerdctl_config: &self.nerdctl_config,
            wrapper: self.bin_dir.join("nixenv-runc"),
            defaults: DefaultFor::chosen(&self.default_snapshotter)?,
        };
        let mut steps = self.node_steps(&layout)?;
        let lines = wiring.lines()?;
        steps.extend(wiring.steps(&lines, &runtime)?);
        let mut open = Vec::new();
        for step in steps {
            if !step.is_done()? {
                open.push(step);
            }
        }
        let restarts = self.restarts(&layout, &containerd, &open);
        if open.is_empty() && restarts.is_empty() {
            say!("nixenv is installed on this node; there is nothing to change");
        } else {
            say!("{} this node:", if self.dry_run { "nixenv would change" } else { "nixenv changes" });
            open.iter().for_each(|step| say!("  {step}"));
            restarts.iter().for_each(|restart| say!("  {restart}"));
        }
        if !self.dry_run {
            self.carry_out(&layout, receipt, &lines, &open, &restarts)?;
            if !service::systemd_runs() && !containerd.runs_ours() {
                say!("\nsystemd does not run here: start containerd with");
                say!("  PATH={} NIXENV_RUNTIME={}", containerd.wanted_path(), runtime.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn carry_out(
        &self,
        layout: &Layout,
        mut receipt: Receipt,
        lines: &Lines,
        open: &[Step],
        restarts: &[Restart],
    ) -> Result<()> {
        let state = layout.state();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&state)
            .with_context(|| format!("cannot create {}", state.display()))?;
        let before = containerd::merged_config(&self.containerd_config);
        for step in open {
            step.apply(layout, &mut receipt)?;
        }
        if let Ok(before) = before {
            self.check_merged_config(layout, &mut receipt, lines, &before)?;
        }
        restarts.iter().try_for_each(|restart| restart.carry_out(layout, &mut receipt, &self.bin_dir))
    }

    /// Makes sure that containerd would read its config as before, and takes our lines out again if not.
    fn check_merged_config(
        &self,
        layout: &Layout,
        receipt: &mut Receipt,
        lines: &Lines,
        before: &str,
    ) -> Result<()> {
        let look = || -> Result<()> {
            let after = containerd::merged_config(&self.containerd_config)?;
            let others = containerd_config::without_ours(&after)?;
            ensure!(
                others == containerd_config::without_ours(before)?,
                "other settings would change with them"
            );
            let missing = containerd_config::missing(&after, lines)?;
            if let Some(missing) = missing {
                bail!("a file that the config imports hides {missing}");
            }
            Ok(())
        };
        let Err(error) = look() else { return Ok(()) };
        for change in receipt.changes.iter().rev().filter(|change| change.concerns_containerd()) {
            change::undo(layout, change)?;
        }
        receipt.changes.retain(|change| !change.concerns_containerd());
        receipt.save(layout)?;
        Err(error.context(format!(
            "containerd does not take nixenv's lines in {}; they were taken out again",
            self.containerd_config.display()
        )))
    }

    /// What the node needs whatever its engine is.
    fn node_steps(&self, layout: &Layout) -> Result<Vec<Step>> {
        let own = std::env::current_exe()?;
        let source = own.parent().unwrap_or(Path::new("/"));
        let directory = |path: PathBuf, mode| Step::Directory { path, mode };
        let mut steps = vec![directory(self.bin_dir.clone(), 0o755)];
        for program in PROGRAMS {
            let content = fs::read(source.join(program)).with_context(|| {
                format!("{program} is not beside {}; build the whole workspace first", own.display())
            })?;
            steps.push(Step::File { path: self.bin_dir.join(program), mode: 0o755, content });
        }
        let runc = Path::new(RUNTIME_DIRECTORY).join("runc");
        steps.extend([
            directory(RUNTIME_DIRECTORY.into(), 0o755),
            Step::Link { path: runc, target: self.bin_dir.join("nixenv-runc") },
            directory(layout.configs(), 0o755),
            Step::Default { path: layout.settings(), content: include_str!("../units/config.toml") },
            Step::User { name: USER },
        ]);
        if service::systemd_runs() {
            let unit = include_str!("../units/nixenv-snapshotter.service");
            let content = unit.replace("@bin-dir@", &self.bin_dir.to_string_lossy()).into_bytes();
            steps.push(Step::File { path: systemd(service::UNIT), mode: 0o644, content });
        }
        let pinned = Settings::load(&layout.settings())?.package_sets.contains_key("nixpkgs");
        let nixpkgs = self.nixpkgs.clone().or_else(|| if pinned { None } else { nix::find_nixpkgs() });
        if let Some(source) = nixpkgs {
            let source = source.canonicalize().with_context(|| format!("cannot pin {}", source.display()))?;
            let pin = Pin::of_directory("nixpkgs", &source)?;
            let (settings, root) = (layout.settings(), package_set::gc_root(layout, &pin.name));
            steps.push(Step::Pin { pin, source, settings, root });
        }
        Ok(steps)
    }

    /// What must run anew once the open steps are done, or never did after an interruption.
    fn restarts(&self, layout: &Layout, containerd: &Containerd, open: &[Step]) -> Vec<Restart> {
        if self.no_start {
            return vec![];
        }
        let concerns = |path: &Path| open.iter().any(|step| step.path().is_some_and(|open| open == path));
        let daemon = concerns(&self.bin_dir.join(service::DAEMON))
            || concerns(&systemd(service::UNIT))
            || !service::daemon_is_current(layout);
        let engine = service::systemd_runs()
            && (open.iter().any(Step::concerns_containerd)
                || (containerd.environment.is_some() && !containerd.runs_ours()));
        [(daemon, Restart::Daemon), (engine, Restart::Containerd)]
            .into_iter()
            .filter_map(|(needed, restart)| needed.then_some(restart))
            .collect()
    }
}
