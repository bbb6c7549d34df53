//! Frames between the runtime wrapper and the daemon.
//!
//! A frame is its length (4 bytes, big endian, at most [`MAX_FRAME`]) and that much JSON, over a Unix stream
//! socket. A [`Request::Resolve`] carries one file descriptor (`SCM_RIGHTS`, with the first byte of the frame): a
//! sealed memory file that holds the snapshot's Nix archive. The daemon answers with any number of
//! [`Response::Progress`] and one other response.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::key::Key;
use crate::snapshot::Inputs;

/// The largest frame in bytes: 4 MiB, which the inputs of 1,000 files do not reach.
pub const MAX_FRAME: usize = 4 << 20;

/// What the daemon is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Resolve the snapshot in the accompanying descriptor; answered by [`Response::Resolved`].
    Resolve(Resolve),
    /// The `Env` of the image that a container was made from; answered by [`Response::ImageEnvironment`].
    ImageEnvironment(ImageEnvironment),
    /// What the daemon is doing; answered by [`Response::Status`].
    Status,
}

/// A config to resolve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolve {
    /// What the user called the config, for logs and messages.
    pub origin: String,
    /// The path of the entry file in the archive.
    pub entry: String,
    /// `nixenv.attr`.
    pub attr: Option<String>,
    /// What was observed when the snapshot was taken.
    pub inputs: Inputs,
}

/// A container that containerd knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageEnvironment {
    /// containerd's socket (`GRPC_ADDRESS`).
    pub address: String,
    /// containerd's namespace (`NAMESPACE`).
    pub namespace: String,
    /// The container's id.
    pub container: String,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Work goes on.
    Progress(Progress),
    /// The environment's manifest is published.
    Resolved {
        /// Its key.
        key: Key,
        /// Whether this request, or one that it joined, evaluated.
        evaluated: bool,
    },
    /// The image's `Env`.
    ImageEnvironment(Vec<String>),
    /// What the daemon is doing.
    Status(Status),
    /// The request failed; the message is for the user, whole.
    Failed {
        /// What, where and how to mend it.
        message: String,
    },
}

/// How far a resolve is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done: `evaluate`, `realise`, `view`, `publish`.
    pub phase: String,
    /// How much of `total` is done; both 0 when unknown.
    pub done: u64,
    /// See `done`.
    pub total: u64,
    /// The last line of Nix's own output.
    pub detail: String,
}

/// What the daemon is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The Nix it runs.
    pub nix_version: String,
    /// How long it has run, in seconds.
    pub up_seconds: u64,
    /// Evaluations since it started.
    pub evaluations: u64,
    /// Environments that are being resolved now.
    pub in_flight: u64,
    /// Requests that wait for them.
    pub waiting: u64,
    /// The environments of the node.
    pub environments: Environments,
    /// The snapshots of the node.
    pub snapshots: Snapshots,
    /// What went wrong last, oldest first.
    pub errors: Vec<Report>,
}

/// The environments of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environments {
    /// How many are cached.
    pub count: u64,
    /// The sum of their closures' sizes, in bytes; what they share counts for each.
    pub bytes: u64,
    /// Starts that the cache had the environment for, since the node was booted.
    pub hits: u64,
    /// Requests to resolve, since the daemon started.
    pub misses: u64,
}

/// The snapshots of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// Active ones.
    pub active: u64,
    /// Views.
    pub views: u64,
    /// Committed ones.
    pub committed: u64,
    /// The layers among them that name store paths.
    pub store: StoreLayers,
}

/// What layers show of the node's store instead of holding it. Sizes are those of Nix's archives of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLayers {
    /// The layers.
    pub layers: u64,
    /// The store paths that they show, for each layer.
    pub paths: u64,
    /// Their sizes in bytes, for each layer: what the layers would take if they were unpacked, and so what is saved.
    pub bytes: u64,
    /// The store paths, each once.
    pub distinct_paths: u64,
    /// Their sizes in bytes, each once: what of the node's store is in use by layers.
    pub distinct_bytes: u64,
}

/// Something that went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// What the daemon's log says of it.
    pub message: String,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Client {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// When nothing listens at `socket`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        UnixStream::connect(socket).map(Self)
    }

    /// Asks, and waits at most `patience` for each frame of the answer.
    ///
    /// # Errors
    /// `TimedOut`/`WouldBlock` when the daemon is silent for too long, `UnexpectedEof` when it went away.
    pub fn ask(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
        patience: Option<Duration>,
        mut progress: impl FnMut(Progress),
    ) -> io::Result<Response> {
        let deadline = patience.map(|patience| std::time::Instant::now() + patience);
        send(&mut self.0, request, descriptor)?;
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(left)?;
            match receive(&mut self.0)?.0 {
                Response::Progress(update) => progress(update),
                answer => return Ok(answer),
            }
        }
    }
}

/// Sends one frame.
///
/// # Errors
/// When the peer is gone, or the frame is larger than [`MAX_FRAME`].
pub fn send(
    stream: &mut UnixStream,
    frame: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let json = serde_json::to_vec(frame)?;
    if json.len() > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a frame of {} bytes is too large", json.len()),
        ));
    }
    let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
    bytes.extend(json);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let sent =
        rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
}

/// Receives one frame, and the descriptor that came with it.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream; `InvalidData` for a frame that is too large or not understood.
pub fn receive<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> io::Result<(T, Option<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    let descriptor = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .last();
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut length[received..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too large"),
        ));
    }
    let mut json = Vec::new();
    stream.take(length as u64).read_to_end(&mut json)?;
    if json.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&json)?, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_and_its_descriptor_arrive() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&mut here, &Request::Status, Some(file.as_fd())).unwrap();
        let (request, descriptor) = receive::<Request>(&mut there).unwrap();
        assert_eq!(request, Request::Status);
        assert!(descriptor.is_some());
        drop(here);
        assert_eq!(receive::<Request>(&mut there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_announced_giant_is_refused_before_it_is_read() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(receive::<Request>(&mut there).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_cut_short_is_an_end_of_stream() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&[0, 0, 0, 9, b'"']).unwrap();
        drop(here);
        assert_eq!(receive::<Request>(&mut there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn silence_ends_with_a_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let answer = Client::connect(&socket).unwrap().ask(
            &Request::Status,
            None,
            Some(Duration::from_millis(20)),
            |_| (),
        );
        assert!(matches!(answer.unwrap_err().kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
    }
}
