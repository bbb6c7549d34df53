//! Injects an environment into an OCI spec, and into the processes that are later started in the container.
//!
//! Everything here is a function from JSON to JSON. Specs stay [`serde_json::Value`]s so that fields of newer
//! versions survive, and an injection that fails leaves nothing half-done: the edited spec is a new value.

mod variables;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::key::Key;
use crate::manifest::ShellHook;
use crate::reference::is_variable_name;
use crate::store_path::STORE_DIR;
use variables::{merge, value_of};

/// Variables with which an environment would decide what every program of the image loads.
const REFUSED: [&str; 3] = ["LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD"];

/// The largest argument that Linux passes to a program, with its NUL (`MAX_ARG_STRLEN`).
const MAX_ARGUMENT_BYTES: usize = 128 << 10;

/// What runs a `shellHook` and then becomes the container's own process. The process' arguments are put aside first,
/// since a hook may say `set --`; a hook that fails does not prevent the start, as in `nix-shell`. Names that bash
/// exports of its own accord go in at `{}`.
const SHELL_HOOK: &str = r#"nixenv_process=("${@:2}"); eval "$1"; {}exec -- "${nixenv_process[@]}""#;

/// Variables that bash exports although nobody set them.
const OF_BASH: [&str; 2] = ["OLDPWD", "PWD"];

/// What the runtime says when a poststop hook outlasts this: the container is gone, so it must not wait for long.
const POSTSTOP_TIMEOUT_SECONDS: u32 = 10;

/// What is to be injected.
#[derive(Clone, Debug)]
pub struct Injection {
    /// The environment's key.
    pub key: Key,
    /// The environment's variables.
    pub variables: BTreeMap<String, String>,
    /// Which variables that are refused by default may pass (`variables.allow` of the node's settings).
    pub allowed: Vec<String>,
    /// Variables that win over the container's own (`nixenv.override`).
    pub overrides: Vec<String>,
    /// What the container's first process is started through, unless `nixenv.shell-hook` is `skip`.
    pub shell_hook: Option<ShellHook>,
    /// The directory of the node to show at the container's `/nix/store`.
    pub store: PathBuf,
    /// What the runtime runs after the container stopped.
    pub poststop: Poststop,
}

/// A program that the runtime runs after the container stopped.
#[derive(Clone, Debug)]
pub struct Poststop {
    /// Its absolute path on the node.
    pub program: PathBuf,
    /// Its arguments, with its name as the first.
    pub args: Vec<String>,
}

/// What was injected into a container: enough to treat its later processes in the same way, and to inject again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The environment's key.
    pub key: Key,
    /// The environment's variables.
    pub variables: BTreeMap<String, String>,
    /// Variables that win over the container's own.
    pub overrides: Vec<String>,
    /// The `Env` of the image, where it was needed and known.
    pub image: Option<Vec<String>>,
    /// The spec as it was before.
    pub original: Value,
}

/// An environment that cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The spec is not what the OCI runtime specification demands.
    #[error("the OCI {document} has no usable '{field}'")]
    Document {
        /// `spec` or `process`.
        document: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A name that no process can have in its environment, or no shell can use.
    #[error(
        "the environment sets a variable named {name:?}; names consist of letters, digits and '_', and do not begin with a digit"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A NUL byte, which would end the value.
    #[error("the environment's variable {name} has a NUL byte in its value")]
    Nul {
        /// The variable's name.
        name: String,
    },
    /// A variable that would change what programs of the image load.
    #[error(
        "the environment sets {name}, which decides what every program of the container loads; to permit it, name it in variables.allow of /etc/nixenv/config.toml"
    )]
    Refused {
        /// The variable's name.
        name: String,
    },
    /// The container mounts something where the closure must be.
    #[error(
        "the container has a mount of its own at {destination}, which would hide the environment's closure or be hidden by it; start it without that mount"
    )]
    Mounted {
        /// Where.
        destination: String,
    },
    /// A `shellHook` that does not fit into an argument.
    #[error(
        "the shellHook has {bytes} bytes, and Linux passes at most {MAX_ARGUMENT_BYTES} in one argument; move it into a script, or set the annotation nixenv.shell-hook=skip"
    )]
    HookTooLong {
        /// Its length.
        bytes: usize,
    },
}

