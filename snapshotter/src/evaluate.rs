//! Config to derivation.
//!
//! The user's files are added to the store under a fixed name, so that equal files have an equal path whoever brings
//! them, and are evaluated there in pure mode through the prelude (`environment::key::PRELUDE`). Since Nix 2.26 pure
//! mode reads nothing that is not in the store, `builtins.path` included, hence the separate step.

use std::fmt::Write as _;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use environment::archive::UnpackError;
use environment::digest::Digest;
use environment::key::PRELUDE;
use environment::settings::Settings;
use environment::store_path::StorePath;
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use crate::child::{self, Finished};
use crate::diagnostics;
use crate::nix::Nix;
use crate::scratch::{self, Scratch, ScratchError};

/// The name of every config in the store.
const STORE_NAME: &str = "config";
/// Bytes that a Nix archive adds to a file, at most: its name, and the words around it.
const ARCHIVE_OVERHEAD_BYTES: u64 = 1024;

/// A config as it was received.
#[derive(Debug)]
pub struct Config {
    /// What the user called it.
    pub origin: String,
    /// The entry file, in the archive.
    pub entry: String,
    /// `nixenv.attr`: names with dots between them.
    pub attr: Option<String>,
    /// The files, as a Nix archive.
    pub archive: Vec<u8>,
    /// The archive's digest.
    pub digest: Digest,
}

/// What an evaluation gives.
#[derive(Debug)]
pub struct Evaluated {
    /// The derivation whose build environment is meant.
    pub environment: StorePath,
    /// The derivation whose build environment is empty.
    pub baseline: Option<StorePath>,
}

/// An evaluation without result.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The files cannot be unpacked.
    #[error("cannot unpack the config")]
    Unpack(#[source] UnpackError),
    /// A GC root cannot be made.
    #[error("cannot protect the config from Nix's garbage collector")]
    Protect(#[source] ScratchError),
    /// A pinned package set is gone.
    #[error(
        "the package set <{name}> ({path}) is not in the store; pin it again: `nixenv install --nixpkgs PATH`, or [package-sets.{name}] in /etc/nixenv/config.toml"
    )]
    NoPackageSet {
        /// What it is called.
        name: String,
        /// Where it was.
        path: StorePath,
    },
    /// Nix cannot be started.
    #[error("cannot run Nix")]
    Run(#[source] io::Error),
    /// It takes too long.
    #[error(
        "the evaluation took longer than {seconds} s; it may loop; else raise evaluation.timeout-seconds in /etc/nixenv/config.toml"
    )]
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// It needs too much memory.
    #[error(
        "the evaluation needed more than {memory_mib} MiB of memory; it may not end; else raise evaluation.memory-mib in /etc/nixenv/config.toml: {messages}"
    )]
    OutOfMemory {
        /// The limit.
        memory_mib: u64,
        /// What Nix said.
        messages: String,
    },
    /// Nix says why not.
    #[error("{messages}")]
    Refused {
        /// What Nix said, whole.
        messages: String,
    },
    /// Nix ended well, without what it was asked for.
    #[error("Nix evaluated the config, and gave no derivation")]
    NoResult(#[source] io::Error),
}

/// The most bytes that an archive of a config within the limits can have.
pub fn max_archive_bytes(settings: &Settings) -> u64 {
    let files = (settings.config.max_files as u64 + 1).saturating_mul(ARCHIVE_OVERHEAD_BYTES);
    settings.config.max_bytes.saturating_add(files)
}

impl Config {
    /// Where the files are in the store, or will be.
    pub fn store_path(&self) -> StorePath {
        fixed_path(STORE_NAME, &self.digest)
    }

    /// Makes Nix's messages about this config the user's.
    pub fn clean(&self, messages: &str) -> String {
        diagnostics::clean(
            messages,
            &diagnostics::paths_of_copy(self.store_path().as_str(), &self.entry, &self.origin),
        )
    }

