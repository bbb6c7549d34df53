//! `nixenv`, the command of a node's operator and of its users.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod change;
mod containerd;
mod containerd_config;
mod doctor;
mod durable;
mod elf;
mod install;
mod nix;
mod package_set;
mod receipt;
mod service;
mod uninstall;

/// Boots unmodified container images into the environment that a config.nix names.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Install(install::Install),
    Uninstall(uninstall::Uninstall),
    Doctor(doctor::Doctor),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Install(command) => command.run(),
        Command::Uninstall(command) => command.run(),
        Command::Doctor(command) => command.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("nixenv: {error:#}");
        ExitCode::FAILURE
    })
}
