//! What the product's programs are made of.

use std::fs;
use std::process::Command;

use e2e::artifacts;
use e2e::command::Outcome;

#[test]
fn the_runtime_wrapper_links_no_async_runtime() {
    let tree = Outcome::of(
        Command::new(env!("CARGO"))
            .args(["tree", "--package", "nixenv-runc", "--edges", "normal", "--prefix", "none", "--locked"])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    )
    .succeeds();
    assert!(tree.contains("environment v"), "{tree}");
    let forbidden: Vec<&str> = tree
        .lines()
        .filter(|line| {
            ["tokio", "tonic", "hyper", "async-", "futures"].iter().any(|name| line.starts_with(name))
        })
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}

#[test]
fn the_runtime_wrapper_is_small_and_static() {
    let program = artifacts::product().join("nixenv-runc");
    let size = fs::metadata(&program).expect("tests/run has built it").len();
    assert!(size <= 4 << 20, "{size} bytes");
    let linked = Outcome::of(Command::new("ldd").arg(&program));
    assert!(format!("{}{}", linked.stdout, linked.stderr).contains("statically linked"), "{linked:?}");
}
