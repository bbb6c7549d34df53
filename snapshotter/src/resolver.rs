//! Requests: from a sealed snapshot to a published environment, once per key.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use environment::cache::{self, PublishError};
use environment::digest::Digest;
use environment::hits;
use environment::key::{Key, World};
use environment::layout::Layout;
use environment::manifest::{Manifest, ShellHook};
use environment::protocol::{Environments, Progress, Resolve, Status};
use environment::settings::{LoadSettingsError, Settings};
use environment::snapshot::Observation;
use environment::store_path::StorePath;
use rustix::fs::SealFlags;

use crate::evaluate::{Config, EvaluateError, max_archive_bytes};
use crate::flight::{Flight, Flights, Slots};
use crate::nix::{Account, Nix, NixError, Node};
use crate::publish::{self, PublishEnvironmentError};
use crate::realise::{self, RealiseError};
use crate::scratch::{Scratch, ScratchError};
use crate::variables::{self, BuildEnvironment, VariablesError};
use crate::{baseline, logging, metrics};

/// What resolves configs on this node.
#[derive(Debug)]
pub struct Resolver {
    layout: Layout,
    node: Node,
    flights: Arc<Flights>,
    slots: Slots,
    /// Held by whoever changes what is published.
    publishing: Mutex<()>,
    started: Instant,
    evaluations: AtomicU64,
    misses: AtomicU64,
    waiting: AtomicU64,
}

