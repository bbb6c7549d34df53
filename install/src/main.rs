//! `nixenv`, the command of a node's operator and of its users.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[macro_use]
mod output;

mod bench;
mod change;
mod config_argument;
mod containerd;
mod containerd_config;
mod doctor;
mod durable;
mod elf;
mod engine;
mod install;
mod list;
mod nerdctl;
mod nix;
mod package_set;
mod receipt;
mod service;
mod show;
mod snapshots;
mod statistics;
mod status;
mod table;
mod uninstall;
mod warm;
mod wiring;
mod wrapper_work;

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
    Status(status::Status),
    Warm(warm::Warm),
    Show(show::Show),
    List(list::List),
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Install(command) => command.run(),
        Command::Uninstall(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Warm(command) => command.run(),
        Command::Show(command) => command.run(),
        Command::List(command) => command.run(),
        Command::Bench(command) => command.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("nixenv: {error:#}");
        ExitCode::FAILURE
    })
}
