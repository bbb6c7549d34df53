//! `nixenv-runc`: a thin OCI runtime that injects the environment a `config.nix` names, then becomes runc.
//!
//! The runtime reads a container's spec before any OCI hook runs, so nothing that hooks do can set environment
//! variables. Therefore this stands in the runtime's place: it edits the spec of a container that asks for an
//! environment, and then becomes the real runtime (`execve`), with the same arguments, descriptors and process id.
//!
//! ```text
//! command_line   what the runtime is asked for
//! wrapper        from the command line to the runtime
//! create         inject into a bundle; bundle: its files
//! exec           inject into a process that is started in a container
//! poststop       an OCI hook: release what the container held
//! inner_runtime  which runtime to become
//! document       files that other programs read: read once, replaced whole
//! log            how errors reach whoever started the container
//! ```
//!
//! Invariants: a container that does not ask for an environment costs one `execve`, and not a byte of its bundle
//! changes. Descriptors 0 to 2 are the container's, so nothing is written to them (but see the log module). No async
//! runtime is linked.

mod bundle;
mod command_line;
mod create;
mod document;
mod exec;
mod inner_runtime;
mod log;
mod poststop;
mod wrapper;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    match poststop::container_of(&args) {
        Some(container) => poststop::run(&container),
        None => wrapper::run(&args),
    }
}
