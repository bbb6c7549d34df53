//! Derivation to build environment and closure.
//!
//! `nix print-dev-env` builds a variant of the derivation that writes its variables down instead of building
//! (`getDerivationEnvironment` in Nix's `nix/develop.cc`). The closure of that file is the environment's: everything
//! that a variable refers to.

use std::io;

use environment::protocol::Progress;
use environment::settings::Settings;
use environment::store_path::StorePath;

use crate::activity::Activities;
use crate::child;
use crate::diagnostics;
use crate::nix::Nix;
use crate::scratch::{self, Scratch};

/// A build environment.
#[derive(Debug)]
pub struct Realised {
    /// The file of its variables.
    pub path: StorePath,
    /// What `nix print-dev-env --json` prints.
    pub json: Vec<u8>,
}

/// A store path and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sized {
    /// The path.
    pub path: StorePath,
    /// Its size as a Nix archive.
    pub bytes: u64,
}

/// An environment that cannot be realised.
#[derive(Debug, thiserror::Error)]
pub enum RealiseError {
    /// Nix cannot be started.
    #[error("cannot run Nix")]
    Run(#[source] io::Error),
    /// Nix says why not.
    #[error("{messages}")]
    Refused {
        /// What Nix said: the end of the build's log, and the error.
        messages: String,
    },
    /// Nix ended well, without what it was asked for.
    #[error("Nix built the environment, and gave no result")]
    NoResult(#[source] io::Error),
    /// The closure is not a list of paths and sizes.
    #[error("Nix described a path of the closure as '{line}'")]
    Closure {
        /// What it said.
        line: String,
    },
}

/// Builds or substitutes what `derivation` needs and gives its build environment, which stays protected from
/// garbage collection as long as `scratch` is there.
///
/// # Errors
/// When a build fails.
pub fn realise(
    nix: &Nix,
    settings: &Settings,
    scratch: &Scratch,
    derivation: &StorePath,
    progress: impl FnMut(Progress),
) -> Result<Realised, RealiseError> {
    let profile = scratch.output().join(derivation.base_name());
    let arguments = ["print-dev-env", "--json", "--profile", &profile.to_string_lossy(), derivation.as_str()];
    let json = run(nix, settings, scratch, &arguments, progress)?;
    let path = scratch::read_root(&profile).map_err(RealiseError::NoResult)?;
    Ok(Realised { path, json })
}

/// The closure of a valid path, sorted.
///
/// # Errors
/// When Nix does not know the path.
pub fn closure(
    nix: &Nix,
    settings: &Settings,
    scratch: &Scratch,
    path: &StorePath,
) -> Result<Vec<Sized>, RealiseError> {
    // As text, which is the same in every version; the JSON is not.
    let output = run(nix, settings, scratch, &["path-info", "--recursive", "--size", path.as_str()], |_| ())?;
    let mut closure = parse_closure(&String::from_utf8_lossy(&output))?;
    closure.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(closure)
}

fn run(
    nix: &Nix,
    settings: &Settings,
    scratch: &Scratch,
    arguments: &[&str],
    mut progress: impl FnMut(Progress),
) -> Result<Vec<u8>, RealiseError> {
    // Without a network Nix would tell its daemon not to substitute, whatever a `nix.conf` says: only the command line
    // counts as an override there (`loadConfFile` in Nix's `libstore/globals.cc`, `mainWrapped` in `nix/main.cc`).
    let always = ["--offline", "--option", "substitute", "true", "--log-format", "internal-json"];
    let arguments = [&always, arguments].concat();
    let sandbox = nix.confined(scratch, "nix", &arguments, settings.evaluation.memory_mib);
    let mut activities = Activities::default();
    let finished =
        child::run(&sandbox, None, |line| progress(activities.note(line))).map_err(RealiseError::Run)?;
    if finished.status.success() {
        return Ok(finished.output);
    }
    Err(RealiseError::Refused { messages: diagnostics::or_status(activities.messages(), finished.status) })
}

fn parse_closure(text: &str) -> Result<Vec<Sized>, RealiseError> {
    let parse = |line: &str| {
        let (path, bytes) = line.split_once(char::is_whitespace)?;
        Some(Sized { path: path.parse().ok()?, bytes: bytes.trim().parse().ok()? })
    };
    text.lines()
        .map(|line| parse(line).ok_or_else(|| RealiseError::Closure { line: line.to_owned() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_is_a_path_and_a_size_on_each_line() {
        let text = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh-env\t        496\n\
                    /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj242-b     \t 1234567890\n";
        let closure = parse_closure(text).unwrap();
        assert_eq!(closure.iter().map(|sized| sized.bytes).collect::<Vec<_>>(), [496, 1_234_567_890]);
        assert!(parse_closure("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh-env\n").is_err());
        assert!(parse_closure("/etc/passwd 1\n").is_err());
    }
}
