//! containerd's config: where our lines go, and what they are.
//!
//! A file that config.toml `imports` is merged key by key since containerd 2.0. containerd 1.x replaces whole
//! plugin sections instead (`mergeConfig` in its `services/server/config`), so that a drop-in with one handler
//! would take the node's CNI settings away. There, config.toml itself is edited.
//!
//! containerd 1.x also forgets its own default `runc` handler as soon as a config names another one (go-toml 1
//! replaces maps), and with it every pod of the node. There, the default is written out beside ours.

mod handler;
mod merged;
mod plugin;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value, value};

pub use self::handler::Handler;
pub use self::merged::{defaults, missing, runc_handler, without_ours};
pub use self::plugin::{Plugin, Replaced, SNAPSHOTTER, Transfer};

/// The names of the tables that lead to a table.
type Keys = Vec<&'static str>;

/// Our lines in containerd's config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lines {
    /// The runtime handler.
    #[serde(flatten)]
    pub handler: Handler,
    /// The snapshotter; older installations have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshotter: Option<Box<Plugin>>,
}

/// The version that a config declares; without one it is 1, as containerd has it.
pub fn version_of(document: &DocumentMut) -> i64 {
    document.get("version").and_then(Item::as_integer).unwrap_or(1)
}

fn table_version(config: &toml::Table) -> i64 {
    config.get("version").and_then(toml::Value::as_integer).unwrap_or(1)
}

/// The snapshotter that Kubernetes' interface has in a config, unless that is containerd's own default.
pub fn cri_snapshotter(text: &str) -> Result<Option<String>> {
    let document = parse(text)?;
    let path = plugin::cri_path(version_of(&document))?;
    let table = path.iter().try_fold(document.as_item(), |item, name| item.get(name));
    Ok(table.and_then(|table| table.get("snapshotter")?.as_str()).map(str::to_owned))
}

/// Where a containerd with this config keeps what is durable.
pub fn root(text: &str) -> Result<PathBuf> {
    let document = parse(text)?;
    Ok(document.get("root").and_then(Item::as_str).unwrap_or("/var/lib/containerd").into())
}

/// The file in which our lines belong: a drop-in where one works, else `config`.
pub fn place(config: &Path, text: Option<&str>, major: u32) -> Result<PathBuf> {
    let Some(text) = text else { return Ok(config.to_owned()) };
    let document = parse(text)?;
    let imports = document.get("imports").and_then(Item::as_array);
    let directory =
        imports.into_iter().flatten().filter_map(|pattern| pattern.as_str()).find_map(|pattern| {
            let directory = Path::new(pattern.strip_suffix("/*.toml")?);
            (!pattern[..pattern.len() - 6].contains('*'))
                .then(|| config.parent().unwrap_or(config).join(directory))
        });
    Ok(match directory {
        Some(directory) if major >= 2 => directory.join("nixenv.toml"),
        _ => config.to_owned(),
    })
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().context("containerd's config is not valid TOML; mend it first")
}

impl Lines {
    /// Adds our lines to a config; everything else, comments included, stays as it is.
    pub fn add_to(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        if document.is_empty() {
            document["version"] = value(self.handler.version);
        }
        let version = version_of(&document);
        self.handler.add_to(&mut document, version)?;
        if let Some(plugin) = &self.snapshotter {
            plugin.add_to(&mut document, version)?;
        }
        Ok(document.to_string())
    }

    /// A drop-in that says of our lines what an edit of `main` would.
    pub fn drop_in(&self, main: &str) -> Result<String> {
        let main = parse(&self.add_to(main)?)?;
        let version = version_of(&main);
        let mut document = DocumentMut::new();
        document["version"] = value(version);
        let mut copy = |path: Keys, name: &str| -> Result<()> {
            let from = path.iter().try_fold(main.as_item(), |item, name| item.get(name));
            if let Some(item) = from.and_then(|table| table.get(name)) {
                table_like(&mut document, &path)?.insert(name, item.clone());
            }
            Ok(())
        };
        copy(handler::runtimes_path(version)?, handler::HANDLER)?;
        if let Some(plugin) = &self.snapshotter {
            copy(vec!["proxy_plugins"], SNAPSHOTTER)?;
            if plugin.cri.is_some() {
                copy(plugin::cri_path(version)?, "snapshotter")?;
            }
            if plugin.transfer.is_some() {
                copy(plugin::transfer_path(), "unpack_config")?;
            }
        }
        Ok(format!("# Written by `nixenv install`, removed by `nixenv uninstall`.\n{document}"))
    }

    /// Removes our lines from a config.
    pub fn remove_from(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        let version = version_of(&document);
        self.handler.remove_from(&mut document, version)?;
        if let Some(plugin) = &self.snapshotter {
            plugin.remove_from(&mut document, version)?;
        }
        Ok(document.to_string())
    }
}

/// The table at `path`; tables on the way that are not there are made.
fn table_like<'a>(document: &'a mut DocumentMut, path: &[&str]) -> Result<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for name in path {
        let mut made = Table::new();
        made.set_implicit(true);
        table = table
            .entry(name)
            .or_insert(Item::Table(made))
            .as_table_like_mut()
            .with_context(|| format!("'{name}' in containerd's config is not a table"))?;
    }
    Ok(table)
}

/// Changes the table at `path`, if there is one. Tables of which nothing is left go, but for headers with a comment.
fn at(table: &mut dyn TableLike, path: &[&str], change: impl FnOnce(&mut dyn TableLike)) {
    let Some((name, rest)) = path.split_first() else { return change(table) };
    let Some(inner) = table.get_mut(name).and_then(Item::as_table_like_mut) else { return };
    at(inner, rest, change);
    let gone = match table.get_mut(name) {
        Some(Item::Value(Value::InlineTable(inline))) => inline.is_empty(),
        Some(Item::Table(inner)) if inner.is_empty() => {
            let header = inner.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
            inner.is_implicit() || (rest.is_empty() && !header.contains('#'))
        }
        _ => false,
    };
    if gone {
        table.remove(name);
    }
}

/// Sets a text; one that is there keeps its place and the comment behind it.
pub fn set(table: &mut dyn TableLike, name: &str, text: &str) {
    match table.get_mut(name).and_then(Item::as_value_mut) {
        Some(known) => {
            let decor = known.decor().clone();
            *known = text.into();
            *known.decor_mut() = decor;
        }
        None => drop(table.insert(name, value(text))),
    }
}

/// A copy of a table for another place: without comments and indentation of its own.
fn detached(table: &Table) -> Table {
    let mut copy = Table::new();
    for (name, item) in table {
        let item = match item {
            Item::Table(inner) => Item::Table(detached(inner)),
            Item::Value(value) => Item::Value(value.clone().decorated(" ", "")),
            other => other.clone(),
        };
        copy.insert(name, item);
    }
    copy
}

#[cfg(test)]
mod tests;