/// Injects an environment into the spec of a container that is about to be created.
///
/// `image` is asked for the `Env` of the container's image only when both sides set a variable to different values: it
/// tells a default of the image, over which the environment wins, from what the user set, which wins. Nobody knowing
/// the image, the container's value stays. Injecting the same environment again changes nothing.
///
/// # Errors
/// When the spec lacks what a container needs, or the environment must not be injected into it.
pub fn inject_into_spec(
    original: Value,
    injection: &Injection,
    image: impl FnOnce() -> Option<Vec<String>>,
) -> Result<(Value, Record), InjectError> {
    check_variables(&injection.variables, &injection.allowed)?;
    let mut spec = original.clone();

    let process =
        spec.get_mut("process").filter(|process| process.is_object()).ok_or(spec_lacks("process"))?;
    let container = entries(process, "env").ok_or(spec_lacks("process.env"))?;
    let mut ask = Some(image);
    let mut image = None;
    let merged = merge(&container, &injection.variables, &injection.overrides, |name, value| {
        if let Some(ask) = ask.take() {
            image = ask();
        }
        !is_image_default(image.as_deref(), name, value)
    });
    if let Some(hook) = &injection.shell_hook {
        let args = entries(process, "args").ok_or(spec_lacks("process.args"))?;
        process["args"] = through_shell(hook, args, &merged)?.into();
    }
    process["env"] = merged.into();

    mount_store(&mut spec, &injection.store)?;
    add_poststop(&mut spec, &injection.poststop)?;
    let record = Record {
        key: injection.key,
        variables: injection.variables.clone(),
        overrides: injection.overrides.clone(),
        image,
        original,
    };
    Ok((spec, record))
}

/// Injects a container's environment into a process (`runc exec --process`) that is started in it.
///
/// Engines build that process from the spec that they stored, without our edits: an entry that is the same there gets
/// the same treatment as when the container was created. One that differs is the exec's own, and stays.
///
/// # Errors
/// When the process' environment is not a list of texts.
pub fn inject_into_process(process: &mut Value, record: &Record) -> Result<(), InjectError> {
    let lacks = InjectError::Document { document: "process", field: "env" };
    let container = entries(process, "env").filter(|_| process.is_object()).ok_or(lacks)?;
    let created_with = entries(&record.original["process"], "env").unwrap_or_default();
    let of_container = |name: &str, value: &str| value_of(&created_with, name) == Some(value);
    // What the container's creation overrode, an exec's own `--env` still wins over.
    let overrides: Vec<String> = record
        .overrides
        .iter()
        .filter(|name| value_of(&container, name).is_none_or(|value| of_container(name, value)))
        .cloned()
        .collect();
    let merged = merge(&container, &record.variables, &overrides, |name, value| {
        !(of_container(name, value) && is_image_default(record.image.as_deref(), name, value))
    });
    process["env"] = merged.into();
    Ok(())
}

/// Checks that nothing is mounted where the closure must be, before an environment is resolved for nothing.
///
/// # Errors
/// When the container has a mount of its own at or below `/nix/store`.
pub fn check_mounts(spec: &Value) -> Result<(), InjectError> {
    check(spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default())
}

fn check_variables(variables: &BTreeMap<String, String>, allowed: &[String]) -> Result<(), InjectError> {
    for (name, value) in variables {
        if !is_variable_name(name) {
            return Err(InjectError::Name { name: name.clone() });
        }
        if value.contains('\0') {
            return Err(InjectError::Nul { name: name.clone() });
        }
        if REFUSED.contains(&name.as_str()) && !allowed.contains(name) {
            return Err(InjectError::Refused { name: name.clone() });
        }
    }
    Ok(())
}

