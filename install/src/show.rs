//! `nixenv show`: what is known of a config's environment.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use environment::cache;
use environment::manifest::Manifest;
use environment::resolve;
use indicatif::{BinaryBytes, HumanCount, HumanDuration};
use serde_json::json;

use crate::config_argument::ConfigArgument;

/// Show the environment of a config: variables, closure, key, and why its next start is warm or cold.
///
/// Asks neither the daemon nor Nix.
#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print JSON, with every store path.
    #[arg(long)]
    json: bool,
}

impl Show {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let config = self.config.load()?;
        let inspection = resolve::inspect(&config.layout, &config.settings, &config.request, &config.places)?;
        for warning in &inspection.warnings {
            eprintln!("warning: {warning}");
        }
        let hit = inspection.manifest.is_some();
        if self.json {
            let mut shown = json!({
                "config": config.request.config.to_string(),
                "key": inspection.key.map(|key| key.to_string()),
                "hit": hit,
                "reason": inspection.reason,
            });
            if let Some(manifest) = &inspection.manifest {
                shown["variables"] = json!(manifest.variables);
                shown["shell_hook"] = json!(manifest.shell_hook);
                shown["closure"] = json!({
                    "paths": manifest.closure_paths,
                    "bytes": manifest.closure_bytes,
                    "store_paths": cache::load_closure(&config.layout, &manifest.key)?,
                });
                shown["created"] = json!(manifest.created);
                shown["evaluation_ms"] = json!(manifest.evaluation_ms);
                shown["build_ms"] = json!(manifest.build_ms);
                shown["warnings"] = json!(manifest.warnings);
            }
            say!("{shown:#}");
            return Ok(ExitCode::SUCCESS);
        }
        say!("config     {}", config.request.config);
        say!("key        {}", inspection.key.map_or("not known yet".to_owned(), |key| key.to_string()));
        say!("next start {}: {}", if hit { "warm" } else { "cold" }, inspection.reason);
        if let Some(manifest) = &inspection.manifest {
            print(manifest);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(manifest: &Manifest) {
    say!(
        "closure    {} paths, {} ({} bytes)",
        HumanCount(manifest.closure_paths as u64),
        BinaryBytes(manifest.closure_bytes),
        HumanCount(manifest.closure_bytes),
    );
    say!(
        "resolved   {} ago: evaluated in {} ms, realised in {} ms",
        age(manifest.created),
        HumanCount(manifest.evaluation_ms),
        HumanCount(manifest.build_ms),
    );
    for warning in &manifest.warnings {
        say!("warning    {warning}");
    }
    if let Some(hook) = &manifest.shell_hook {
        say!("shell hook {} lines, run by {}", hook.script.lines().count(), hook.shell);
    }
    say!("variables  {}", manifest.variables.len());
    for (name, value) in &manifest.variables {
        say!("  {name}={value}");
    }
}

/// How long ago a moment was, given in seconds since 1970.
pub fn age(created: u64) -> HumanDuration {
    let then = UNIX_EPOCH + Duration::from_secs(created);
    HumanDuration(SystemTime::now().duration_since(then).unwrap_or_default())
}
