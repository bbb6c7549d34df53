//! The daemon of nixenv: resolves configs into environments, and serves snapshots to containerd.
//!
//! ```text
//! server             the socket, the peers, the life of the process
//! startup            what an earlier daemon left behind
//! resolver           requests: from a sealed snapshot to a published environment, once per key
//! flight             many requests for one key, one piece of work
//! evaluate           config to derivation
//! realise            derivation to build environment and closure
//! activity           what Nix says it does
//! variables          what of a build environment is a container's
//! baseline           the build environment that is empty, to tell noise
//! publish            environment to disk
//! nix                the node's Nix; its programs, run confined
//! sandbox            the confinement, seen from inside
//! child              a confined process, seen from outside
//! scratch            the directory of one piece of work, and its GC roots
//! diagnostics        Nix's messages, in the user's terms
//! image_environment  what containerd knows of a container's image
//! snapshots          containerd's snapshots service
//! metrics            what is counted and measured, for Prometheus
//! logging            where the daemon's own messages go
//! ```

mod activity;
mod baseline;
mod child;
mod diagnostics;
mod evaluate;
mod flight;
mod image_environment;
mod logging;
mod metrics;
mod nix;
mod publish;
mod realise;
mod resolver;
mod sandbox;
mod scratch;
mod server;
pub mod snapshots;
mod startup;
mod variables;

use std::process::ExitCode;

use clap::Parser as _;

/// Runs the program with the process' own arguments.
#[must_use]
pub fn run() -> ExitCode {
    let result = match server::Arguments::parse() {
        server::Arguments { confined: Some(server::Confined::Sandbox { plan }), .. } => {
            sandbox::become_confined(&plan)
        }
        arguments => server::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nixenv-snapshotter: {error:#}");
            ExitCode::FAILURE
        }
    }
}
