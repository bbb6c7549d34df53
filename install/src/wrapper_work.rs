//! What the runtime wrapper itself does on a warm start, measured without a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use environment::hold;
use environment::layout::Layout;
use serde_json::json;

use crate::containerd::RUNTIME_DIRECTORY;
use crate::statistics::{Summary, rounded};

/// The program that the wrapper becomes.
const NOTHING: &str = "/bin/true";

/// Measures `nixenv-runc create` with an inner runtime that does nothing, less that program alone.
pub fn measure(config: &Path, runs: u16) -> Result<Summary> {
    let layout = Layout::node();
    // Bundles lie in containerd's state directory, which is memory: a fsync there waits for no disk.
    let bundle = tempfile::tempdir_in("/run").context("cannot create a bundle")?;
    fs::create_dir(bundle.path().join("rootfs"))?;
    let config = config.canonicalize()?;
    let (directory, name) =
        (config.parent().unwrap_or(Path::new("/")), config.file_name().unwrap_or_default());
    let spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "cwd": "/config", "args": ["true"], "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
        "mounts": [{ "destination": "/config", "type": "bind", "source": directory, "options": ["rbind", "ro"] }],
        "annotations": { "nixenv": name.to_string_lossy() },
    });
    let wrapper = PathBuf::from(RUNTIME_DIRECTORY).join("runc");
    let id = format!("nixenv-bench-{}", std::process::id());
    let mut with = Vec::new();
    let mut without = Vec::new();
    for round in 0..=runs {
        fs::write(bundle.path().join("config.json"), spec.to_string())?;
        let mut create = Command::new(&wrapper);
        create.args(["create", "--bundle"]).arg(bundle.path()).arg(&id).env("NIXENV_RUNTIME", NOTHING);
        let elapsed = time(&mut create);
        hold::release(&layout, &hold::name_of(None, &id))?;
        let alone = time(&mut Command::new(NOTHING))?;
        if round > 0 {
            with.push(elapsed?);
            without.push(alone);
        } else {
            elapsed?;
        }
    }
    let nothing = Summary::of(&without).median_ms;
    let whole = Summary::of(&with);
    Ok(Summary {
        median_ms: rounded(whole.median_ms - nothing, 100.0),
        p95_ms: rounded(whole.p95_ms - nothing, 100.0),
        runs: whole.runs,
    })
}

fn time(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let elapsed = begin.elapsed();
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(elapsed)
}
