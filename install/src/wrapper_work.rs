//! What the runtime wrapper itself costs, measured without a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use environment::hold;
use environment::layout::Layout;
use serde_json::{Value, json};

use crate::containerd::RUNTIME_DIRECTORY;
use crate::statistics::{Summary, rounded};

/// The program that the wrapper becomes.
const NOTHING: &str = "/bin/true";

/// Calls of the runtime on the way to a container's process.
const CALLS_OF_A_START: [&str; 2] = ["create", "start"];

/// Measures `nixenv-runc create` on a warm start, with an inner runtime that does nothing, less that program alone.
pub fn measure_warm(config: &Path, runs: u16) -> Result<Summary> {
    let config = config.canonicalize()?;
    let (directory, name) =
        (config.parent().unwrap_or(Path::new("/")), config.file_name().unwrap_or_default());
    let mut spec = spec();
    spec["mounts"] = json!([
        { "destination": "/config", "type": "bind", "source": directory, "options": ["rbind", "ro"] }
    ]);
    spec["annotations"] = json!({ "nixenv": name.to_string_lossy() });
    measure(&spec, &["create"], runs)
}

/// Measures what `nixenv-runc` adds to the start of a container without an annotation.
pub fn measure_passthrough(runs: u16) -> Result<Summary> {
    measure(&spec(), &CALLS_OF_A_START, runs)
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "cwd": "/config", "args": ["true"], "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
    })
}

/// The time that calls take through the wrapper, less what the same calls take without it.
fn measure(spec: &Value, calls: &[&str], runs: u16) -> Result<Summary> {
    let layout = Layout::node();
    // Bundles lie in containerd's state directory, which is memory: a fsync there waits for no disk.
    let bundle = tempfile::tempdir_in("/run").context("cannot create a bundle")?;
    fs::create_dir(bundle.path().join("rootfs"))?;
    let wrapper = PathBuf::from(RUNTIME_DIRECTORY).join("runc");
    let id = format!("nixenv-bench-{}", std::process::id());
    let mut with = Vec::new();
    let mut without = Vec::new();
    for round in 0..=runs {
        fs::write(bundle.path().join("config.json"), spec.to_string())?;
        let total = |program: &Path| {
            calls.iter().try_fold(Duration::ZERO, |total, call| {
                let mut command = Command::new(program);
                command.arg(call).env("NIXENV_RUNTIME", NOTHING);
                if *call == "create" {
                    command.arg("--bundle").arg(bundle.path());
                }
                Ok::<_, anyhow::Error>(total + time(command.arg(&id))?)
            })
        };
        let elapsed = total(&wrapper);
        hold::release(&layout, &hold::name_of(None, &id))?;
        let alone = total(Path::new(NOTHING))?;
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
