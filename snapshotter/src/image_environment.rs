//! What containerd knows of a container's image: the `Env` that the image brought.
//!
//! An OCI spec has lost the difference between what the user set and what the image set. From container to image name,
//! to manifest, to config, as containerd's `client.Image.Config` goes.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetContainerRequest, GetImageRequest, ReadContentRequest};
use containerd_client::tonic::metadata::MetadataValue;
use containerd_client::tonic::transport::{self, Channel};
use containerd_client::tonic::{Request, Status};
use environment::protocol::ImageEnvironment;
use serde::Deserialize;

/// containerd is asked while a container's start waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Indexes, manifests and configs are small; the registry limits a manifest to 4 MiB.
const MAX_BLOB_BYTES: usize = 4 << 20;

/// An image's environment that cannot be learnt.
#[derive(Debug, thiserror::Error)]
pub enum ImageEnvironmentError {
    /// Where containerd should be is no socket.
    #[error("containerd's address '{address}' is not the absolute path of a socket")]
    Address {
        /// What it is.
        address: String,
    },
    /// Nobody answers.
    #[error("cannot connect to containerd at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        source: transport::Error,
    },
    /// It answers too late.
    #[error("containerd did not answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// It refuses.
    #[error("containerd does not give the {what}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: Box<Status>,
    },
    /// The image is not what is expected.
    #[error("the image's {what} is not understood")]
    Parse {
        /// Which part.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// A part of the image is too large, or not there.
    #[error("the image has no {what} for this node, or it is larger than {MAX_BLOB_BYTES} bytes")]
    Unsuitable {
        /// Which part.
        what: &'static str,
    },
    /// A name that cannot be sent.
    #[error("'{namespace}' is not a name of a containerd namespace")]
    Namespace {
        /// The name.
        namespace: String,
    },
}

/// An index, a manifest list, or a manifest: OCI and Docker name these fields alike.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ImageConfig {
    config: Option<RunConfig>,
}

#[derive(Deserialize)]
struct RunConfig {
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
}

/// The `Env` of the image that a container was made from.
///
/// # Errors
/// When containerd does not answer in time, or does not know the container or its image.
pub async fn load(request: &ImageEnvironment) -> Result<Vec<String>, ImageEnvironmentError> {
    let address = request.address.strip_prefix("unix://").unwrap_or(&request.address);
    check_address(address).map_err(|_| ImageEnvironmentError::Address { address: address.to_owned() })?;
    tokio::time::timeout(PATIENCE, ask(address, request))
        .await
        .map_err(|_| ImageEnvironmentError::TimedOut)?
}

fn check_address(address: &str) -> io::Result<()> {
    let path = Path::new(address);
    if path.is_absolute() && path.metadata()?.file_type().is_socket() {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

async fn ask(address: &str, request: &ImageEnvironment) -> Result<Vec<String>, ImageEnvironmentError> {
    let channel = containerd_client::connect(address)
        .await
        .map_err(|source| ImageEnvironmentError::Connect { address: address.to_owned(), source })?;
    let containerd = Containerd { channel, namespace: &request.namespace };
    let refused = |what| move |source| ImageEnvironmentError::Refused { what, source: Box::new(source) };

    let container = containerd.request(GetContainerRequest { id: request.container.clone() })?;
    let container = ContainersClient::new(containerd.channel.clone()).get(container).await;
    let name = container.map_err(refused("container"))?.into_inner().container.unwrap_or_default().image;
    let image = containerd.request(GetImageRequest { name })?;
    let image = ImagesClient::new(containerd.channel.clone()).get(image).await;
    let image = image.map_err(refused("image"))?.into_inner().image.unwrap_or_default();
    let mut digest = image.target.unwrap_or_default().digest;
    // An index may lead to another index; no image nests deeper.
    for _ in 0..3 {
        let manifest: Manifest = containerd.parse(&digest, "manifest").await?;
        if let Some(config) = manifest.config {
            let config: ImageConfig = containerd.parse(&config.digest, "config").await?;
            return Ok(config.config.and_then(|config| config.env).unwrap_or_default());
        }
        digest =
            of_this_node(manifest.manifests).ok_or(ImageEnvironmentError::Unsuitable { what: "manifest" })?;
    }
    Err(ImageEnvironmentError::Unsuitable { what: "manifest" })
}

/// The manifest for this node: among several variants of the architecture the `Env` is the same.
fn of_this_node(manifests: Vec<Descriptor>) -> Option<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "riscv64" => "riscv64",
        other => other,
    };
    let suits = |descriptor: &Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture)
    };
    manifests.into_iter().find(suits).map(|descriptor| descriptor.digest)
}

/// containerd's API, in one namespace.
struct Containerd<'a> {
    channel: Channel,
    namespace: &'a str,
}

impl Containerd<'_> {
    fn request<T>(&self, message: T) -> Result<Request<T>, ImageEnvironmentError> {
        let namespace = MetadataValue::try_from(self.namespace)
            .map_err(|_| ImageEnvironmentError::Namespace { namespace: self.namespace.to_owned() })?;
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", namespace);
        Ok(request)
    }

    async fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        digest: &str,
        what: &'static str,
    ) -> Result<T, ImageEnvironmentError> {
        let refused = |source| ImageEnvironmentError::Refused { what, source: Box::new(source) };
        let request = self.request(ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 })?;
        let mut parts =
            ContentClient::new(self.channel.clone()).read(request).await.map_err(refused)?.into_inner();
        let mut blob = Vec::new();
        while let Some(part) = parts.message().await.map_err(refused)? {
            blob.extend(part.data);
            if blob.len() > MAX_BLOB_BYTES {
                return Err(ImageEnvironmentError::Unsuitable { what });
            }
        }
        serde_json::from_slice(&blob).map_err(|source| ImageEnvironmentError::Parse { what, source })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_relative_path("run/containerd.sock")]
    #[case::a_file_that_is_no_socket("/etc/passwd")]
    #[case::nothing("/nonexistent/containerd.sock")]
    #[case::a_network_address("tcp://127.0.0.1:80")]
    #[tokio::test]
    async fn an_address_is_the_path_of_a_socket(#[case] address: &str) {
        let request = ImageEnvironment {
            address: address.to_owned(),
            namespace: "default".to_owned(),
            container: "c".to_owned(),
        };
        assert!(matches!(load(&request).await, Err(ImageEnvironmentError::Address { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_containerd_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let request = ImageEnvironment {
            address: socket.to_str().unwrap().to_owned(),
            namespace: "default".to_owned(),
            container: "c".to_owned(),
        };
        assert!(matches!(load(&request).await, Err(ImageEnvironmentError::TimedOut)));
    }

    #[test]
    fn an_index_leads_to_the_manifest_of_this_node() {
        let index: Manifest = serde_json::from_str(
            r#"{"manifests": [
                {"digest": "sha256:windows", "platform": {"architecture": "amd64", "os": "windows"}},
                {"digest": "sha256:arm", "platform": {"architecture": "arm64", "os": "linux"}},
                {"digest": "sha256:amd", "platform": {"architecture": "amd64", "os": "linux"}}]}"#,
        )
        .unwrap();
        let expected = if cfg!(target_arch = "x86_64") { "sha256:amd" } else { "sha256:arm" };
        assert_eq!(of_this_node(index.manifests).as_deref(), Some(expected));
    }
}
