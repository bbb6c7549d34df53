//! What is known of each snapshot: a database.
//!
//! SQLite in WAL mode with `synchronous=FULL`: what was acknowledged outlives a power failure. One connection
//! writes; others read beside it. The rules are those of containerd's `core/snapshots/storage`.
//!
//! A removal writes, too, and on a full disk it is what makes room: a file of `RESERVE_BYTES` is given up for it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::error::{Code, SnapshotError};
use super::info::{Info, Kind, Labels};

/// The version of the schema, in `user_version`.
const VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots(id),
    kind INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    target TEXT,
    stub INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX children ON snapshots(parent);
CREATE INDEX targets ON snapshots(target) WHERE target IS NOT NULL;
PRAGMA user_version = 1;
";
/// How long one writer waits for another process, which there should not be.
const BUSY: Duration = Duration::from_secs(5);
/// Connections that are kept for readers.
const MAX_READERS: usize = 4;
const COLUMNS: &str = "s.id, s.name, coalesce((SELECT p.name FROM snapshots p WHERE p.id = s.parent), ''), \
                       s.kind, s.labels, s.created, s.updated, s.size, s.inodes, s.stub";

/// What the pages of a few transactions take.
const RESERVE_BYTES: u64 = 256 * 1024;

/// The database.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    has_reserve: AtomicBool,
}

/// A snapshot, with what only the snapshotter knows.
#[derive(Clone, Debug)]
pub struct Record {
    /// The number that names its directory, never given again.
    pub id: u64,
    /// What containerd knows.
    pub info: Info,
    /// What it takes on disk; of a committed snapshot only.
    pub usage: Usage,
    /// Whether its directory holds the stub of a Nix layer.
    pub has_stub: bool,
}

/// Resources that a snapshot takes, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Inodes.
    pub inodes: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// A parent, or a parent's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The number of its directory.
    pub id: u64,
    /// Whether the directory holds the stub of a Nix layer.
    pub has_stub: bool,
    /// Whether it has content of its own: a layer of store paths alone has none.
    pub has_content: bool,
}

/// What is written when a snapshot is committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// The name it gets.
    pub name: &'a str,
    /// A parent for one that has none; empty for no change.
    pub parent: &'a str,
    /// Its labels, which replace those it had.
    pub labels: &'a Labels,
    /// What it takes on disk.
    pub usage: Usage,
    /// Whether its directory holds the stub of a Nix layer.
    pub has_stub: bool,
}

