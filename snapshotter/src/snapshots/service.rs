//! The service that containerd calls (`containerd.services.snapshots.v1`), as a proxy plugin.
//!
//! The one module that knows the types of the crate `containerd-snapshots` and of the gRPC that it brings. Of the
//! protocol it lacks the parent that a commit may name; [`Requests`] takes it from the message itself.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use containerd_snapshots::api::types;
use containerd_snapshots::tonic::body::BoxBody;
use containerd_snapshots::tonic::codegen::http::{Request, Response};
use containerd_snapshots::tonic::codegen::{Body as _, Service};
use containerd_snapshots::tonic::server::NamedService;
use containerd_snapshots::tonic::transport::{Body, Server};
use containerd_snapshots::tonic::{Code, Status, async_trait};
use containerd_snapshots::{Info, Kind, Snapshotter, Usage};
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tracing::Instrument as _;

use super::Snapshots;
use super::error::{self, SnapshotError};
use super::filter;
use super::info;
use super::mounts::Mount;
use crate::metrics;

/// The largest message, which is containerd's own limit (`defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How many snapshots of a list go from the database to the connection at once: as many as are in a message.
const BATCH: usize = 100;
/// How many batches may wait for the client. A list is never in memory as a whole.
const BATCHES_AHEAD: usize = 4;

tokio::task_local! {
    /// The parent that the commit of this task names.
    static NEW_PARENT: String;
}

/// Serves snapshots to those who connect, until `stop` is done.
///
/// # Errors
/// When connections can no longer be accepted.
pub async fn serve(
    snapshots: Arc<Snapshots>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let service = containerd_snapshots::server(Arc::new(Face(snapshots)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .add_service(Requests(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    Ok(())
}

/// The snapshots, as the protocol sees them.
struct Face(Arc<Snapshots>);

impl Face {
    /// Files and databases block.
    async fn blocking<T: Send + 'static>(
        &self,
        key: String,
        work: impl FnOnce(&Snapshots, &str) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Status> {
        let (snapshots, span) = (Arc::clone(&self.0), tracing::Span::current());
        span.record("key", &*key);
        tokio::task::spawn_blocking(move || span.in_scope(|| work(&snapshots, &key)))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(to_status)
    }
}

type Labels = std::collections::HashMap<String, String>;

#[async_trait]
impl Snapshotter for Face {
    type Error = Status;
    type InfoStream = List;

    async fn stat(&self, key: String) -> Result<Info, Status> {
        self.blocking(key, move |snapshots, key| snapshots.stat(key)).await.map(to_info)
    }

    async fn update(&self, info: Info, fields: Option<Vec<String>>) -> Result<Info, Status> {
        let info = from_info(info);
        self.blocking(info.name.clone(), move |snapshots, _| {
            snapshots.update(&info, &fields.unwrap_or_default())
        })
        .await
        .map(to_info)
    }

    async fn usage(&self, key: String) -> Result<Usage, Status> {
        let usage = self.blocking(key, move |snapshots, key| snapshots.usage(key)).await?;
        let limit = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Usage { inodes: limit(usage.inodes), size: limit(usage.bytes) })
    }

    async fn mounts(&self, key: String) -> Result<Vec<types::Mount>, Status> {
        self.blocking(key, move |snapshots, key| snapshots.mounts(key)).await.map(to_mounts)
    }

    async fn prepare(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<types::Mount>, Status> {
        let labels = labels.into_iter().collect();
        self.blocking(key, move |snapshots, key| snapshots.create(info::Kind::Active, key, &parent, &labels))
            .await
            .map(to_mounts)
    }

    async fn view(&self, key: String, parent: String, labels: Labels) -> Result<Vec<types::Mount>, Status> {
        let labels = labels.into_iter().collect();
        self.blocking(key, move |snapshots, key| snapshots.create(info::Kind::View, key, &parent, &labels))
            .await
            .map(to_mounts)
    }

    async fn commit(&self, name: String, key: String, labels: Labels) -> Result<(), Status> {
        let labels = labels.into_iter().collect();
        let parent = NEW_PARENT.try_with(Clone::clone).unwrap_or_default();
        self.blocking(key, move |snapshots, key| snapshots.commit(&name, key, &parent, &labels)).await
    }

    async fn remove(&self, key: String) -> Result<(), Status> {
        self.blocking(key, move |snapshots, key| snapshots.remove(key)).await
    }

    async fn clear(&self) -> Result<(), Status> {
        self.blocking(String::new(), |snapshots, _| snapshots.clean_up()).await
    }

    async fn list(&self, _: String, filters: Vec<String>) -> Result<Self::InfoStream, Status> {
        let filter = filter::parse_all(&filters)
            .map_err(|error| Status::invalid_argument(format!("{:#}", anyhow::Error::new(error))))?;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let (snapshots, span) = (Arc::clone(&self.0), tracing::Span::current());
        tokio::task::spawn_blocking(move || {
            let _entered = span.enter();
            let mut batch = Vec::new();
            let listed = snapshots.list(&filter, |info| {
                batch.push(to_info(info));
                // A client that has gone receives no more.
                batch.len() < BATCH || sender.blocking_send(Ok(std::mem::take(&mut batch))).is_ok()
            });
            let _ = sender.blocking_send(listed.map(|()| batch).map_err(to_status));
        });
        Ok(List { batches, batch: Vec::new().into_iter() })
    }
}

/// A list on its way to the client.
struct List {
    batches: mpsc::Receiver<Result<Vec<Info>, Status>>,
    batch: std::vec::IntoIter<Info>,
}

impl Stream for List {
    type Item = Result<Info, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(info) = self.batch.next() {
                return Poll::Ready(Some(Ok(info)));
            }
            match ready!(self.batches.poll_recv(context)) {
                None => return Poll::Ready(None),
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
            }
        }
    }
}

/// The requests on their way to the service: each gets a span, and a commit its parent.
#[derive(Clone)]
struct Requests<S>(S);

impl<S: NamedService> NamedService for Requests<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Requests<S>
where
    S: Service<Request<Body>, Response = Response<BoxBody>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut service = self.0.clone();
        let operation = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let span = tracing::info_span!("snapshot", operation, key = tracing::field::Empty);
        let answer = async move {
            let start = Instant::now();
            let response = if operation == "Commit" {
                match parent_of(request).await {
                    Ok((parent, request)) => NEW_PARENT.scope(parent, service.call(request)).await?,
                    Err(status) => status.to_http(),
                }
            } else {
                service.call(request).await?
            };
            // An answer that is only a failure has its code among the headers.
            let code = response
                .headers()
                .get("grpc-status")
                .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
            metrics::observe(&operation, code, start.elapsed());
            tracing::debug!(?code, elapsed_us = start.elapsed().as_micros(), "answered");
            Ok(response)
        };
        Box::pin(answer.instrument(span))
    }
}

