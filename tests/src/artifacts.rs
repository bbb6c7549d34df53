//! What `tests/run` has built.

use std::env;
use std::path::PathBuf;

/// The workspace's target directory: the one that holds this very program.
#[must_use]
pub fn target() -> PathBuf {
    let program = env::current_exe().expect("a program has a path");
    let target = program.ancestors().nth(3).expect("a test lies in target/PROFILE/deps");
    target.to_owned()
}

/// The engines that Debian does not have: containerd, its shim, `ctr` and `nerdctl`.
#[must_use]
pub fn engines() -> PathBuf {
    target().join("engines/bin")
}

/// The product's programs, as they are released.
#[must_use]
pub fn product() -> PathBuf {
    target().join("product")
}

/// The test package set, its binary cache and the cache's public key.
#[must_use]
pub fn packages() -> PathBuf {
    target().join("packages")
}
