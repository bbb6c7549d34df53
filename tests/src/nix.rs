//! The node's Nix: its store, and its daemon.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
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
    /// Fills `/nix`, and configures Nix to build without a sandbox and to use the binary cache.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn install(self) {
        let filled = artifacts::target().join("store");
        match self {
            // Store paths are never written to, so links are as good as copies; the database is copied.
            Self::Filled => {
                Outcome::of(Command::new("cp").arg("-al").arg(filled.join("store")).arg("/nix/")).succeeds();
                Outcome::of(Command::new("cp").arg("-a").arg(filled.join("var")).arg("/nix/")).succeeds();
            }
            Self::Fresh => {
                Outcome::of(
                    Command::new("nix-store")
                        .arg("--add")
                        .arg(artifacts::packages().join("nixpkgs"))
                        .env("NIX_REMOTE", "local"),
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
            "connect-timeout = 2".into(),
            "download-attempts = 1\n".into(),
        ];
        fs::write("/etc/nix/nix.conf", settings.join("\n")).expect("/etc can be written");
    }
}

/// The settings that pin `<nixpkgs>` to the test package set.
///
/// # Panics
/// When `tests/run` has not filled the store.
#[must_use]
pub fn pin() -> String {
    fs::read_to_string(artifacts::target().join("store/pin.toml")).expect("tests/run has filled the store")
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
