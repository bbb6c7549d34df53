//! Images of store paths, made with nix-snapshotter's own `nix2container`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::artifacts;
use crate::command::Outcome;
use crate::nix;

/// A closure: nixpkgs' `closureInfo` of some packages.
#[derive(Clone, Debug)]
pub struct Closure {
    /// Its own store path.
    pub path: String,
    /// The store paths that it lists.
    pub store_paths: BTreeSet<String>,
}

impl Closure {
    /// Builds the closure of what a Nix expression says, in the scope of the package set; no GC root is left.
    ///
    /// # Panics
    /// When Nix fails.
    #[must_use]
    pub fn of(packages: &str) -> Self {
        let path = build(&format!("closureInfo {{ rootPaths = [ {packages} ]; }}"));
        let list = fs::read_to_string(format!("{path}/store-paths")).expect("a closure has a list");
        Self { path, store_paths: list.lines().map(str::to_owned).collect() }
    }

    /// Makes an image as nix-snapshotter does, with links to the files of `copy_to_root`, on top of `base` (as
    /// `docker save` writes it), and returns the archive.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn nix2container(
        &self,
        directory: &Path,
        copy_to_root: &[&str],
        base: Option<&Path>,
        config: &Value,
    ) -> PathBuf {
        let write = |name: &str, content: &Value| {
            let path = directory.join(name);
            fs::write(&path, content.to_string()).expect("a test's directory can be written");
            path
        };
        let archive = directory.join("image.tar");
        let mut command = Command::new(artifacts::engines().join("nix2container"));
        command.args(["build", "--ref", "image:latest", "--closure"]);
        command.arg(format!("{}/store-paths", self.path));
        command.arg("--config").arg(write("config.json", config));
        command.arg("--copy-to-root").arg(write("copy-to-root.json", &json!(copy_to_root)));
        if let Some(base) = base {
            command.arg("--from-image").arg(base);
        }
        Outcome::of(command.arg(&archive)).succeeds();
        archive
    }
}

/// Builds a derivation that a Nix expression gives in the scope of the package set; no GC root is left.
///
/// # Panics
/// When Nix fails.
#[must_use]
pub fn build(expression: &str) -> String {
    let expression = format!("with import {} {{ }}; {expression}", nix::package_set().display());
    let mut command = Command::new("nix-build");
    command.args(["--no-out-link", "--expr", &expression]).env("NIX_REMOTE", "daemon");
    Outcome::of(&mut command).succeeds().trim().to_owned()
}