/// A request that fails.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(LoadSettingsError),
    /// Nix cannot be used.
    #[error(transparent)]
    Nix(NixError),
    /// What was sent is no snapshot.
    #[error("the snapshot cannot be used: {what}")]
    Snapshot {
        /// What is wrong with it.
        what: String,
    },
    /// The snapshot cannot be read.
    #[error("cannot read the snapshot")]
    Read(#[source] io::Error),
    /// The work cannot be started.
    #[error("cannot start a thread")]
    Start(#[source] io::Error),
    /// There is no place to work.
    #[error("cannot make a place to work")]
    Scratch(#[source] ScratchError),
    /// The config is wrong.
    #[error(transparent)]
    Evaluate(EvaluateError),
    /// The environment cannot be built.
    #[error(transparent)]
    Realise(RealiseError),
    /// A variable is refused.
    #[error(transparent)]
    Variables(VariablesError),
    /// The shell hook has no shell.
    #[error(
        "the config has a shellHook, and its shell {shell} is not part of the environment; `nixenv.shell-hook=skip` does without"
    )]
    NoShell {
        /// The shell that evaluated the set-up hooks.
        shell: String,
    },
    /// The environment cannot be published.
    #[error(transparent)]
    Publish(PublishEnvironmentError),
    /// The inputs cannot be recorded.
    #[error("cannot record the config's inputs")]
    Record(#[source] PublishError),
    /// The asker is gone.
    #[error("the asker is gone")]
    Gone(#[source] io::Error),
    /// The work, which others may have started, failed.
    #[error("{message}")]
    Failed {
        /// For the user, whole.
        message: String,
    },
}

/// A failure in the user's words: what is behind it, and how to mend what every step can meet.
pub fn message_of(error: impl Error + Send + Sync + 'static) -> String {
    let full = has_cause(&error, io::ErrorKind::StorageFull);
    let message = format!("{:#}", anyhow::Error::new(error));
    if full {
        format!(
            "no space left on device for /var/lib/nixenv; free some and start the container again: {message}"
        )
    } else {
        message
    }
}

fn has_cause(error: &(dyn Error + 'static), kind: io::ErrorKind) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Resolver {
    /// What resolves configs of `layout`.
    pub fn new(layout: Layout) -> Self {
        Self {
            node: Node::new(&layout),
            layout,
            flights: Arc::default(),
            slots: Slots::default(),
            publishing: Mutex::default(),
            started: Instant::now(),
            evaluations: AtomicU64::default(),
            misses: AtomicU64::default(),
            waiting: AtomicU64::default(),
        }
    }

    /// The node's Nix, for the log and for those who look up environments.
    ///
    /// # Errors
    /// When there is none.
    pub fn nix(&self) -> Result<Arc<Nix>, NixError> {
        self.node.nix()
    }

    /// What the daemon is doing, without its snapshots.
    pub fn status(&self) -> Status {
        // A damaged manifest is no environment; who looks it up is told.
        let cached = cache::list(&self.layout).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nix_version: self.node.known().map(|nix| nix.facts.nix_version.clone()).unwrap_or_default(),
            up_seconds: self.started.elapsed().as_secs(),
            evaluations: self.evaluations.load(Ordering::Relaxed),
            in_flight: self.flights.count() as u64,
            waiting: self.waiting.load(Ordering::Relaxed),
            environments: Environments {
                count: cached.len() as u64,
                bytes: cached.iter().map(|manifest| manifest.closure_bytes).sum(),
                hits: hits::count(&self.layout),
                misses: self.misses.load(Ordering::Relaxed),
            },
            errors: logging::latest_errors(),
            ..Status::default()
        }
    }

    /// Resolves a snapshot; gives the key, and whether it was evaluated for this request.
    ///
    /// # Errors
    /// When there is no environment for it; the message is for the user.
    pub fn resolve(
        self: &Arc<Self>,
        request: Resolve,
        snapshot: Option<OwnedFd>,
        listen: impl FnMut(Progress) -> io::Result<()>,
    ) -> Result<(Key, bool), ResolveError> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let settings = Settings::load(&self.layout.settings()).map_err(ResolveError::Settings)?;
        let nix = self.node.nix().map_err(ResolveError::Nix)?;
        let archive = receive(snapshot, max_archive_bytes(&settings))?;
        let Resolve { origin, entry, attr, inputs } = request;
        let config = Config { digest: Digest::of(&archive), origin, entry, attr, archive };
        let world = World { settings: &settings, node: &nix.facts, attr: config.attr.as_deref() };
        let key = world.key(&config.digest, &config.entry);
        tracing::Span::current().record("origin", &config.origin).record("key", tracing::field::display(key));
        let name =
            Path::new(&config.entry).file_name().and_then(|name| name.to_str()).unwrap_or(&config.entry);
        let selector = inputs
            .0
            .iter()
            .find_map(|(path, observation)| match observation {
                Observation::File { content, .. } if path == name => Some(world.selector(name, content)),
                _ => None,
            })
            .ok_or_else(|| ResolveError::Snapshot {
                what: "the entry file is not among its inputs".to_owned(),
            })?;
        let evaluated = if cache::load_environment(&self.layout, &key).is_ok() {
            false
        } else {
            self.join(key, config, settings.clone(), nix, listen)?
        };
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        cache::record_inputs(&self.layout, &selector, &inputs, &key).map_err(ResolveError::Record)?;
        Ok((key, evaluated))
    }

    fn join(
        self: &Arc<Self>,
        key: Key,
        config: Config,
        settings: Settings,
        nix: Arc<Nix>,
        listen: impl FnMut(Progress) -> io::Result<()>,
    ) -> Result<bool, ResolveError> {
        let (resolver, request) = (Arc::clone(self), tracing::Span::current());
        let work = move |flight: &Flight| {
            let _span =
                tracing::info_span!(parent: &request, "resolve", origin = config.origin, %key).entered();
            resolver.work(key, &config, &settings, &nix, flight).map_err(|error| {
                let message = message_of(error);
                tracing::warn!("{message}");
                message
            })
        };
        let flight = self.flights.join(key, work).map_err(ResolveError::Start)?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let outcome = flight.wait(listen);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        outcome.map_err(ResolveError::Gone)?.map_err(|message| ResolveError::Failed { message })
    }

    /// The work on one key; whether there was any.
    fn work(
        &self,
        key: Key,
        config: &Config,
        settings: &Settings,
        nix: &Nix,
        flight: &Flight,
    ) -> Result<bool, ResolveError> {
        let _slot = self.slots.acquire(settings.evaluation.parallel);
        // The flight before this one may have landed between the asker's look and its own.
        if cache::load_environment(&self.layout, &key).is_ok() {
            return Ok(false);
        }
        nix.check_daemon().map_err(ResolveError::Nix)?;
        let mut scratch = Scratch::new(&self.layout, Account::of_node()).map_err(ResolveError::Scratch)?;

        let started = Instant::now();
        flight.report(at("evaluate", ""));
        self.evaluations.fetch_add(1, Ordering::Relaxed);
        let evaluated =
            config.evaluate(nix, settings, &mut scratch, |line| flight.report(at("evaluate", line)));
        metrics::evaluated(evaluated.is_ok(), started.elapsed());
        let evaluated = evaluated.map_err(ResolveError::Evaluate)?;
        let evaluation_ms = milliseconds(started);

        let started = Instant::now();
        flight.report(at("realise", ""));
        let realised = realise::realise(nix, settings, &scratch, &evaluated.environment, |progress| {
            flight.report(progress);
        });
        metrics::built(realised.is_ok(), started.elapsed());
        let realised = realised.map_err(|error| {
            ResolveError::Realise(match error {
                RealiseError::Refused { messages } => {
                    RealiseError::Refused { messages: config.clean(&messages) }
                }
                error => error,
            })
        })?;
        let common = evaluated
            .baseline
            .map(|derivation| baseline::load_or_realise(&self.layout, nix, settings, &scratch, &derivation));
        let closure =
            realise::closure(nix, settings, &scratch, &realised.path).map_err(ResolveError::Realise)?;
        let build_ms = milliseconds(started);

        let started = Instant::now();
        let extracted = BuildEnvironment::parse(&realised.json)
            .and_then(|environment| {
                environment.extract(&common.unwrap_or_default(), &settings.variables.allow)
            })
            .map_err(ResolveError::Variables)?;
        let hashes: BTreeSet<&str> = closure.iter().map(|sized| variables::store_hash(&sized.path)).collect();
        let warnings = variables::outside_of_closure(&extracted.variables, &hashes)
            .map(|(name, hash)| {
                format!("{name} names /nix/store/{hash}-..., which is not in the container: no package of the config refers to it")
            })
            .collect();
        let shell_hook = match (extracted.shell_hook, extracted.shell) {
            (Some(script), Some(shell)) => {
                let known = StorePath::containing(&shell)
                    .is_ok_and(|path| hashes.contains(variables::store_hash(&path)));
                if !known {
                    return Err(ResolveError::NoShell { shell });
                }
                Some(ShellHook { shell, script })
            }
            _ => None,
        };
        let closure_bytes = closure.iter().map(|sized| sized.bytes).sum();
        let paths: Vec<StorePath> = closure.into_iter().map(|sized| sized.path).collect();

        flight.report(at("view", ""));
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let view = publish::build_view(&self.layout, &paths).map_err(ResolveError::Publish)?;
        flight.report(at("publish", ""));
        let manifest = Manifest {
            key,
            origin: config.origin.clone(),
            variables: extracted.variables,
            shell_hook,
            view,
            closure_paths: paths.len(),
            closure_bytes,
            node: nix.facts.clone(),
            created: SystemTime::UNIX_EPOCH.elapsed().map(|since| since.as_secs()).unwrap_or_default(),
            evaluation_ms,
            build_ms,
            warnings,
        };
        publish::publish(&self.layout, &manifest, &realised.path, &paths).map_err(ResolveError::Publish)?;
        tracing::info!(
            paths = paths.len(),
            evaluation_ms,
            build_ms,
            publish_ms = milliseconds(started),
            "published"
        );
        Ok(true)
    }
}

/// The beginning of a phase, or a line of one whose extent is not known.
fn at(phase: &str, detail: &str) -> Progress {
    Progress { phase: phase.to_owned(), done: 0, total: 0, detail: detail.to_owned() }
}

fn milliseconds(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

/// Reads a snapshot that nobody can change any more.
fn receive(snapshot: Option<OwnedFd>, max_bytes: u64) -> Result<Vec<u8>, ResolveError> {
    let wrong = |what: &str| ResolveError::Snapshot { what: what.to_owned() };
    let file = File::from(snapshot.ok_or_else(|| wrong("there is none"))?);
    let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| wrong("it is not a memory file"))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK) {
        return Err(wrong("it is not sealed"));
    }
    let bytes = file.metadata().map_err(ResolveError::Read)?.len();
    if bytes > max_bytes {
        return Err(ResolveError::Snapshot {
            what: format!("it has {bytes} bytes; at most {max_bytes} are read"),
        });
    }
    let mut archive = vec![0; bytes as usize];
    file.read_exact_at(&mut archive, 0).map_err(ResolveError::Read)?;
    Ok(archive)
}
