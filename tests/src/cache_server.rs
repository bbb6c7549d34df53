//! The binary cache of the test package set, over HTTP on loopback.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::artifacts;
use crate::service::Service;

/// Where it listens. The node's network is its own, so the port is free.
const ADDRESS: &str = "127.0.0.1:8080";

/// Its URL, as Nix's `substituters` has it.
#[must_use]
pub fn url() -> String {
    format!("http://{ADDRESS}")
}

/// Starts it.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn start(directory: &Path) -> Service {
    let mut command = Command::new("/bin/busybox");
    command.args(["httpd", "-f", "-v", "-p", ADDRESS, "-h"]).arg(artifacts::packages().join("cache"));
    let mut service = Service::start(directory, "cache-server", &mut command);
    service.wait_until(|| TcpStream::connect(ADDRESS).is_ok());
    service
}