fn is_image_default(image: Option<&[String]>, name: &str, value: &str) -> bool {
    image.is_some_and(|image| value_of(image, name) == Some(value))
}

fn spec_lacks(field: &'static str) -> InjectError {
    InjectError::Document { document: "spec", field }
}

/// The list of texts at `field`; an absent one is empty, anything else is not usable.
fn entries(object: &Value, field: &str) -> Option<Vec<String>> {
    match object.get(field) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(list) => list.as_array()?.iter().map(|entry| entry.as_str().map(str::to_owned)).collect(),
    }
}

fn through_shell(hook: &ShellHook, args: Vec<String>, env: &[String]) -> Result<Vec<String>, InjectError> {
    if hook.script.len() >= MAX_ARGUMENT_BYTES {
        return Err(InjectError::HookTooLong { bytes: hook.script.len() });
    }
    let private = OF_BASH.into_iter().filter(|name| value_of(env, name).is_none());
    let script =
        SHELL_HOOK.replace("{}", &private.map(|name| format!("export -n {name}; ")).collect::<String>());
    let head =
        [&hook.shell, "--noprofile", "--norc", "-c", &script, "nixenv", &hook.script].map(str::to_owned);
    if args.is_empty() || args.starts_with(&head) {
        return Ok(args);
    }
    Ok(head.into_iter().chain(args).collect())
}

/// Mounts `store` behind all other mounts, so that a mount at `/nix` comes before it.
fn mount_store(spec: &mut Value, store: &Path) -> Result<(), InjectError> {
    // The options of runc and crun; private, for a container must not see what is later mounted on the node.
    let mount = json!({
        "destination": STORE_DIR,
        "type": "bind",
        "source": store.to_str().ok_or(spec_lacks("store"))?,
        "options": ["bind", "ro", "nosuid", "nodev", "rprivate"],
    });
    let mounts = list_at(spec, &["mounts"]).ok_or(spec_lacks("mounts"))?;
    if mounts.contains(&mount) {
        return Ok(());
    }
    check(mounts)?;
    mounts.push(mount);
    Ok(())
}

fn check(mounts: &[Value]) -> Result<(), InjectError> {
    let destinations = mounts.iter().filter_map(|mount| mount["destination"].as_str());
    match destinations.into_iter().find(|destination| is_in_store(destination)) {
        Some(destination) => Err(InjectError::Mounted { destination: destination.to_owned() }),
        None => Ok(()),
    }
}

fn is_in_store(destination: &str) -> bool {
    let mut path = PathBuf::from("/");
    for component in Path::new(destination).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            _ => (),
        }
    }
    path.starts_with(STORE_DIR)
}

/// Adds the poststop hook. Its `env` is not empty: some runtimes let a hook without one inherit the container's
/// (CVE-2025-23266 came of that).
fn add_poststop(spec: &mut Value, poststop: &Poststop) -> Result<(), InjectError> {
    let hook = json!({
        "path": poststop.program.to_str().ok_or(spec_lacks("hooks.poststop"))?,
        "args": poststop.args,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "timeout": POSTSTOP_TIMEOUT_SECONDS,
    });
    let hooks = list_at(spec, &["hooks", "poststop"]).ok_or(spec_lacks("hooks.poststop"))?;
    if !hooks.contains(&hook) {
        hooks.push(hook);
    }
    Ok(())
}

/// The list at a path of object fields, each made where it is absent.
fn list_at<'a>(spec: &'a mut Value, path: &[&str]) -> Option<&'a mut Vec<Value>> {
    let place = path.iter().try_fold(spec, |value, field| {
        if value.is_null() {
            *value = json!({});
        }
        Some(value.as_object_mut()?.entry(*field).or_insert(Value::Null))
    })?;
    if place.is_null() {
        *place = json!([]);
    }
    place.as_array_mut()
}

#[cfg(test)]
mod tests;
