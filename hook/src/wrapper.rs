//! From the command line to the runtime.

use std::convert::Infallible;
use std::ffi::OsString;
use std::process::ExitCode;

use crate::command_line::{self, CommandLine, Subcommand};
use crate::inner_runtime::InnerRuntime;
use crate::log::{Level, Log};
use crate::{create, exec};

/// Prepares what is asked for and becomes the runtime; returns only when that failed.
pub fn run(args: &[OsString]) -> ExitCode {
    let line = command_line::parse(args.get(1..).unwrap_or_default());
    let log = Log::of(&line);
    let Err(error) = become_runtime(&line, &log, args);
    log.write(Level::Error, &format!("nixenv: {error:#}"));
    ExitCode::FAILURE
}

fn become_runtime(line: &CommandLine, log: &Log, args: &[OsString]) -> anyhow::Result<Infallible> {
    let runtime = InnerRuntime::find()?;
    // The hold is released when what follows fails; `execve` runs no destructors.
    let _hold = match &line.subcommand {
        _ if runtime.follows_another_wrapper() => None,
        Subcommand::Create(create) => create::prepare(line, create, log)?,
        Subcommand::Exec(exec) => exec::prepare(line, exec).map(|()| None)?,
        Subcommand::Other => None,
    };
    runtime.become_with(args.get(1..).unwrap_or_default())
}