/// A database that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenMetadataError {
    /// It is damaged.
    #[error(
        "the database of the snapshots, {path}, is damaged ({what}); nothing was changed. Put back a copy of it, or try \
         `sqlite3 {path} .recover | sqlite3 recovered.db`; to start afresh stop containerd, move the directory {} away, \
         and pull the images again",
        .path.parent().unwrap_or(.path).display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// It is not there, though there are snapshots.
    #[error(
        "the database of the snapshots, {path}, is missing or empty, but there are snapshots beside it; nothing was changed. Put \
         back a copy of it; to start afresh stop containerd, move the directory {} away, and pull the images again",
        .path.parent().unwrap_or(.path).display()
    )]
    Missing {
        /// Where it was.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{path} is the database of another program, and not that of the snapshots; put it elsewhere")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was written by another version.
    #[error(
        "the database of the snapshots, {path}, is of version {version}, and this daemon knows {VERSION}; install the daemon that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
    /// It cannot be opened.
    #[error("cannot open the database of the snapshots, {path}; nothing was changed")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl Metadata {
    /// Opens the database; where there is none, makes one if it `may_create` it.
    ///
    /// # Errors
    /// When it is damaged, foreign or missing; it is not changed then.
    pub fn open(path: &Path, may_create: bool) -> Result<Self, OpenMetadataError> {
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                OpenMetadataError::Damaged { path: path.to_owned(), what: source.to_string() }
            }
            _ => OpenMetadataError::Open { path: path.to_owned(), source },
        };
        let missing = || OpenMetadataError::Missing { path: path.to_owned() };
        if !may_create && fs::metadata(path).map_or(true, |metadata| metadata.len() == 0) {
            return Err(missing());
        }
        let mut writer = Connection::open(path).map_err(failed)?;
        check(&writer, path, failed)?;
        let version = writer.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        // An earlier daemon may have ended before it had made the tables.
        let is_empty: bool = writer
            .query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        match version {
            VERSION => {}
            0 if is_empty && may_create => {}
            0 if is_empty => return Err(missing()),
            0 => return Err(OpenMetadataError::Foreign { path: path.to_owned() }),
            version => return Err(OpenMetadataError::Version { path: path.to_owned(), version }),
        }
        configure(&writer).map_err(failed)?;
        writer.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        if is_empty {
            let transaction =
                writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            transaction.execute_batch(SCHEMA).map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        let metadata = Self {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            readers: Mutex::default(),
            has_reserve: AtomicBool::default(),
        };
        metadata.fill_reserve();
        Ok(metadata)
    }

    /// Adds an active snapshot or a view; `id` was never used before.
    ///
    /// # Errors
    /// When the name is taken, or the parent is missing or not committed.
    pub fn create(
        &self,
        id: u64,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<(), SnapshotError> {
        self.write(|transaction| {
            let parent = committed_parent(transaction, parent)?;
            check_free(transaction, key)?;
            let now = to_nanoseconds(SystemTime::now());
            transaction.prepare_cached(
                "INSERT INTO snapshots (id, name, parent, kind, labels, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![id, key, parent, to_number(kind), to_json(labels), now, now])?;
            Ok(())
        })
    }

    /// Adds a committed snapshot that stands for `target`, unless one of the same parent does already.
    ///
    /// # Errors
    /// When the parent is missing or not committed.
    pub fn create_target(
        &self,
        id: u64,
        target: &str,
        parent: &str,
        labels: &Labels,
        usage: Usage,
    ) -> Result<bool, SnapshotError> {
        self.write(|transaction| {
            let parent = committed_parent(transaction, parent)?;
            if find_target(transaction, target, parent)? {
                return Ok(false);
            }
            let now = to_nanoseconds(SystemTime::now());
            transaction.execute(
                "INSERT INTO snapshots (id, name, parent, kind, labels, created, updated, size, inodes, target, stub) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 2)",
                // Clients of other namespaces have the same target on parents of their own.
                params![id, format!("{target}@{id}"), parent, to_number(Kind::Committed), to_json(labels), now, now,
                    usage.bytes, usage.inodes, target],
            )?;
            Ok(true)
        })
    }

    /// Whether a committed snapshot stands for `target` on `parent`.
    ///
    /// # Errors
    /// When the parent is missing or not committed.
    pub fn has_target(&self, target: &str, parent: &str) -> Result<bool, SnapshotError> {
        self.read(|connection| {
            let parent = committed_parent(connection, parent)?;
            find_target(connection, target, parent)
        })
    }

    /// Makes a committed snapshot of an active one.
    ///
    /// # Errors
    /// When the name is taken, there is no such active snapshot, or the parent cannot be its parent.
    pub fn commit(&self, key: &str, commit: &Commit<'_>) -> Result<(), SnapshotError> {
        self.write(|transaction| {
            check_free(transaction, commit.name)?;
            let record = load(transaction, key)?;
            if record.info.kind != Kind::Active {
                return Err(SnapshotError::WrongKind { name: key.to_owned(), kind: record.info.kind });
            }
            let parent = match (&*record.info.parent, commit.parent) {
                (parent, "") | ("", parent) => parent,
                (parent, new) if parent == new => parent,
                _ => return Err(SnapshotError::ParentChanged(key.to_owned())),
            };
            let parent = committed_parent(transaction, parent).map_err(|error| match error {
                SnapshotError::ParentNotCommitted(parent) => SnapshotError::NewParentNotCommitted(parent),
                error => error,
            })?;
            let now = to_nanoseconds(SystemTime::now());
            transaction.prepare_cached(
                "UPDATE snapshots SET name = ?, parent = ?, kind = ?, labels = ?, created = ?, updated = ?, size = ?, \
                 inodes = ?, stub = ? WHERE id = ?",
            )?
            .execute(params![commit.name, parent, to_number(Kind::Committed), to_json(commit.labels), now, now,
                commit.usage.bytes, commit.usage.inodes, commit.has_stub, record.id])?;
            Ok(())
        })
    }

    /// Removes a snapshot that has no children; also on a full disk.
    ///
    /// # Errors
    /// When there is none, or it has children.
    pub fn remove(&self, key: &str) -> Result<Record, SnapshotError> {
        let removed = match self.write(|transaction| remove(transaction, key)) {
            Err(error) if error.code() == Code::ResourceExhausted => {
                self.spend_reserve();
                self.write(|transaction| remove(transaction, key))
            }
            removed => removed,
        };
        self.fill_reserve();
        removed
    }

    /// Changes labels; without field paths, all of them.
    ///
    /// # Errors
    /// When there is no such snapshot, or a field path is not about labels.
    pub fn update(&self, key: &str, labels: &Labels, fields: &[String]) -> Result<Record, SnapshotError> {
        self.write(|transaction| {
            let mut record = load(transaction, key)?;
            if fields.is_empty() {
                record.info.labels.clone_from(labels);
            }
            for field in fields {
                if field == "labels" {
                    record.info.labels.clone_from(labels);
                } else if let Some(name) = field.strip_prefix("labels.") {
                    let value = labels.get(name).cloned().unwrap_or_default();
                    record.info.labels.insert(name.to_owned(), value);
                } else {
                    return Err(SnapshotError::ImmutableField(field.clone()));
                }
            }
            record.info.labels.retain(|_, value| !value.is_empty());
            record.info.updated = SystemTime::now();
            transaction.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                params![to_json(&record.info.labels), to_nanoseconds(record.info.updated), record.id],
            )?;
            Ok(record)
        })
    }

    /// Writes what is in the log into the database itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fold(&self) -> Result<(), SnapshotError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    /// A snapshot by its key or name.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(&self, key: &str) -> Result<Record, SnapshotError> {
        self.read(|connection| load(connection, key))
    }

    /// A snapshot and its ancestors, its parent first.
    ///
    /// # Errors
    /// When there is none.
    pub fn load_chain(&self, key: &str) -> Result<(Record, Vec<Ancestor>), SnapshotError> {
        self.read(|connection| {
            let record = load(connection, key)?;
            let ancestors = ancestors(connection, &record.info.parent)?;
            Ok((record, ancestors))
        })
    }

    /// The committed snapshot `parent` and its ancestors; none for the empty name.
    ///
    /// # Errors
    /// When it is missing.
    pub fn load_ancestors(&self, parent: &str) -> Result<Vec<Ancestor>, SnapshotError> {
        self.read(|connection| {
            committed_parent(connection, parent)?;
            ancestors(connection, parent)
        })
    }

    /// Shows every snapshot, in the order in which they were made, for as long as `visit` wants more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list(&self, mut visit: impl FnMut(Record) -> bool) -> Result<(), SnapshotError> {
        self.read(|connection| {
            // By name the rows would lie apart, and each be read from the disk again.
            let mut statement =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots s ORDER BY s.id"))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if !visit(from_row(row)?) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// How many snapshots there are of each kind.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self) -> Result<Vec<(Kind, u64)>, SnapshotError> {
        self.read(|connection| {
            let mut count = connection.prepare_cached("SELECT COUNT(*) FROM snapshots WHERE kind = ?")?;
            let kinds = [Kind::Active, Kind::View, Kind::Committed];
            let counts = kinds
                .into_iter()
                .map(|kind| Ok((kind, count.query_row([to_number(kind)], |row| row.get(0))?)));
            counts.collect()
        })
    }

    /// The numbers of all snapshots, and the largest ever given.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn ids(&self) -> Result<(HashSet<u64>, u64), SnapshotError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT id FROM snapshots")?;
            let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let last = connection
                .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'", [], |row| row.get(0))
                .optional()?;
            Ok((ids, last.unwrap_or(0)))
        })
    }

    fn write<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Makes room on a full disk: the log is written from its start again, and may grow where the reserve was.
    fn spend_reserve(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        let _ = fs::remove_file(self.reserve());
        self.has_reserve.store(false, Ordering::Relaxed);
    }

    /// Takes the room back, as soon as there is any.
    fn fill_reserve(&self) {
        if self.has_reserve.load(Ordering::Relaxed) {
            return;
        }
        let path = self.reserve();
        let filled = File::create(&path).and_then(|file| {
            Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?)
        });
        match filled {
            Ok(()) => self.has_reserve.store(true, Ordering::Relaxed),
            Err(error) => {
                let _ = fs::remove_file(&path);
                tracing::warn!(path = %path.display(), %error, "cannot reserve disk space for removals");
            }
        }
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let known = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match known {
            Some(connection) => connection,
            None => {
                let connection = Connection::open(&self.path)?;
                configure(&connection)?;
                connection
            }
        };
        let transaction = connection.unchecked_transaction()?;
        let result = query(&transaction);
        drop(transaction);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < MAX_READERS {
            readers.push(connection);
        }
        result
    }
}

