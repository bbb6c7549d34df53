//! The socket, the peers, the life of the process.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use environment::layout::Layout;
use environment::protocol::{self, Request, Response, Status};
use environment::settings::Settings;
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::field;
use tracing::level_filters::LevelFilter;

use crate::logging::Format;
use crate::metrics::listener::Place;
use crate::resolver::{Resolver, message_of};
use crate::snapshots::{Snapshots, service};
use crate::{image_environment, logging, metrics, startup};

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 256;
/// How long a peer may be silent between requests, or not take an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long requests of containerd may take that are under way when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// The requests so far, of all peers.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// The daemon of nixenv: resolves configs into environments.
#[derive(Debug, clap::Parser)]
#[command(version)]
pub struct Arguments {
    /// What is logged: error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
    /// How it is written to standard error; the journal has a form of its own
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
    /// Puts everything below this directory, which is not / in tests only
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    prefix: PathBuf,
    #[command(subcommand)]
    pub confined: Option<Confined>,
}

/// What the daemon starts itself as.
#[derive(Debug, clap::Subcommand)]
pub enum Confined {
    /// Confines itself and becomes Nix.
    #[command(hide = true)]
    Sandbox {
        /// The confinement, in JSON.
        plan: String,
    },
}

/// Serves until it is told to stop.
///
/// # Errors
/// When it cannot start: another daemon runs, or a directory cannot be made.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    logging::start(arguments.log_level, arguments.log_format);
    let layout = Layout::under(&arguments.prefix);
    let _lock = lock(&layout)?;
    startup::recover(&layout)?;
    let resolver = Arc::new(Resolver::new(layout.clone()));
    if let Err(error) = resolver.nix() {
        tracing::warn!("{:#}", anyhow::Error::new(error));
    }
    let settings = Settings::load(&layout.settings())?;
    let place = Place::new(&settings.metrics, &layout)?;
    let snapshots = Arc::new(Snapshots::open(&layout, &settings.snapshotter)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_CONNECTIONS + 16)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(serve(&layout, &resolver, Arc::clone(&snapshots), place));
    snapshots.close();
    let _ = fs::remove_file(layout.socket());
    let _ = fs::remove_file(layout.snapshotter_socket());
    let _ = fs::remove_file(layout.metrics_socket());
    // What is under way ends with this process: its children are killed with their parent.
    runtime.shutdown_background();
    result
}

/// Makes this daemon the only one; the lock ends with the process, however it ends.
fn lock(layout: &Layout) -> anyhow::Result<File> {
    let directory = layout.run();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join("daemon.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another nixenv-snapshotter runs: it holds {}", path.display()))?;
    Ok(file)
}

async fn serve(
    layout: &Layout,
    resolver: &Arc<Resolver>,
    snapshots: Arc<Snapshots>,
    place: Place,
) -> anyhow::Result<()> {
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (listener, for_containerd) = (listen(&layout.socket())?, listen(&layout.snapshotter_socket())?);
    // The settings may have been others when an earlier daemon listened there.
    let _ = fs::remove_file(layout.metrics_socket());
    let daemon = Daemon { resolver: Arc::clone(resolver), snapshots: Arc::clone(&snapshots) };
    let (stop, stopped) = oneshot::channel::<()>();
    let mut service = tokio::spawn(service::serve(snapshots, for_containerd, async { drop(stopped.await) }));
    let told = daemon.clone();
    tokio::spawn(async move {
        if let Err(error) = metrics::listener::serve(place.clone(), move || told.status()).await {
            tracing::error!(%error, ?place, "metrics cannot be told");
        }
    });
    if let Err(error) = notify_ready() {
        tracing::warn!(%error, "cannot tell the service manager that the daemon is ready");
    }
    tracing::info!(directory = %layout.run().display(), "listening");
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((permit, stream.into_std()?))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            ended = &mut service => return ended?.context("the snapshots service ended"),
        };
        let (permit, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: some are freed when others end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (daemon, handle) = (daemon.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = converse(stream, &daemon, &handle) {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
    tracing::info!("stopping");
    // containerd keeps its connection; what it asked is answered.
    drop(stop);
    if timeout(FAREWELL, service).await.is_err() {
        tracing::warn!("stopped before every request was answered");
    }
    Ok(())
}

/// Listens at a socket that only root can connect to.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    // We hold the lock: nobody listens there.
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What requests are about.
#[derive(Clone)]
struct Daemon {
    resolver: Arc<Resolver>,
    snapshots: Arc<Snapshots>,
}

impl Daemon {
    /// What the daemon is doing.
    fn status(&self) -> Status {
        let snapshots = self.snapshots.summary().unwrap_or_else(|error| {
            tracing::warn!("cannot count the snapshots: {:#}", anyhow::Error::new(error));
            Default::default()
        });
        Status { snapshots, ..self.resolver.status() }
    }
}

/// Answers the requests of one peer.
fn converse(mut stream: UnixStream, daemon: &Daemon, runtime: &Handle) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        tracing::warn!(uid = peer.as_raw(), "refused a peer that is not root");
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    loop {
        let (request, descriptor) = match protocol::receive::<Request>(&mut stream) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!(
                    "the request is not understood; do the daemon and the runtime have one version ({})? {error}",
                    env!("CARGO_PKG_VERSION")
                );
                protocol::send(&mut stream, &Response::Failed { message }, None)?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let (started, id) = (Instant::now(), REQUESTS.fetch_add(1, Ordering::Relaxed) + 1);
        let span = tracing::info_span!("request", id, origin = field::Empty, key = field::Empty).entered();
        let response = answer(request, descriptor, &mut stream, daemon, runtime);
        tracing::debug!(elapsed_ms = started.elapsed().as_millis(), "answered");
        drop(span);
        protocol::send(&mut stream, &response, None)?;
    }
}

fn answer(
    request: Request,
    descriptor: Option<OwnedFd>,
    stream: &mut UnixStream,
    daemon: &Daemon,
    runtime: &Handle,
) -> Response {
    let result = match request {
        Request::Status => Ok(Response::Status(daemon.status())),
        Request::ImageEnvironment(request) => runtime
            .block_on(image_environment::load(&request))
            .map(Response::ImageEnvironment)
            .map_err(message_of),
        Request::Resolve(request) => daemon
            .resolver
            .resolve(request, descriptor, |progress| {
                protocol::send(stream, &Response::Progress(progress), None)
            })
            .map(|(key, evaluated)| Response::Resolved { key, evaluated })
            .map_err(message_of),
    };
    result.unwrap_or_else(|message| Response::Failed { message })
}

/// Tells the service manager that requests are answered from now on (sd_notify(3)).
fn notify_ready() -> io::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match address.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(&address))?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}
