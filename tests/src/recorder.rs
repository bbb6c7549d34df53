//! Recorders of the specs that go through the runtime wrapper.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// What came to the wrapper, and what it gave to the runtime below it, when a container was created.
#[derive(Debug)]
pub struct Specs {
    /// What the engine wrote.
    pub before: Vec<u8>,
    /// What the inner runtime was given.
    pub after: Vec<u8>,
    /// Inode and time of both files, which tell of a rewrite with the same content.
    pub identities: [String; 2],
}

/// Puts a recorder before `runtime` (the directory first on containerd's PATH) and one after it, and returns
/// the new first directory and the new inner runtime.
///
/// # Panics
/// When they cannot be written.
#[must_use]
pub fn install(directory: &Path, runtime: &Path, inner: &Path) -> (PathBuf, PathBuf) {
    let first = directory.join("recorders");
    fs::create_dir_all(&first).expect("a directory can be made");
    write(directory, &first.join("runc"), "before", &runtime.join("runc"));
    write(directory, &first.join("inner"), "after", inner);
    (first.clone(), first.join("inner"))
}

fn write(directory: &Path, recorder: &Path, when: &str, next: &Path) {
    let specs = directory.join("specs");
    fs::create_dir_all(&specs).expect("a directory can be made");
    let text = format!(
        r#"#!/bin/sh
previous= create=
for argument; do
    [ "$argument" != create ] || create=1
    [ "$previous" != --bundle ] || bundle=$argument
    previous=$argument
done
if [ -n "$create" ]; then
    cp "$bundle/config.json" {specs}/{when}.json
    stat -c '%i %y %z' "$bundle/config.json" > {specs}/{when}.stat
fi
exec {next} "$@"
"#,
        specs = specs.display(),
        next = next.display(),
    );
    fs::write(recorder, text).expect("a file can be written");
    fs::set_permissions(recorder, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// What was recorded last.
///
/// # Panics
/// When nothing was.
#[must_use]
pub fn specs(directory: &Path) -> Specs {
    let read = |name: &str| fs::read(directory.join("specs").join(name)).expect("the runtime was recorded");
    let identity = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
    Specs {
        before: read("before.json"),
        after: read("after.json"),
        identities: [identity("before.stat"), identity("after.stat")],
    }
}
