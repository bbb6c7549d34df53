//! The OCI `poststop` hook: releases what a container held.
//!
//! It runs after the container was deleted. Whatever fails here must not make the deletion fail: the exit status is
//! always 0, and what was not released now, the next sweep releases.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use environment::digest::Digest;
use environment::hold;
use environment::layout::Layout;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long to wait for the state that the runtime writes to the hook's standard input.
const STATE_PATIENCE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// The hook's arguments, with the program's name as the first.
pub fn args(container: &Digest) -> Vec<String> {
    vec!["nixenv-runc".into(), "poststop".into(), container.to_string()]
}

/// The container to release, when these are the hook's arguments.
pub fn container_of(args: &[OsString]) -> Option<Digest> {
    match args {
        [_, subcommand, container] if subcommand == "poststop" => container.to_str()?.parse().ok(),
        _ => None,
    }
}

/// Releases what `container` held, and what containers held that never came to be: the runtime may fail after we became
/// it. Here, where nobody waits, is the place to look for those.
pub fn run(container: &Digest) -> ExitCode {
    let layout = Layout::node();
    let _ = hold::release(&layout, container);
    let _ = hold::sweep(&layout);
    ignore_state();
    ExitCode::SUCCESS
}

/// Takes the state off the runtime's hands: a runtime that writes to a closed pipe calls the hook failed.
fn ignore_state() {
    let stdin = std::io::stdin();
    let mut buffer = [0; 64 << 10];
    loop {
        let mut readable = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let ready = poll(&mut readable, Some(&STATE_PATIENCE)).is_ok_and(|ready| ready > 0);
        if !ready || !matches!(stdin.lock().read(&mut buffer), Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_understands_its_own_arguments() {
        let container = Digest::of(b"c");
        let args: Vec<OsString> = args(&container).into_iter().map(OsString::from).collect();
        assert_eq!(container_of(&args), Some(container));
        assert_eq!(container_of(&["runc".into(), "poststop".into(), "c".into()]), None);
        assert_eq!(container_of(&["runc".into(), "state".into(), args[2].clone()]), None);
    }
}
