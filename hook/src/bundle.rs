//! The files of a bundle: `config.json`, which is the engine's, and `nixenv.json`, which is ours.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use environment::digest::Digest;
use environment::inject::Record;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::{self, Document};

/// The largest spec that is edited: 16 MiB. Real ones have some 10 KiB.
const MAX_BYTES: usize = 16 << 20;

/// What every annotation of ours begins with, as it stands in JSON. (Whoever writes it with an escape gets no
/// environment.)
const ANNOTATION: &[u8] = b"\"nixenv";

/// `nixenv.json`: what was injected into the bundle.
#[derive(Serialize, Deserialize)]
struct Injected {
    /// The digest of the `config.json` that was written.
    written: Digest,
    record: Record,
}

/// The spec of a bundle that may ask for an environment, as it was before any injection.
pub struct Config {
    /// The file.
    pub document: Document,
    /// What is in it.
    pub spec: Value,
}

impl Config {
    /// Reads `config.json` at `path`, unless it surely does not ask for an environment. What cannot be read or
    /// parsed does not, either: the runtime then says what is wrong with it.
    ///
    /// A spec that we wrote ourselves (`runc run` twice on one bundle) is taken back: it would show what an earlier
    /// config injected as the container's own.
    pub fn read(bundle: &Path, path: &Path) -> anyhow::Result<Option<Self>> {
        let Ok(document) = Document::read(path) else { return Ok(None) };
        let bytes = &document.bytes;
        if !bytes.windows(ANNOTATION.len()).any(|window| window == ANNOTATION) {
            return Ok(None);
        }
        anyhow::ensure!(
            bytes.len() <= MAX_BYTES,
            "the OCI spec {} has {} bytes; with an environment it can have at most {MAX_BYTES}",
            path.display(),
            bytes.len()
        );
        let injected =
            fs::read(record_path(bundle)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let spec = match injected {
            Some(Injected { written, record }) if written == Digest::of(bytes) => record.original,
            _ => match serde_json::from_slice(bytes) {
                Ok(spec) => spec,
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(Self { document, spec }))
    }
}

/// Writes the record of an injection, then the spec: killed in between, the bundle is as it was.
pub fn replace(document: &Document, bundle: &Path, spec: &Value, record: Record) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(spec)?;
    let injected = Injected { written: Digest::of(&bytes), record };
    document::write_private(&record_path(bundle), &serde_json::to_vec(&injected)?)?;
    document.replace(&bytes)
}

/// Reads what was injected into the bundle of a running container.
pub fn load_record(bundle: &Path) -> anyhow::Result<Record> {
    let path = record_path(bundle);
    let read = || anyhow::Ok(serde_json::from_slice::<Injected>(&fs::read(&path)?)?.record);
    read().with_context(|| {
        format!(
            "cannot read {}, which says what the container's environment is; restart the container",
            path.display()
        )
    })
}

fn record_path(bundle: &Path) -> std::path::PathBuf {
    bundle.join("nixenv.json")
}
