//! Config to environment: from the cache, else through the daemon.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cache;
use crate::key::{Key, World};
use crate::layout::Layout;
use crate::lookup::{LookupError, Namespace};
use crate::manifest::{Manifest, ReadManifestError};
use crate::protocol::{Client, Progress, Request as Frame, Resolve, Response};
use crate::reference::{ConfigReference, Request};
use crate::settings::Settings;
use crate::snapshot::{Entry, Inputs, Snapshot, SnapshotError};

/// How to start the daemon, for messages.
const START_DAEMON: &str =
    "start it with 'systemctl start nixenv-snapshotter', or run nixenv-snapshotter as root";

/// A resolved config.
#[derive(Debug)]
pub struct Resolved {
    /// Its environment.
    pub manifest: Manifest,
    /// Whether the cache had it; else the daemon was asked.
    pub hit: bool,
    /// Whether Nix evaluated it for this request, or for one that this request joined.
    pub evaluated: bool,
    /// Why it was a hit or a miss.
    pub reason: String,
    /// Cache entries that were not trusted, and the like.
    pub warnings: Vec<String>,
}

/// What the cache says of a config.
#[derive(Debug)]
pub struct Inspection {
    /// The environment, when it is a hit.
    pub manifest: Option<Manifest>,
    /// The key; unknown as long as the daemon has not written down which Nix the node has.
    pub key: Option<Key>,
    /// Why it is a hit or a miss.
    pub reason: String,
    /// Cache entries that were not trusted, and the like.
    pub warnings: Vec<String>,
}

/// A config that cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such config.
    #[error("there is no config {config}; looked in {places}")]
    NotFound {
        /// What was asked for.
        config: String,
        /// Where it was looked for.
        places: String,
    },
    /// A place to look in cannot be used.
    #[error("cannot look for the config {config}")]
    LookUp {
        /// What was asked for.
        config: String,
        /// Why.
        source: LookupError,
    },
    /// Its files cannot be read.
    #[error("cannot read the config {config}")]
    Snapshot {
        /// What was asked for.
        config: String,
        /// Why.
        source: Box<SnapshotError>,
    },
    /// The daemon does not listen.
    #[error(
        "the environment of {config} is not cached ({reason}), and the daemon that resolves it does not answer at \
         {socket}; {START_DAEMON}"
    )]
    NoDaemon {
        /// What was asked for.
        config: String,
        /// Why it was a miss.
        reason: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon went away, or did not finish in time.
    #[error("the daemon did not resolve {config}{hint}")]
    Interrupted {
        /// What was asked for.
        config: String,
        /// How to go on.
        hint: String,
        /// Why.
        source: io::Error,
    },
    /// Nix or the daemon refused.
    #[error("cannot resolve {config}: {message}")]
    Failed {
        /// What was asked for.
        config: String,
        /// What the daemon says.
        message: String,
    },
    /// The daemon published something that cannot be read.
    #[error("the environment of {config} was published and cannot be used")]
    Published {
        /// What was asked for.
        config: String,
        /// Why.
        source: ReadManifestError,
    },
}

/// Where the config of a container may lie: in the container, then in nerdctl's working directory (the `PWD` that
/// nerdctl gives its `createRuntime` hook).
///
/// # Errors
/// When the container's rootfs cannot be opened.
pub fn places_of_spec(bundle: &Path, spec: &Value) -> Result<Vec<Namespace>, LookupError> {
    let mut places = vec![Namespace::of_container(bundle, spec)?];
    if let Some(directory) = nerdctl_working_directory(spec) {
        // It may be gone by the time of a restart.
        places.extend(Namespace::of_directory(directory).ok());
    }
    Ok(places)
}

/// nerdctl's hook is `nerdctl [GLOBAL FLAGS] internal oci-hook createRuntime`, possibly behind `nsenter` when it is
/// rootless (`withNerdctlOCIHook` in nerdctl's `pkg/cmd/container/create.go`).
fn nerdctl_working_directory(spec: &Value) -> Option<&Path> {
    let hooks = spec["hooks"]["createRuntime"].as_array()?;
    let hook = hooks.iter().find(|hook| {
        let args = hook["args"].as_array().map(Vec::as_slice).unwrap_or_default();
        args.ends_with(&["internal", "oci-hook", "createRuntime"].map(Value::from))
    })?;
    let variables = hook["env"].as_array()?.iter().filter_map(Value::as_str);
    let directory = variables.filter_map(|variable| variable.strip_prefix("PWD=")).next_back()?;
    directory.starts_with('/').then_some(Path::new(directory))
}

