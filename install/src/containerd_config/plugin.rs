//! The snapshotter as a proxy plugin, and who uses it by default.
//!
//! What containerd knows of a proxy plugin grew: 1.6 has `type` and `address` alone, 1.7 also `exports` and
//! `capabilities` (`ProxyPlugin` in its `services/server/config`, later `cmd/containerd/server/config`). `rebase` is
//! never declared: containerd then prepares layers without their parents, and a layer that is already there
//! (`AlreadyExists`) would stay without one.
//!
//! A layer's annotations reach every snapshotter as labels (`FilterInheritedLabels` in containerd's unpacker), so
//! `disable_snapshot_annotations` stays as it is: it is about the labels `containerd.io/snapshot/cri.*`, and turning
//! it off keeps Kubernetes' pulls from the transfer service since containerd 2.1 (`CheckLocalImagePullConfigs`).

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::{Keys, at, set, table_like};

/// The snapshotter's name.
pub const SNAPSHOTTER: &str = "nixenv";

/// The transfer service's plugin.
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The snapshotter as containerd shall know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plugin {
    /// Its socket.
    pub address: PathBuf,
    /// Where its snapshots are, for the kubelet's accounts of the disk; not known to containerd 1.6.
    pub root: Option<PathBuf>,
    /// What it can do; not known to containerd 1.6.
    pub capabilities: Vec<String>,
    /// Whether it is the snapshotter of Kubernetes' interface.
    pub cri: Option<Replaced>,
    /// Whether the transfer service unpacks for it.
    pub transfer: Option<Transfer>,
}

/// What a line of ours replaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// The value that was there.
    pub before: Option<String>,
}

/// What the transfer service unpacks for. A list in a config replaces containerd's own, which is therefore written
/// out beside our entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// containerd's own list; empty when the config has one.
    pub default: Vec<Unpack>,
    /// The entry for our snapshotter.
    pub ours: Unpack,
}

/// An entry of the transfer service's list (`unpackConfiguration` in containerd's `plugins/transfer`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unpack {
    /// For images of which platform.
    pub platform: String,
    /// Into which snapshotter.
    pub snapshotter: String,
    /// With which differ. Without one containerd takes any that fits.
    pub differ: String,
    /// Whether containerd may go without; known since 2.3.
    #[serde(default)]
    pub optional: bool,
}

impl Unpack {
    fn new(platform: String, snapshotter: &str, differ: &str, optional: bool) -> Self {
        Self { platform, snapshotter: snapshotter.to_owned(), differ: differ.to_owned(), optional }
    }
}

impl Transfer {
    /// What the transfer service of a containerd shall unpack for, whose config without our lines is `theirs`.
    ///
    /// # Errors
    /// When that containerd or config knows no such list.
    pub fn new(theirs: &str, containerd: (u32, u32), architecture: &str) -> Result<Self> {
        ensure!(containerd >= (1, 7), "containerd has a transfer service since 1.7");
        let config: toml::Table = theirs.parse().context("containerd's config is not valid TOML")?;
        let version = super::table_version(&config);
        ensure!(
            theirs.trim().is_empty() || version >= 2,
            "a config of version 1 cannot configure the transfer service; `containerd config migrate` helps"
        );
        let platform = format!("linux/{architecture}");
        let own = || {
            // `defaultUnpackConfig` in containerd's `plugins/transfer`.
            let mut own = vec![Unpack::new(platform.clone(), "overlayfs", "walking", false)];
            if containerd >= (2, 3) {
                own.push(Unpack::new(format!("linux(+erofs)/{architecture}"), "erofs", "erofs", true));
            }
            own
        };
        let listed =
            config.get("plugins").and_then(|plugins| plugins.get(TRANSFER)?.get("unpack_config")).is_some();
        Ok(Self {
            default: if listed { vec![] } else { own() },
            ours: Unpack::new(platform, SNAPSHOTTER, "walking", false),
        })
    }
}

/// The table that names the snapshotter of Kubernetes' interface.
pub fn cri_path(version: i64) -> Result<Keys> {
    Ok(match version {
        1 => vec!["plugins", "cri", "containerd"],
        2 => vec!["plugins", "io.containerd.grpc.v1.cri", "containerd"],
        3 | 4 => vec!["plugins", "io.containerd.cri.v1.images"],
        _ => bail!("containerd config version {version} is not known; versions 1 to 4 are"),
    })
}

/// The table with the transfer service's list.
pub fn transfer_path() -> Keys {
    vec!["plugins", TRANSFER]
}

