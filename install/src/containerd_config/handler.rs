//! The runtime handler that starts containers through nixenv.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::{Keys, detached, table_like};

/// The name of the runtime handler, for `--runtime` and a RuntimeClass.
pub const HANDLER: &str = "nixenv-runc";

/// The annotations that reach the runtime, as `path.Match` patterns.
const ANNOTATIONS: [&str; 3] = ["nixenv", "nixenv/*", "nixenv.*"];

/// The runtime handler that starts containers through nixenv.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Handler {
    /// The runtime wrapper.
    pub binary: PathBuf,
    /// The config version of a file that does not exist yet.
    pub version: i64,
    /// The default `runc` handler, where it has to be written out.
    pub runc: Option<toml::Table>,
}

/// The tables that lead to the CRI plugin's runtimes.
pub fn runtimes_path(version: i64) -> Result<Keys> {
    let plugin = match version {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        3 | 4 => "io.containerd.cri.v1.runtime",
        _ => bail!("containerd config version {version} is not known; versions 1 to 4 are"),
    };
    Ok(vec!["plugins", plugin, "containerd", "runtimes"])
}

impl Handler {
    /// Adds the handler to a config of this version.
    ///
    /// What the node's own `runc` handler says (`SystemdCgroup`, say) holds for ours as well.
    pub fn add_to(&self, document: &mut DocumentMut, version: i64) -> Result<()> {
        let runtimes = table_like(document, &runtimes_path(version)?)?;
        if let (None, Some(runc)) = (runtimes.get("runc"), &self.runc) {
            let runc: DocumentMut = toml::to_string(runc)?.parse()?;
            runtimes.insert("runc", Item::Table(detached(runc.as_table())));
        }
        let mut handler = runtimes.get("runc").and_then(Item::as_table).map_or_else(Table::new, detached);
        handler["runtime_type"] = value("io.containerd.runc.v2");
        handler["pod_annotations"] = value(Array::from_iter(ANNOTATIONS));
        handler["container_annotations"] = value(Array::from_iter(ANNOTATIONS));
        let options = handler.entry("options").or_insert(Item::Table(Table::new()));
        let options = options.as_table_like_mut().context("the runc handler's options are not a table")?;
        options.insert("BinaryName", value(self.binary.to_string_lossy().as_ref()));
        runtimes.insert(HANDLER, Item::Table(handler));
        Ok(())
    }

    /// Removes the handler, and the default `runc` unless it was changed.
    pub fn remove_from(&self, document: &mut DocumentMut, version: i64) -> Result<()> {
        let path = runtimes_path(version)?;
        super::at(document.as_table_mut(), &path, |runtimes| {
            runtimes.remove(HANDLER);
            let unchanged = |item: &Item| {
                let text = item.as_table().map(|table| DocumentMut::from(table.clone()).to_string());
                text.and_then(|text| text.parse().ok()).as_ref() == self.runc.as_ref()
            };
            if self.runc.is_some() && runtimes.get("runc").is_some_and(unchanged) {
                runtimes.remove("runc");
            }
        });
        Ok(())
    }
}
