//! `nixenv status`: what nixenv does on this node.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use clap::Args;
use environment::layout::Layout;
use environment::protocol::{Report, Status as Daemon};
use indicatif::{BinaryBytes, HumanDuration};
use serde_json::{Value, json};

use crate::containerd::Containerd;
use crate::containerd_config::SNAPSHOTTER;
use crate::{nix, service, table};

/// Show what nixenv does on this node: the daemon, its snapshots and environments.
#[derive(Args)]
pub struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(rustix::process::geteuid().is_root(), "only root can ask the daemon; run it with sudo");
        let daemon = service::daemon_status(&Layout::node())?;
        let containerd = containerd();
        if self.json {
            say!("{:#}", to_json(&daemon, &containerd)?);
        } else {
            say!("{}", to_table(&daemon, &containerd).trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// containerd, and what it makes of the snapshotter.
struct Registration {
    version: Option<String>,
    /// As `ctr plugins list` has it; none when containerd does not know the snapshotter, or is away.
    snapshotter: Option<String>,
}

fn containerd() -> Registration {
    Registration {
        version: Containerd::find()
            .ok()
            .filter(|found| found.environment.is_some())
            .map(|found| found.version),
        snapshotter: nix::output("ctr", ["plugins", "list"]).ok().and_then(|listed| plugin_status(&listed)),
    }
}

/// The status of our snapshotter in what `ctr plugins list` prints.
pub fn plugin_status(listed: &str) -> Option<String> {
    listed.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_ours = fields.starts_with(&["io.containerd.snapshotter.v1", SNAPSHOTTER]);
        is_ours.then(|| fields.last().copied().unwrap_or_default().to_owned())
    })
}

fn to_json(daemon: &Daemon, containerd: &Registration) -> Result<Value> {
    let mut value = serde_json::to_value(daemon)?;
    value["containerd"] = json!({ "version": containerd.version, "snapshotter": containerd.snapshotter });
    Ok(value)
}

fn to_table(daemon: &Daemon, containerd: &Registration) -> String {
    let (environments, snapshots) = (&daemon.environments, &daemon.snapshots);
    let store = &snapshots.store;
    let up = HumanDuration(Duration::from_secs(daemon.up_seconds));
    let nix = if daemon.nix_version.is_empty() { "none" } else { &daemon.nix_version };
    let version = containerd.version.as_deref().unwrap_or("does not answer");
    let registration = match containerd.snapshotter.as_deref() {
        Some("ok") => format!("; the snapshotter {SNAPSHOTTER} is registered"),
        Some(other) => format!("; the snapshotter {SNAPSHOTTER} has the status '{other}'"),
        None if containerd.version.is_some() => format!("; it does not know the snapshotter {SNAPSHOTTER}"),
        None => String::new(),
    };
    let rows = [
        ("daemon", format!("{}, up for {up}", daemon.version)),
        ("Nix", nix.to_owned()),
        ("containerd", format!("{version}{registration}")),
        (
            "snapshots",
            format!(
                "{} committed, {} active, {} views",
                snapshots.committed, snapshots.active, snapshots.views
            ),
        ),
        (
            "store layers",
            format!(
                "{} show {} store paths ({} different ones)",
                store.layers, store.paths, store.distinct_paths
            ),
        ),
        ("saved", format!("{} that the store layers do not hold", BinaryBytes(store.bytes))),
        (
            "environments",
            format!("{}, their closures {}", environments.count, BinaryBytes(environments.bytes)),
        ),
        ("starts", format!("{} warm since boot", environments.hits)),
        ("requests", format!("{} to resolve, {} evaluations", environments.misses, daemon.evaluations)),
        ("in flight", format!("{}, {} waiting", daemon.in_flight, daemon.waiting)),
    ];
    let mut text = table::aligned(rows.map(|(name, value)| [name.to_owned(), value]));
    if !daemon.errors.is_empty() {
        text.push_str("\nlast warnings and errors:\n");
        let rows = daemon.errors.iter().map(|Report { unix_seconds, message }| {
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(*unix_seconds);
            let ago = HumanDuration(when.elapsed().unwrap_or_default());
            [format!("  {ago} ago"), message.lines().next().unwrap_or_default().to_owned()]
        });
        text.push_str(&table::aligned(rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use environment::protocol::{Environments, Snapshots, StoreLayers};
    use rstest::rstest;

    use super::*;

    fn daemon() -> Daemon {
        let store =
            StoreLayers { layers: 2, paths: 30, bytes: 5 << 20, distinct_paths: 20, distinct_bytes: 1 };
        Daemon {
            version: "0.1.0".into(),
            nix_version: "2.8.0".into(),
            up_seconds: 7200,
            snapshots: Snapshots { active: 1, views: 2, committed: 3, store },
            environments: Environments { count: 4, bytes: 1 << 30, hits: 5, misses: 6 },
            errors: vec![Report { unix_seconds: 0, message: "first line\nsecond line".into() }],
            ..Daemon::default()
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_thing() {
        let containerd = Registration { version: Some("2.4.2".into()), snapshotter: Some("ok".into()) };
        let text = to_table(&daemon(), &containerd);
        for line in [
            "daemon        0.1.0, up for 2 hours",
            "containerd    2.4.2; the snapshotter nixenv is registered",
            "snapshots     3 committed, 1 active, 2 views",
            "store layers  2 show 30 store paths (20 different ones)",
            "saved         5.00 MiB that the store layers do not hold",
            "environments  4, their closures 1.00 GiB",
            "starts        5 warm since boot",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in:\n{text}");
        }
        assert!(text.trim_end().ends_with("ago  first line"), "{text}");
    }

    #[test]
    fn the_json_has_everything_that_the_daemon_says() {
        let value = to_json(&daemon(), &Registration { version: None, snapshotter: None }).unwrap();
        assert_eq!(value["snapshots"]["store"]["distinct_paths"], 20);
        assert_eq!(value["containerd"]["version"], Value::Null);
    }

    #[rstest]
    #[case::known("io.containerd.snapshotter.v1    nixenv    linux/amd64    ok", Some("ok"))]
    #[case::another_plugin("io.containerd.snapshotter.v1    nix    linux/amd64    ok", None)]
    #[case::not_started("io.containerd.snapshotter.v1 nixenv - error", Some("error"))]
    fn containerd_says_what_it_makes_of_the_snapshotter(#[case] line: &str, #[case] expected: Option<&str>) {
        let listed = format!("TYPE ID PLATFORMS STATUS\n{line}\n");
        assert_eq!(plugin_status(&listed).as_deref(), expected);
    }
}
