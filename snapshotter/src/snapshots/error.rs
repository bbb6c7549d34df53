//! Why an operation on a snapshot fails.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::id_mapping::IdMappingError;
use super::info::Kind;
use super::layer::{LayerError, labels::ParseLabelsError};

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has the name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// A snapshot has the name already.
    #[error("snapshot {0:?} exists already")]
    AlreadyExists(String),
    /// The parent is not there.
    #[error("parent {0:?} does not exist")]
    ParentNotFound(String),
    /// The parent of a new snapshot may still change.
    #[error("parent {0:?} is not committed")]
    ParentNotCommitted(String),
    /// The parent that a commit names may still change.
    #[error("parent {0:?} is not committed")]
    NewParentNotCommitted(String),
    /// A commit names another parent than the snapshot has.
    #[error("snapshot {0:?} has another parent, and keeps it")]
    ParentChanged(String),
    /// The operation is for snapshots of another kind.
    #[error("snapshot {name:?} is {}", .kind.as_str())]
    WrongKind {
        /// Its name.
        name: String,
        /// What it is.
        kind: Kind,
    },
    /// Other snapshots are made of it.
    #[error("snapshot {0:?} has children; remove them first")]
    HasChildren(String),
    /// A name is empty.
    #[error("the name of a snapshot is not empty")]
    EmptyName,
    /// Only labels can be changed.
    #[error("cannot change {0:?} of a snapshot, only \"labels\" and \"labels.NAME\"")]
    ImmutableField(String),
    /// The labels that name store paths are wrong.
    #[error(transparent)]
    Labels(ParseLabelsError),
    /// The labels that map owners are wrong.
    #[error(transparent)]
    IdMapping(IdMappingError),
    /// The layer's store paths cannot be had.
    #[error(transparent)]
    Layer(LayerError),
    /// The database does not work.
    #[error("cannot use the snapshots' database")]
    Database(#[source] rusqlite::Error),
    /// The directory of a snapshot cannot be used.
    #[error("cannot {operation} {path}")]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a failure is to the client: containerd's errdefs, by gRPC's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Mended by another request.
    InvalidArgument,
    /// It is not there.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// Something else must be done first.
    FailedPrecondition,
    /// The disk is full.
    ResourceExhausted,
    /// The node must be mended.
    Internal,
}

impl SnapshotError {
    /// An operation on a directory that fails.
    pub(super) fn at(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Directory { operation, path, source }
    }

    /// What the failure is to the client, as containerd's `core/snapshots/storage` has it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::ParentNotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::WrongKind { .. } | Self::HasChildren(_) | Self::NewParentNotCommitted(_) => {
                Code::FailedPrecondition
            }
            Self::ParentNotCommitted(_)
            | Self::ParentChanged(_)
            | Self::EmptyName
            | Self::ImmutableField(_)
            | Self::Labels(_)
            | Self::IdMapping(_) => Code::InvalidArgument,
            Self::Layer(error) => error.code(),
            Self::Database(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Code::ResourceExhausted,
                _ => Code::Internal,
            },
            Self::Directory { source, .. } => Code::of_io(source),
        }
    }
}

impl Code {
    /// What a failure of the file system is to the client.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::ResourceExhausted,
            _ => Self::Internal,
        }
    }
}