/// Resolves what a container asks for; `places` are tried in order.
///
/// # Errors
/// When there is no such config, or it cannot be read, evaluated or realised.
pub fn resolve(
    layout: &Layout,
    settings: &Settings,
    request: &Request,
    places: &[Namespace],
    patience: Option<Duration>,
    progress: impl FnMut(Progress),
) -> Result<Resolved, ResolveError> {
    let config = request.config.to_string();
    let found = find(layout, settings, request, places)?;
    let (lookup, mut warnings) = look_up(layout, settings, request, &found);
    let reason = match lookup {
        Ok((manifest, reason)) => {
            return Ok(Resolved { manifest, hit: true, evaluated: false, reason, warnings });
        }
        Err(reason) => reason,
    };
    let snapshot = found.snapshot(settings, &config)?;
    let socket = layout.socket();
    let interrupted = |source: io::Error| ResolveError::Interrupted {
        config: config.clone(),
        hint: match (source.kind(), patience) {
            (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, Some(patience)) => {
                format!(
                    " within {} s; it goes on, and a start after it has finished finds the result",
                    patience.as_secs()
                )
            }
            _ => format!("; {START_DAEMON}, then start the container again"),
        },
        source,
    };
    let archive = snapshot.seal().map_err(interrupted)?;
    let mut client = Client::connect(&socket).map_err(|source| ResolveError::NoDaemon {
        config: config.clone(),
        reason: reason.clone(),
        socket: socket.clone(),
        source,
    })?;
    let frame = Frame::Resolve(Resolve {
        origin: config.clone(),
        entry: snapshot.entry,
        attr: request.attr.clone(),
        inputs: snapshot.inputs,
    });
    match client.ask(&frame, Some(archive.as_fd()), patience, progress).map_err(interrupted)? {
        Response::Resolved { key, evaluated } => {
            let manifest = cache::load_environment(layout, &key)
                .map_err(|source| ResolveError::Published { config: config.clone(), source })?;
            warnings.extend(manifest.warnings.iter().cloned());
            Ok(Resolved { manifest, hit: false, evaluated, reason, warnings })
        }
        Response::Failed { message } => Err(ResolveError::Failed { config, message }),
        answer => Err(interrupted(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the daemon gave an answer of another kind: {answer:?}"),
        ))),
    }
}

/// Says what [`resolve`] would find, without the daemon.
///
/// # Errors
/// When there is no such config or it cannot be read.
pub fn inspect(
    layout: &Layout,
    settings: &Settings,
    request: &Request,
    places: &[Namespace],
) -> Result<Inspection, ResolveError> {
    let found = find(layout, settings, request, places)?;
    let (lookup, warnings) = look_up(layout, settings, request, &found);
    let (manifest, reason) = match lookup {
        Ok((manifest, reason)) => (Some(manifest), reason),
        Err(reason) => (None, reason),
    };
    let key = match &manifest {
        Some(manifest) => Some(manifest.key),
        None => match cache::load_node_facts(layout) {
            Some(node) => {
                let snapshot = found.snapshot(settings, &request.config.to_string())?;
                let world = World { settings, node: &node, attr: request.attr.as_deref() };
                Some(world.key(&snapshot.digest, &snapshot.entry))
            }
            None => None,
        },
    };
    Ok(Inspection { manifest, key, reason, warnings })
}

/// A config that exists.
enum FoundConfig<'a> {
    File { place: Place<'a>, entry: Entry },
    Text { name: &'static str, text: String },
}

enum Place<'a> {
    Given(&'a Namespace),
    Named(Namespace),
}

impl FoundConfig<'_> {
    fn snapshot(&self, settings: &Settings, config: &str) -> Result<Snapshot, ResolveError> {
        match self {
            Self::Text { name, text } => Ok(Snapshot::of_text(name, text)),
            Self::File { place, entry } => {
                Snapshot::take(place.namespace(), entry, &settings.config).map_err(|source| {
                    ResolveError::Snapshot { config: config.to_owned(), source: Box::new(source) }
                })
            }
        }
    }

    fn check(&self, inputs: &Inputs) -> Result<(), String> {
        match self {
            Self::File { place, entry } => inputs.check(place.namespace(), entry),
            Self::Text { .. } => Ok(()),
        }
    }
}

impl Place<'_> {
    fn namespace(&self) -> &Namespace {
        match self {
            Self::Given(namespace) => namespace,
            Self::Named(namespace) => namespace,
        }
    }
}