impl fmt::Display for Plugin {
    /// Who uses it by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cri, &self.transfer) {
            (None, None) => Ok(()),
            (Some(_), None) => write!(f, ", for Kubernetes as well"),
            (None, Some(_)) => write!(f, ", for the transfer service as well"),
            (Some(_), Some(_)) => write!(f, ", for Kubernetes and the transfer service as well"),
        }
    }
}

impl Plugin {
    /// Adds the plugin to a config of this version.
    pub fn add_to(&self, document: &mut DocumentMut, version: i64) -> Result<()> {
        let mut plugin = Table::new();
        plugin["type"] = value("snapshot");
        plugin["address"] = value(self.address.to_string_lossy().as_ref());
        if !self.capabilities.is_empty() {
            plugin["capabilities"] = value(Array::from_iter(&self.capabilities));
        }
        if let Some(root) = &self.root {
            let mut exports = Table::new();
            exports["root"] = value(root.to_string_lossy().as_ref());
            plugin["exports"] = Item::Table(exports);
        }
        table_like(document, &["proxy_plugins"])?.insert(SNAPSHOTTER, Item::Table(plugin));
        if self.cri.is_some() {
            set(table_like(document, &cri_path(version)?)?, "snapshotter", SNAPSHOTTER);
        }
        if let Some(transfer) = &self.transfer {
            transfer.add_to(document)?;
        }
        Ok(())
    }

    /// Removes the plugin; what was changed by others since stays.
    pub fn remove_from(&self, document: &mut DocumentMut, version: i64) -> Result<()> {
        at(document.as_table_mut(), &["proxy_plugins"], |plugins| {
            plugins.remove(SNAPSHOTTER);
        });
        if let Some(Replaced { before }) = &self.cri {
            at(document.as_table_mut(), &cri_path(version)?, |cri| {
                if cri.get("snapshotter").and_then(Item::as_str) != Some(SNAPSHOTTER) {
                    return;
                }
                match before {
                    Some(before) => set(cri, "snapshotter", before),
                    None => drop(cri.remove("snapshotter")),
                }
            });
        }
        if let Some(transfer) = &self.transfer {
            at(document.as_table_mut(), &transfer_path(), |plugin| transfer.remove_from(plugin));
        }
        Ok(())
    }
}

impl Transfer {
    fn add_to(&self, document: &mut DocumentMut) -> Result<()> {
        let plugin = table_like(document, &transfer_path())?;
        let list = plugin.entry("unpack_config").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let known = |known: &dyn toml_edit::TableLike| {
            known.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER)
        };
        match list {
            Item::ArrayOfTables(tables) => {
                if tables.is_empty() {
                    self.default.iter().for_each(|unpack| tables.push(unpack.table()));
                }
                if !tables.iter().any(|table| known(table)) {
                    tables.push(self.ours.table());
                }
            }
            Item::Value(Value::Array(array)) => {
                if !array.iter().filter_map(Value::as_inline_table).any(|table| known(table)) {
                    array.push(self.ours.table().into_inline_table());
                }
            }
            _ => bail!("'unpack_config' in containerd's config is not a list of tables"),
        }
        Ok(())
    }

    fn remove_from(&self, plugin: &mut dyn toml_edit::TableLike) {
        let is_ours = |table: &dyn toml_edit::TableLike| self.ours.is(table);
        let Some(list) = plugin.get_mut("unpack_config") else { return };
        let left = match list {
            Item::ArrayOfTables(tables) => {
                tables.retain(|table| !is_ours(table));
                let default = tables.len() == self.default.len()
                    && tables.iter().zip(&self.default).all(|(table, unpack)| unpack.is(table));
                !default
            }
            Item::Value(Value::Array(array)) => {
                array.retain(|value| !value.as_inline_table().is_some_and(|table| is_ours(table)));
                true
            }
            _ => true,
        };
        if !left {
            plugin.remove("unpack_config");
        }
    }
}

impl Unpack {
    fn table(&self) -> Table {
        let mut table = Table::new();
        for (name, text) in self.texts() {
            table[name] = value(text);
        }
        if self.optional {
            table["optional"] = value(true);
        }
        table
    }

    fn texts(&self) -> [(&'static str, &str); 3] {
        [("platform", &self.platform), ("snapshotter", &self.snapshotter), ("differ", &self.differ)]
    }

    /// Whether a table says this and nothing else.
    fn is(&self, table: &dyn toml_edit::TableLike) -> bool {
        self.texts().iter().all(|(name, text)| table.get(name).and_then(Item::as_str) == Some(text))
            && table.get("optional").and_then(Item::as_bool).unwrap_or_default() == self.optional
            && table.iter().filter(|(_, item)| !item.is_none()).count() == 3 + usize::from(self.optional)
    }
}
