//! `nixenv list`: the environments of this node.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use environment::key::Key;
use environment::layout::Layout;
use environment::{cache, hold};
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use crate::show::age;
use crate::table;

/// List the environments of this node, newest first.
#[derive(Args)]
pub struct List {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl List {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can look at the node's environments; run it with sudo"
        );
        let layout = Layout::node();
        let users = users(&layout)?;
        let manifests = cache::list(&layout)
            .with_context(|| format!("cannot read {}", layout.environments().display()))?;
        let uses = |key: &Key| users.get(key).copied().unwrap_or_default();
        if self.json {
            let environments = manifests.iter().map(|manifest| {
                json!({
                    "key": manifest.key.to_string(),
                    "config": manifest.origin,
                    "created": manifest.created,
                    "paths": manifest.closure_paths,
                    "bytes": manifest.closure_bytes,
                    "containers": uses(&manifest.key),
                })
            });
            say!("{:#}", Value::from_iter(environments));
            return Ok(ExitCode::SUCCESS);
        }
        let head = ["KEY", "CONFIG", "AGE", "PATHS", "SIZE", "CONTAINERS"].map(str::to_owned);
        let rows = manifests.iter().map(|manifest| {
            [
                manifest.key.to_string()[..12].to_owned(),
                manifest.origin.clone(),
                age(manifest.created).to_string(),
                manifest.closure_paths.to_string(),
                BinaryBytes(manifest.closure_bytes).to_string(),
                uses(&manifest.key).to_string(),
            ]
        });
        say!("{}", table::aligned(std::iter::once(head).chain(rows)).trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

/// How many containers are in each environment.
pub fn users(layout: &Layout) -> Result<HashMap<Key, usize>> {
    let mut users = HashMap::new();
    for (_, held) in hold::list(layout)? {
        *users.entry(held.key).or_default() += 1;
    }
    Ok(users)
}