fn find<'a>(
    layout: &Layout,
    settings: &Settings,
    request: &Request,
    places: &'a [Namespace],
) -> Result<FoundConfig<'a>, ResolveError> {
    let config = request.config.to_string();
    let read = |source| ResolveError::Snapshot { config: config.clone(), source: Box::new(source) };
    match &request.config {
        ConfigReference::Packages(packages) => {
            Ok(FoundConfig::Text { name: "packages.nix", text: packages_config(packages) })
        }
        ConfigReference::Named(name) => {
            let directory = layout.configs();
            let not_found =
                || ResolveError::NotFound { config: config.clone(), places: directory.display().to_string() };
            let namespace = Namespace::of_directory(&directory).map_err(|_| not_found())?;
            for file in [name.clone(), format!("{name}.nix")] {
                if let Some(entry) =
                    Entry::find(&namespace, Path::new(&file), &settings.config).map_err(read)?
                {
                    return Ok(FoundConfig::File { place: Place::Named(namespace), entry });
                }
            }
            Err(not_found())
        }
        ConfigReference::Path(path) => {
            let path = Path::new(path);
            // An absolute path means the container.
            let places = places.iter().filter(|place| place.is_container() || path.is_relative());
            let mut looked = Vec::new();
            for place in places {
                if let Some(entry) = Entry::find(place, path, &settings.config).map_err(read)? {
                    return Ok(FoundConfig::File { place: Place::Given(place), entry });
                }
                let absolute = place
                    .absolute(path)
                    .map_err(|source| ResolveError::LookUp { config: config.clone(), source })?;
                looked.push(match place.is_container() {
                    true => format!("the container ({})", absolute.display()),
                    false => place.description().to_owned(),
                });
            }
            Err(ResolveError::NotFound { config: config.clone(), places: looked.join(" and in ") })
        }
    }
}

fn packages_config(packages: &[String]) -> String {
    let packages: Vec<String> = packages.iter().map(|package| format!("pkgs.{package}")).collect();
    format!(
        "{{ pkgs ? import <nixpkgs> {{}} }}:\npkgs.mkShell {{ packages = [ {} ]; }}\n",
        packages.join(" ")
    )
}

/// The two steps: a hit with its reason, or why it is a miss; and warnings.
fn look_up(
    layout: &Layout,
    settings: &Settings,
    request: &Request,
    found: &FoundConfig<'_>,
) -> (Result<(Manifest, String), String>, Vec<String>) {
    let mut warnings = Vec::new();
    let Some(node) = cache::load_node_facts(layout) else {
        return (Err("the daemon has not run on this node yet".to_owned()), warnings);
    };
    let world = World { settings, node: &node, attr: request.attr.as_deref() };
    let selector = match found {
        FoundConfig::File { entry, .. } => world.selector(entry.name(), &entry.digest()),
        FoundConfig::Text { name, text } => world.selector(name, &crate::digest::Digest::of(text.as_bytes())),
    };
    let candidates = cache::load_candidates(layout, &selector).unwrap_or_else(|error| {
        warnings.push(format!("{error}; the config is evaluated again"));
        Vec::new()
    });
    if candidates.is_empty() {
        let reason =
            "this content of the file has not been evaluated with these settings, this Nix and these options";
        return (Err(reason.to_owned()), warnings);
    }
    let mut reason = None;
    for candidate in candidates {
        match found.check(&candidate.inputs) {
            Err(changed) => reason = reason.or(Some(changed)),
            Ok(()) => match cache::load_environment(layout, &candidate.key) {
                Ok(manifest) => {
                    let reason = match candidate.inputs.0.len() {
                        0 | 1 => "its one input is unchanged".to_owned(),
                        inputs => format!("all {inputs} inputs are unchanged"),
                    };
                    return (Ok((manifest, reason)), warnings);
                }
                Err(error) => {
                    if !matches!(error, ReadManifestError::Absent { .. }) {
                        warnings.push(format!("{error}; the config is evaluated again"));
                    }
                    reason = Some(error.to_string());
                }
            },
        }
    }
    (Err(reason.unwrap_or_default()), warnings)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::plain(&["nerdctl", "internal", "oci-hook", "createRuntime"], Some("/work"))]
    #[case::with_global_flags(&["nerdctl", "--data-root=/d", "internal", "oci-hook", "createRuntime"], Some("/work"))]
    #[case::rootless(&["nsenter", "-F", "--", "nerdctl", "internal", "oci-hook", "createRuntime"], Some("/work"))]
    #[case::another_hook_of_nerdctl(&["nerdctl", "internal", "oci-hook", "postStop"], None)]
    #[case::another_program(&["createRuntime"], None)]
    fn nerdctl_says_where_it_was_called(#[case] args: &[&str], #[case] directory: Option<&str>) {
        let other = json!({ "path": "/other", "args": ["other"], "env": ["PWD=/other"] });
        let hook = json!({ "path": args[0], "args": args, "env": ["HOME=/root", "PWD=/work"] });
        let spec = json!({ "hooks": { "createRuntime": [other, hook] } });
        assert_eq!(nerdctl_working_directory(&spec), directory.map(Path::new));
    }
}
