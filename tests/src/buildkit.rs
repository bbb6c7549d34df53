//! BuildKit, which `nerdctl build` asks.

use std::path::Path;
use std::process::Command;

use crate::artifacts;
use crate::containerd::Snapshotter;
use crate::service::Service;

/// Starts it; it builds in containerd, on one of containerd's snapshotters.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start(directory: &Path, snapshotter: Snapshotter) -> Service {
    let mut command = Command::new(artifacts::engines().join("buildkitd"));
    command
        .arg("--root")
        .arg(directory.join("buildkit"))
        .args(["--oci-worker=false", "--containerd-worker=true", "--containerd-worker-net=host"])
        .args(["--containerd-worker-namespace=default", "--containerd-worker-snapshotter"])
        .arg(snapshotter.name());
    Service::start_until(directory, "buildkitd", &mut command, |log| log.contains("running server on"))
}