/// The parent that a commit names, and the commit.
async fn parent_of(request: Request<Body>) -> Result<(String, Request<Body>), Status> {
    /// The one field of `CommitSnapshotRequest` that the crate does not know, since containerd 2.2.
    #[derive(prost::Message)]
    struct Parent {
        #[prost(string, tag = "5")]
        parent: String,
    }
    /// A frame of gRPC: whether it is compressed, and the message's length.
    const HEADER_BYTES: usize = 5;

    let (parts, mut body) = request.into_parts();
    let mut frame = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|error| Status::unavailable(error.to_string()))?;
        frame.extend_from_slice(&chunk);
        if frame.len() > MAX_MESSAGE_BYTES + HEADER_BYTES {
            return Err(Status::out_of_range("the message is larger than 16 MiB"));
        }
    }
    // What cannot be decoded here the service refuses, in its own words.
    let parent = frame.get(HEADER_BYTES..).and_then(|message| Parent::decode(message).ok());
    let parent = parent.map(|message| message.parent).unwrap_or_default();
    Ok((parent, Request::from_parts(parts, frame.into())))
}

fn to_status(error: SnapshotError) -> Status {
    let code = match error.code() {
        error::Code::InvalidArgument => Code::InvalidArgument,
        error::Code::NotFound => Code::NotFound,
        error::Code::AlreadyExists => Code::AlreadyExists,
        error::Code::FailedPrecondition => Code::FailedPrecondition,
        error::Code::ResourceExhausted => Code::ResourceExhausted,
        error::Code::Internal => Code::Internal,
    };
    let message = format!("{:#}", anyhow::Error::new(error));
    match code {
        Code::Internal | Code::ResourceExhausted => tracing::error!("{message}"),
        _ => tracing::debug!("{message}"),
    }
    Status::new(code, message)
}

fn to_mounts(mount: Mount) -> Vec<types::Mount> {
    vec![types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    }]
}

fn to_info(info: info::Info) -> Info {
    Info {
        kind: match info.kind {
            info::Kind::View => Kind::View,
            info::Kind::Active => Kind::Active,
            info::Kind::Committed => Kind::Committed,
        },
        name: info.name,
        parent: info.parent,
        labels: info.labels.into_iter().collect(),
        created_at: info.created,
        updated_at: info.updated,
    }
}

fn from_info(info: Info) -> info::Info {
    info::Info {
        name: info.name,
        parent: info.parent,
        kind: match info.kind {
            Kind::View => info::Kind::View,
            Kind::Committed => info::Kind::Committed,
            Kind::Active | Kind::Unknown => info::Kind::Active,
        },
        labels: info.labels.into_iter().collect(),
        created: info.created_at,
        updated: info.updated_at,
    }
}