impl From<rusqlite::Error> for SnapshotError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

fn check(
    connection: &Connection,
    path: &Path,
    failed: impl Fn(rusqlite::Error) -> OpenMetadataError,
) -> Result<(), OpenMetadataError> {
    let what: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if what == "ok" { Ok(()) } else { Err(OpenMetadataError::Damaged { path: path.to_owned(), what }) }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

fn remove(transaction: &Transaction<'_>, key: &str) -> Result<Record, SnapshotError> {
    let record = load(transaction, key)?;
    if transaction.prepare_cached("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1")?.exists([record.id])? {
        return Err(SnapshotError::HasChildren(key.to_owned()));
    }
    transaction.prepare_cached("DELETE FROM snapshots WHERE id = ?")?.execute([record.id])?;
    Ok(record)
}

fn check_free(connection: &Connection, name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() {
        return Err(SnapshotError::EmptyName);
    }
    if connection.prepare_cached("SELECT 1 FROM snapshots WHERE name = ?")?.exists([name])? {
        return Err(SnapshotError::AlreadyExists(name.to_owned()));
    }
    Ok(())
}

/// The number of a parent, which must be committed; none for the empty name.
fn committed_parent(connection: &Connection, parent: &str) -> Result<Option<u64>, SnapshotError> {
    if parent.is_empty() {
        return Ok(None);
    }
    let found = connection
        .prepare_cached("SELECT id, kind FROM snapshots WHERE name = ?")?
        .query_row([parent], |row| Ok((row.get(0)?, row.get::<_, u8>(1)?)))
        .optional()?;
    match found {
        None => Err(SnapshotError::ParentNotFound(parent.to_owned())),
        Some((id, kind)) if kind == to_number(Kind::Committed) => Ok(Some(id)),
        Some(_) => Err(SnapshotError::ParentNotCommitted(parent.to_owned())),
    }
}

fn find_target(connection: &Connection, target: &str, parent: Option<u64>) -> Result<bool, SnapshotError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM snapshots WHERE target = ? AND parent IS ?")?
        .exists(params![target, parent])?)
}

