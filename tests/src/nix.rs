//! The node's Nix: its store, and its daemon.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts;
use crate::cache_server;
use crate::command::Outcome;
use crate::service::Service;

/// What the node's store has at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// What `tests/run` has put there: the package set, and what the example needs.
    #[default]
    Filled,
    /// The package set alone, so that everything comes from the binary cache.
    Fresh,
}

impl Store {
    /// Fills the test's own `/nix`, and configures Nix to build without a sandbox and to use the binary cache.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn install(self, directory: &Path) {
        let filled = artifacts::target().join("store");
        match self {
            // Store paths are never written to, so links are as good as copies; the database is copied. Links do not
            // cross mounts, hence not through `/nix`.
            Self::Filled => {
                let own = directory.join("nix");
                Outcome::of(Command::new("cp").arg("-al").arg(filled.join("store")).arg(&own)).succeeds();
                Outcome::of(Command::new("cp").arg("-a").arg(filled.join("var")).arg(&own)).succeeds();
            }
            Self::Fresh => {
                Outcome::of(
                    Command::new("nix-store").arg("--add").arg(package_set()).env("NIX_REMOTE", "local"),
                )
                .succeeds();
            }
        }
        let key = fs::read_to_string(artifacts::packages().join("cache.pub"))
            .expect("tests/run has made the cache");
        fs::create_dir_all("/etc/nix").expect("/etc can be written");
        let settings = [
            format!("substituters = {}", cache_server::url()),
            format!("trusted-public-keys = {}", key.trim()),
            "build-users-group = nixbld".into(),
            "sandbox = false".into(),
            "max-jobs = 16".into(),
            "connect-timeout = 2".into(),
            "download-attempts = 1\n".into(),
        ];
        fs::write("/etc/nix/nix.conf", settings.join("\n")).expect("/etc can be written");
    }
}

/// The test package set.
#[must_use]
pub fn package_set() -> PathBuf {
    artifacts::packages().join("nixpkgs")
}

/// Adds another package set to the store, and returns the settings that pin it.
///
/// # Panics
/// When Nix refuses.
#[must_use]
pub fn add_package_set(directory: &Path) -> String {
    let nix_store = |arguments: &[&str]| {
        let output = Outcome::of(Command::new("nix-store").args(arguments)).succeeds();
        output.trim().to_owned()
    };
    let path = nix_store(&["--add", directory.to_str().expect("ASCII")]);
    let hash = nix_store(&["--query", "--hash", &path]);
    let hash = hash.trim_start_matches("sha256:");
    format!("[package-sets.nixpkgs]\npath = \"{path}\"\nsha256 = \"{hash}\"\n")
}

/// Starts the Nix daemon.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start_daemon(directory: &Path) -> Service {
    let mut service = Service::start(directory, "nix-daemon", &mut Command::new("nix-daemon"));
    service.wait_until(|| UnixStream::connect("/nix/var/nix/daemon-socket/socket").is_ok());
    service
}