    /// Evaluates.
    ///
    /// # Errors
    /// When Nix finds a mistake or passes a limit; the message is for the user.
    pub fn evaluate(
        &self,
        nix: &Nix,
        settings: &Settings,
        scratch: &mut Scratch,
        mut progress: impl FnMut(&str),
    ) -> Result<Evaluated, EvaluateError> {
        for (name, set) in &settings.package_sets {
            if !set.path.as_path().exists() {
                return Err(EvaluateError::NoPackageSet { name: name.clone(), path: set.path.clone() });
            }
        }
        environment::archive::unpack(&self.archive[..], max_archive_bytes(settings), &scratch.config())
            .map_err(EvaluateError::Unpack)?;
        let store_path = self.store_path();
        // Before the path exists, so that no garbage collection comes between.
        scratch.protect(&store_path).map_err(EvaluateError::Protect)?;
        let deadline = Instant::now() + Duration::from_secs(settings.evaluation.timeout_seconds);
        let mut run = |program: &str, arguments: &[&str]| {
            self.run(nix, settings, scratch, program, arguments, deadline, &mut progress)
        };
        let files = scratch.config();
        run("nix-store", &["--add-fixed", "--recursive", "sha256", &files.to_string_lossy()])?;
        let root = scratch.output().join("derivation");
        let expression = self.expression(&nix.facts.system, settings);
        run("nix-instantiate", &["--add-root", &root.to_string_lossy(), "--expr", &expression])?;
        Ok(Evaluated {
            environment: scratch::read_root(&root).map_err(EvaluateError::NoResult)?,
            baseline: scratch::read_root(&root.with_file_name("derivation-2")).ok(),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        nix: &Nix,
        settings: &Settings,
        scratch: &Scratch,
        program: &str,
        arguments: &[&str],
        deadline: Instant,
        progress: impl FnMut(&str),
    ) -> Result<(), EvaluateError> {
        let limits = &settings.evaluation;
        let mut sandbox = nix.confined(scratch, program, arguments, limits.memory_mib);
        // Its threads together; the wall clock is what usually ends it.
        sandbox.limits.cpu_seconds = Some(limits.timeout_seconds.saturating_mul(4).max(1));
        let left = deadline.saturating_duration_since(Instant::now());
        let finished = child::run(&sandbox, Some(left), progress).map_err(EvaluateError::Run)?;
        if finished.status.success() {
            return Ok(());
        }
        let messages = self.clean(&finished.messages);
        Err(if finished.timed_out || ended_by(&finished, &[Signal::XCPU]) {
            EvaluateError::TimedOut { seconds: limits.timeout_seconds }
        } else if is_out_of_memory(&finished) {
            EvaluateError::OutOfMemory { memory_mib: limits.memory_mib, messages }
        } else {
            EvaluateError::Refused { messages: diagnostics::or_status(messages, finished.status) }
        })
    }

    /// The prelude, called with this config.
    fn expression(&self, system: &str, settings: &Settings) -> String {
        let enter = |path: &StorePath, sha256: &str| {
            format!("{{ path = {}; sha256 = {}; }}", quote(path.as_str()), quote(sha256))
        };
        let attr = self.attr.iter().flat_map(|attr| attr.split('.')).map(quote).collect::<Vec<_>>().join(" ");
        let mut sets = String::new();
        for (name, set) in &settings.package_sets {
            let _ = write!(sets, "{} = {}; ", quote(name), enter(&set.path, &set.sha256));
        }
        format!(
            "({PRELUDE}) {{ source = {}; entry = {}; attr = [ {attr} ]; system = {}; sets = {{ {sets}}}; }}",
            enter(&self.store_path(), &self.digest.to_string()),
            quote(&self.entry),
            quote(system),
        )
    }
}

fn ended_by(finished: &Finished, signals: &[Signal]) -> bool {
    signals.iter().any(|signal| finished.status.signal() == Some(signal.as_raw()))
}

/// Nix reports an allocation that fails (`std::bad_alloc`) like any mistake; its collector aborts; the kernel kills.
fn is_out_of_memory(finished: &Finished) -> bool {
    ended_by(finished, &[Signal::ABORT, Signal::KILL])
        || finished.messages.lines().any(|line| line.trim_end().ends_with("out of memory"))
}

/// A Nix string literal (Nix manual, "String").
fn quote(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        if matches!(character, '"' | '\\' | '$') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal + "\""
}

/// The store path of a Nix archive with this digest (`makeFixedOutputPath` in Nix's `libstore`, for SHA-256 and
/// recursive hashing).
fn fixed_path(name: &str, digest: &Digest) -> StorePath {
    let fingerprint = format!("source:sha256:{digest}:/nix/store:{name}");
    let mut compressed = [0_u8; 20];
    for (index, byte) in Sha256::digest(fingerprint).iter().enumerate() {
        compressed[index % 20] ^= byte;
    }
    format!("/nix/store/{}-{name}", base32(&compressed))
        .parse()
        .expect("a hash and a fixed name make a store path")
}

/// Nix's base-32: 5 bits a digit, the last bits first.
fn base32(bytes: &[u8; 20]) -> String {
    let digit = |index: usize| {
        let (byte, bit) = (index * 5 / 8, index * 5 % 8);
        let next = bytes.get(byte + 1).map_or(0, |&next| u16::from(next));
        ((u16::from(bytes[byte]) | next << 8) >> bit & 31) as usize
    };
    (0..32).rev().map(|index| b"0123456789abcdfghijklmnpqrsvwxyz"[digit(index)] as char).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_store_path_is_the_one_that_nix_computes() {
        // nix-store --add-fixed --recursive sha256 config, and nix-hash --type sha256 config (Nix 2.8).
        let digest = "481b71fe666a21dd707ff33af24be880155dc0e31f57df8788a4d17d26428c8d".parse().unwrap();
        assert_eq!(
            fixed_path("config", &digest).as_str(),
            "/nix/store/dnvah9zqp9d98czpxbdnhhyqsi940p7m-config"
        );
    }

    #[rstest]
    #[case::plain("config.nix", r#""config.nix""#)]
    #[case::no_antiquotation("${import ./x}", r#""\${import ./x}""#)]
    #[case::no_end_of_string(r#"a" + b"#, r#""a\" + b""#)]
    #[case::no_escape(r"a\", r#""a\\""#)]
    fn text_stays_text(#[case] text: &str, #[case] literal: &str) {
        assert_eq!(quote(text), literal);
    }
}
