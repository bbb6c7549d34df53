//! containerd's config as it reads it itself: `containerd config dump`.

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use super::handler::{HANDLER, runtimes_path};
use super::plugin::{SNAPSHOTTER, cri_path, transfer_path};
use super::{Lines, table_version};

/// Kubernetes' interface, by its names in `disabled_plugins`.
const CRI: [&str; 4] =
    ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"];

/// The `runc` handler in a config, or in a merged one.
pub fn runc_handler(text: &str) -> Result<Option<Table>> {
    let config = parse(text)?;
    let runtimes = find(&config, &runtimes_path(table_version(&config))?);
    Ok(runtimes.and_then(|runtimes| runtimes.get("runc")?.as_table()).cloned())
}

/// The first of our lines that a merged config lacks, be it that another file replaced it. Lines for Kubernetes'
/// interface may lack where that is disabled.
pub fn missing(dump: &str, lines: &Lines) -> Result<Option<String>> {
    let config = parse(dump)?;
    let version = table_version(&config);
    let disabled = config.get("disabled_plugins").and_then(Value::as_array);
    let cri = !disabled.into_iter().flatten().any(|id| id.as_str().is_some_and(|id| CRI.contains(&id)));
    let handler =
        find(&config, &runtimes_path(version)?).is_some_and(|runtimes| runtimes.contains_key(HANDLER));
    if cri && !handler {
        return Ok(Some(format!("the runtime handler {HANDLER}")));
    }
    let Some(plugin) = &lines.snapshotter else { return Ok(None) };
    let address =
        find(&config, &["proxy_plugins", SNAPSHOTTER]).and_then(|plugin| plugin.get("address")?.as_str());
    if address != plugin.address.to_str() {
        return Ok(Some(format!("the snapshotter {SNAPSHOTTER}")));
    }
    let snapshotter = find(&config, &cri_path(version)?).and_then(|cri| cri.get("snapshotter")?.as_str());
    if cri && plugin.cri.is_some() && snapshotter != Some(SNAPSHOTTER) {
        return Ok(Some(format!("{SNAPSHOTTER} as the snapshotter of Kubernetes' interface")));
    }
    if plugin.transfer.is_some() && !unpacks(&config) {
        return Ok(Some(format!("{SNAPSHOTTER} among what the transfer service unpacks for")));
    }
    Ok(None)
}

/// Whether the transfer service unpacks for our snapshotter.
fn unpacks(config: &Table) -> bool {
    let list = find(config, &transfer_path()).and_then(|plugin| plugin.get("unpack_config")?.as_array());
    list.into_iter()
        .flatten()
        .any(|unpack| unpack.get("snapshotter").and_then(Value::as_str) == Some(SNAPSHOTTER))
}

/// Which parts of containerd use our snapshotter by default, as a config says: Kubernetes' interface, and the
/// transfer service.
pub fn defaults(text: &str) -> Result<(bool, bool)> {
    let config = parse(text)?;
    let cri =
        find(&config, &cri_path(table_version(&config))?).and_then(|cri| cri.get("snapshotter")?.as_str());
    Ok((cri == Some(SNAPSHOTTER), unpacks(&config)))
}

/// What a config says besides our lines, the files that it imports, and tables with nothing in them: migrating a
/// config, containerd 2 leaves some.
pub fn without_ours(text: &str) -> Result<Table> {
    let mut config = parse(text)?;
    let version = table_version(&config);
    config.remove("imports");
    for (path, name) in [
        (runtimes_path(version)?, HANDLER),
        (vec!["proxy_plugins"], SNAPSHOTTER),
        (cri_path(version)?, "snapshotter"),
        (transfer_path(), "unpack_config"),
    ] {
        let table = path.iter().try_fold(&mut config, |table, name| table.get_mut(*name)?.as_table_mut());
        table.and_then(|table| table.remove(name));
    }
    prune(&mut config);
    Ok(config)
}

fn parse(text: &str) -> Result<Table> {
    text.parse().context("containerd's config is not valid TOML")
}

fn find<'a>(config: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter().try_fold(config, |table, name| table.get(*name)?.as_table())
}

/// Removes the tables with nothing in them.
fn prune(table: &mut Table) {
    table.retain(|_, value| {
        let Some(inner) = value.as_table_mut() else { return true };
        prune(inner);
        !inner.is_empty()
    });
}