fn load(connection: &Connection, key: &str) -> Result<Record, SnapshotError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots s WHERE s.name = ?"))?
        .query_row([key], from_row)
        .optional()?
        .ok_or_else(|| SnapshotError::NotFound(key.to_owned()))
}

fn ancestors(connection: &Connection, parent: &str) -> Result<Vec<Ancestor>, SnapshotError> {
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE chain(id, parent, stub, depth) AS ( \
             SELECT id, parent, stub, 0 FROM snapshots WHERE name = ? \
             UNION ALL \
             SELECT s.id, s.parent, s.stub, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent) \
         SELECT id, stub FROM chain ORDER BY depth",
    )?;
    let rows = statement.query_map([parent], |row| {
        let stub: u8 = row.get(1)?;
        Ok(Ancestor { id: row.get(0)?, has_stub: stub > 0, has_content: stub < 2 })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Record> {
    let labels: String = row.get(4)?;
    Ok(Record {
        id: row.get(0)?,
        info: Info {
            name: row.get(1)?,
            parent: row.get(2)?,
            kind: match row.get(3)? {
                0u8 => Kind::View,
                1 => Kind::Active,
                _ => Kind::Committed,
            },
            labels: serde_json::from_str(&labels).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, error.into())
            })?,
            created: to_time(row.get(5)?),
            updated: to_time(row.get(6)?),
        },
        usage: Usage { bytes: row.get(7)?, inodes: row.get(8)? },
        has_stub: row.get::<_, u8>(9)? > 0,
    })
}

fn to_number(kind: Kind) -> u8 {
    match kind {
        Kind::View => 0,
        Kind::Active => 1,
        Kind::Committed => 2,
    }
}

/// Labels without a value are none, as in containerd's `boltutil.WriteLabels`.
fn to_json(labels: &Labels) -> String {
    let labels: serde_json::Map<_, _> = labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    serde_json::Value::Object(labels).to_string()
}

/// Nanoseconds since 1970, until 2262.
fn to_nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn to_time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds.try_into().unwrap_or(0))
}
