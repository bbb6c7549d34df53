//! Injects into a process that is started in a container that already runs.

use anyhow::Context as _;
use environment::hold;
use environment::inject::inject_into_process;
use environment::layout::Layout;
use serde_json::Value;

use crate::bundle;
use crate::command_line::{CommandLine, Exec};
use crate::document::Document;

/// Gives the process the container's environment; a container without one costs a look-up that fails.
pub fn prepare(line: &CommandLine, exec: &Exec) -> anyhow::Result<()> {
    let container = hold::name_of(line.root.as_deref(), &exec.id);
    let Some(held) = hold::find(&Layout::node(), &container)? else { return Ok(()) };
    let record = bundle::load_record(&held.bundle)?;
    let document = || format!("cannot use the process {}", exec.process.display());
    let file = Document::read(&exec.process).with_context(document)?;
    let mut process: Value = serde_json::from_slice(&file.bytes).with_context(document)?;
    inject_into_process(&mut process, &record).with_context(document)?;
    file.replace(&serde_json::to_vec(&process)?)
}
