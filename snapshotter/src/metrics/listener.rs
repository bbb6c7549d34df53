//! Where metrics are told: HTTP on a Unix socket or on the loopback interface.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{io, net};

use environment::layout::Layout;
use environment::protocol::Status;
use environment::settings::Metrics as Settings;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE as HEADER;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// The form of the metrics.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Scrapes at once; more wait.
const MAX_CONNECTIONS: usize = 8;
/// How long a peer may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where metrics are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Nowhere,
    /// On a Unix socket.
    Socket(PathBuf),
    /// On a TCP port.
    Port(SocketAddr),
}

/// Settings that name no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It has another form.
    #[error(
        "`listen = \"{0}\"` in the section [metrics] of the settings is no place; write \"unix:/PATH\", \"127.0.0.1:PORT\" or \"off\""
    )]
    Form(String),
    /// Other machines would reach it.
    #[error(
        "`listen = \"{0}\"` in the section [metrics] of the settings is no address of the loopback interface, and metrics are told without asking who wants them; if other machines may read them, add `allow-remote = true`"
    )]
    Remote(SocketAddr),
}

impl Place {
    /// The place that the settings name.
    ///
    /// # Errors
    /// When they name none, or one that other machines can reach without saying that they may.
    pub fn new(settings: &Settings, layout: &Layout) -> Result<Self, PlaceError> {
        let Some(text) = &settings.listen else { return Ok(Self::Socket(layout.metrics_socket())) };
        if text == "off" {
            return Ok(Self::Nowhere);
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Socket(path.into()));
        }
        let address: SocketAddr =
            text.parse().map_err(|_: net::AddrParseError| PlaceError::Form(text.clone()))?;
        if address.ip().to_canonical().is_loopback() || settings.allow_remote {
            Ok(Self::Port(address))
        } else {
            Err(PlaceError::Remote(address))
        }
    }
}

/// Tells metrics to whoever asks, for ever; `status` is looked up for each.
///
/// # Errors
/// When nothing can listen there.
pub async fn serve(
    place: Place,
    status: impl Fn() -> Status + Clone + Send + Sync + 'static,
) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    match place {
        Place::Nowhere => Ok(()),
        Place::Socket(path) => {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            loop {
                let permit = Arc::clone(&connections).acquire_owned().await.map_err(io::Error::other)?;
                match listener.accept().await {
                    Ok((stream, _)) => answer(stream, status.clone(), permit),
                    Err(error) => pause(error).await,
                }
            }
        }
        Place::Port(address) => {
            let listener = TcpListener::bind(address).await?;
            loop {
                let permit = Arc::clone(&connections).acquire_owned().await.map_err(io::Error::other)?;
                match listener.accept().await {
                    Ok((stream, _)) => answer(stream, status.clone(), permit),
                    Err(error) => pause(error).await,
                }
            }
        }
    }
}

async fn pause(error: io::Error) {
    tracing::debug!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn answer<T: Send + 'static>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    status: impl Fn() -> Status + Clone + Send + Sync + 'static,
    permit: T,
) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let status = status.clone();
        async move {
            let empty = |code| {
                let mut response = Response::new(Full::new(Bytes::new()));
                *response.status_mut() = code;
                response
            };
            Ok::<_, Infallible>(match (request.method(), request.uri().path()) {
                (&Method::GET, "/metrics") => {
                    // Files and databases block.
                    match tokio::task::spawn_blocking(move || super::render(&status())).await {
                        Ok(text) => {
                            let mut response = Response::new(Full::from(text));
                            response
                                .headers_mut()
                                .insert(HEADER, hyper::header::HeaderValue::from_static(CONTENT_TYPE));
                            response
                        }
                        Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
                    }
                }
                (_, "/metrics") => empty(StatusCode::METHOD_NOT_ALLOWED),
                _ => empty(StatusCode::NOT_FOUND),
            })
        }
    });
    tokio::spawn(async move {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a scrape ended");
        }
        drop(permit);
    });
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    fn place(listen: Option<&str>, allow_remote: bool) -> Result<Place, String> {
        let settings = Settings { listen: listen.map(str::to_owned), allow_remote };
        Place::new(&settings, &Layout::node()).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case::a_socket_beside_the_daemons_own_by_default(None, Place::Socket("/run/nixenv/metrics.sock".into()))]
    #[case::another_socket(Some("unix:/run/m.sock"), Place::Socket("/run/m.sock".into()))]
    #[case::off(Some("off"), Place::Nowhere)]
    #[case::loopback(Some("127.0.0.1:9750"), Place::Port(([127, 0, 0, 1], 9750).into()))]
    #[case::all_of_loopback(Some("127.8.9.10:1"), Place::Port(([127, 8, 9, 10], 1).into()))]
    #[case::loopback_of_ipv6(Some("[::1]:9750"), Place::Port("[::1]:9750".parse().unwrap()))]
    fn a_place_is_understood(#[case] listen: Option<&str>, #[case] expected: Place) {
        assert_eq!(place(listen, false), Ok(expected));
    }

    #[rstest]
    #[case::every_interface("0.0.0.0:9750", "allow-remote")]
    #[case::an_address_of_the_network("10.0.0.1:9750", "allow-remote")]
    #[case::every_interface_of_ipv6("[::]:9750", "allow-remote")]
    #[case::a_name("localhost:9750", "is no place")]
    #[case::a_relative_socket("unix:m.sock", "is no place")]
    #[case::nothing("", "is no place")]
    fn a_place_is_refused(#[case] listen: &str, #[case] expected: &str) {
        assert!(place(Some(listen), false).unwrap_err().contains(expected));
        assert_eq!(place(Some(listen), true).is_ok(), expected == "allow-remote");
    }

    #[rstest]
    #[case::metrics("GET /metrics", "HTTP/1.1 200", "nixenv_resolves_waiting 3\n")]
    #[case::something_else("GET /", "HTTP/1.1 404", "")]
    #[case::a_change("POST /metrics", "HTTP/1.1 405", "")]
    #[tokio::test]
    async fn a_request_is_answered(#[case] request: &str, #[case] head: &str, #[case] body: &str) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        // One that a daemon before this one left.
        fs::write(&socket, "").unwrap();
        let status = || Status { waiting: 3, ..Status::default() };
        tokio::spawn(serve(Place::Socket(socket.clone()), status));
        let mut stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(head) && answer.contains(body), "{answer}");
    }
}
