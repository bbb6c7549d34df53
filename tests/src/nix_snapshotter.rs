//! nix-snapshotter, the peer that is measured beside the product.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use crate::artifacts;
use crate::service::Service;

/// Where it listens, by its own default.
const SOCKET: &str = "/run/nix-snapshotter/nix-snapshotter.sock";

/// Tells containerd of it.
///
/// # Panics
/// When the configuration cannot be written.
pub fn configure() {
    let path = "/etc/containerd/config.toml";
    let configured = fs::read_to_string(path).expect("containerd is configured");
    let plugin = format!("[proxy_plugins.nix]\ntype = \"snapshot\"\naddress = \"{SOCKET}\"\n");
    fs::write(path, configured + &plugin).expect("/etc can be written");
}

/// Starts it, beside a containerd that runs.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start(directory: &Path) -> Service {
    let mut command = Command::new(artifacts::engines().join("nix-snapshotter"));
    let mut service = Service::start(directory, "nix-snapshotter", &mut command);
    service.wait_until(|| UnixStream::connect(SOCKET).is_ok());
    service
}
