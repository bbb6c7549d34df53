//! The config that a command is about, as users name it in an annotation.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use environment::layout::Layout;
use environment::lookup::Namespace;
use environment::reference::{self, ConfigReference, Request};
use environment::settings::Settings;

/// The config that a command is about.
#[derive(Args)]
pub struct ConfigArgument {
    /// A path, or @NAME for a config in /etc/nixenv/configs.
    #[arg(required_unless_present = "packages")]
    config: Option<String>,
    /// The attribute of the config's value to use (the annotation nixenv.attr).
    #[arg(short = 'A', long)]
    attr: Option<String>,
    /// Packages without a config: git,jq (the annotation nixenv.packages).
    #[arg(long, conflicts_with_all = ["config", "attr"])]
    packages: Option<String>,
}

/// A config and where it is looked up.
pub struct NamedConfig {
    /// The node's paths.
    pub layout: Layout,
    /// The node's settings.
    pub settings: Settings,
    /// What a container would ask for.
    pub request: Request,
    /// The directory that a relative path starts from.
    pub places: Vec<Namespace>,
}

impl ConfigArgument {
    /// Finds what the arguments name, from the current directory, as nerdctl would.
    pub fn load(&self) -> Result<NamedConfig> {
        let reference = match (&self.config, &self.packages) {
            (Some(config), _) => ConfigReference::parse(config)?,
            (None, Some(packages)) => ConfigReference::parse_packages(packages)?,
            (None, None) => bail!("name a config, or packages"),
        };
        let attr = self.attr.as_deref().map(reference::parse_attr).transpose()?;
        load(reference, attr)
    }
}

/// Finds a config from the current directory; an absolute path is looked up in its own directory.
pub fn load(reference: ConfigReference, attr: Option<String>) -> Result<NamedConfig> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root can look at the node's environments; run it with sudo"
    );
    let layout = Layout::node();
    let settings = Settings::load(&layout.settings())?;
    let current = std::env::current_dir().context("there is no current directory")?;
    let (directory, config) = match reference {
        ConfigReference::Path(path) if Path::new(&path).is_absolute() => {
            let (directory, name) = path.rsplit_once('/').unwrap_or_default();
            ensure!(!name.is_empty(), "{path} is not the path of a config");
            (Path::new("/").join(directory), ConfigReference::Path(name.to_owned()))
        }
        reference => (current, reference),
    };
    let places = vec![Namespace::of_directory(&directory)?];
    Ok(NamedConfig { layout, settings, request: Request { attr, ..Request::new(config) }, places })
}
