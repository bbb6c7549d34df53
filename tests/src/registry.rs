//! A registry on loopback, and what it was asked for.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts;
use crate::command::Outcome;
use crate::recipe::Recipe;
use crate::service::Service;

/// Where it listens. The node's network is its own, so the port is free.
const ADDRESS: &str = "127.0.0.1:5000";

/// Debian's registry, with a storage of its own.
#[derive(Debug)]
pub struct Registry {
    directory: PathBuf,
    _service: Service,
}

/// An HTTP request that the registry has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// `/v2/NAME/blobs/sha256:...`
    pub path: String,
    /// The status of the answer.
    pub status: u16,
}

impl Registry {
    /// Starts one that is empty.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(directory: &Path) -> Self {
        let storage = directory.join("registry");
        let config = directory.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{ADDRESS}'}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("the test's directory can be written");
        let mut command = Command::new("docker-registry");
        let mut service = Service::start(directory, "registry", command.arg("serve").arg(config));
        service.wait_until(|| TcpStream::connect(ADDRESS).is_ok());
        Self { directory: directory.to_owned(), _service: service }
    }

    /// Pushes an image, and returns its reference.
    ///
    /// # Panics
    /// When it cannot be made or pushed.
    #[must_use]
    pub fn push(&self, recipe: &Recipe) -> String {
        self.push_from(&format!("oci:{}", recipe.layout().display()), recipe.name())
    }

    /// Pushes an image from a place as skopeo names it (`oci:DIRECTORY:TAG`, `oci-archive:FILE`), and returns its
    /// reference.
    ///
    /// # Panics
    /// When skopeo fails.
    #[must_use]
    pub fn push_from(&self, source: &str, name: &str) -> String {
        let reference = format!("{ADDRESS}/{name}:latest");
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source]);
        Outcome::of(command.arg(format!("docker://{reference}"))).succeeds();
        reference
    }

    /// Pushes an image of nix2container with its own means, and returns its reference: skopeo of Debian 12 loses the
    /// annotations of layers that the registry has already.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn push_nix(&self, archive: &Path, name: &str) -> String {
        let reference = format!("{ADDRESS}/{name}:latest");
        let mut command = Command::new(artifacts::engines().join("nix2container"));
        command.args(["push", "--plain-http", "--ref", &reference]).arg(archive);
        Outcome::of(&mut command).succeeds();
        reference
    }

    /// Every request so far, in order.
    ///
    /// # Panics
    /// When the log is not readable.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(self.directory.join("log/registry")).expect("the registry has a log");
        log.lines().filter_map(parse_request).collect()
    }
}

/// Reads a line of Apache's combined format: `127.0.0.1 - - [date] "GET /v2/ HTTP/1.1" 200 2 "" "client"`.
fn parse_request(line: &str) -> Option<Request> {
    let (request, rest) = line.split_once("] \"")?.1.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let status = rest.split(' ').next()?.parse().ok()?;
    Some(Request { method, path, status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood() {
        let line =
            r#"127.0.0.1 - - [23/Nov/2026:11:02:33 +0000] "GET /v2/a/blobs/sha256:12 HTTP/1.1" 206 2 "" "x""#;
        let request = Request { method: "GET".into(), path: "/v2/a/blobs/sha256:12".into(), status: 206 };
        assert_eq!(parse_request(line), Some(request));
        assert_eq!(parse_request("level=warning msg=\"no secret\""), None);
    }
}
