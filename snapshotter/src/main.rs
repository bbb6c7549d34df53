//! `nixenv-snapshotter`: the daemon; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    nixenv_snapshotter::run()
}
