//! containerd's config: where a runtime handler goes, and the lines of ours.
//!
//! A file that config.toml `imports` is merged key by key since containerd 2.0. containerd 1.x replaces whole
//! plugin sections instead (`mergeConfig` in its `services/server/config`), so that a drop-in with one handler
//! would take the node's CNI settings away. There, config.toml itself is edited.
//!
//! containerd 1.x also forgets its own default `runc` handler as soon as a config names another one (go-toml 1
//! replaces maps), and with it every pod of the node. There, the default is written out beside ours.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

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
fn runtimes_path(version: i64) -> Result<[&'static str; 4]> {
    let plugin = match version {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        3 | 4 => "io.containerd.cri.v1.runtime",
        _ => bail!("containerd config version {version} is not known; versions 1 to 4 are"),
    };
    Ok(["plugins", plugin, "containerd", "runtimes"])
}

/// The version that a config declares; without one it is 1, as containerd has it.
pub fn version_of(document: &DocumentMut) -> i64 {
    document.get("version").and_then(Item::as_integer).unwrap_or(1)
}

/// The file in which the handler belongs: a drop-in where one works, else `config`.
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

impl Handler {
    /// Adds the handler to a config; everything else, comments included, stays as it is.
    ///
    /// What the node's own `runc` handler says (`SystemdCgroup`, say) holds for ours as well.
    pub fn add_to(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        if document.is_empty() {
            document["version"] = value(self.version);
        }
        let path = runtimes_path(version_of(&document))?;
        let mut runtimes: &mut dyn TableLike = document.as_table_mut();
        for name in path {
            let mut parent = Table::new();
            parent.set_implicit(true);
            runtimes = runtimes
                .entry(name)
                .or_insert(Item::Table(parent))
                .as_table_like_mut()
                .with_context(|| format!("'{name}' in containerd's config is not a table"))?;
        }
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
        Ok(document.to_string())
    }

    /// A drop-in that says of the handler what an edit of `main` would.
    pub fn drop_in(&self, main: &str) -> Result<String> {
        let main = parse(&self.add_to(main)?)?;
        let mut document = DocumentMut::new();
        document["version"] = value(version_of(&main));
        let (mut from, mut to) = (main.as_item(), document.as_item_mut());
        for name in runtimes_path(version_of(&main))? {
            from = &from[name];
            to = &mut to[name];
            *to = Item::Table(Table::new());
            to.as_table_mut().expect("it was just made").set_implicit(true);
        }
        to[HANDLER] = from[HANDLER].clone();
        Ok(format!("# Written by `nixenv install`, removed by `nixenv uninstall`.\n{document}"))
    }

    /// Removes the handler from a config.
    pub fn remove_from(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        let path = runtimes_path(version_of(&document))?;
        remove(document.as_table_mut(), &path, self.runc.as_ref());
        Ok(document.to_string())
    }
}

/// Removes the handler below `path`, the default `runc` unless it was changed, and the inline tables made for them.
fn remove(table: &mut dyn TableLike, path: &[&str], runc: Option<&toml::Table>) {
    let Some((name, rest)) = path.split_first() else {
        table.remove(HANDLER);
        let unchanged = |item: &Item| {
            let text = item.as_table().map(|table| DocumentMut::from(table.clone()).to_string());
            text.and_then(|text| text.parse().ok()).as_ref() == runc
        };
        if runc.is_some() && table.get("runc").is_some_and(unchanged) {
            table.remove("runc");
        }
        return;
    };
    if let Some(inner) = table.get_mut(name).and_then(Item::as_table_like_mut) {
        remove(inner, rest, runc);
    }
    if table.get(name).is_some_and(|item| item.as_inline_table().is_some_and(|inline| inline.is_empty())) {
        table.remove(name);
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

/// The `runc` handler in a config, or in a merged one (`containerd config dump`).
pub fn runc_handler(text: &str) -> Result<Option<toml::Table>> {
    Ok(runtimes(&table(text)?)?.and_then(|runtimes| runtimes.get("runc")?.as_table()).cloned())
}

/// Whether a merged config has our handler, or would have if Kubernetes' interface were not disabled.
pub fn has_handler(dump: &str) -> Result<bool> {
    const CRI: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
    let config = table(dump)?;
    let disabled = config.get("disabled_plugins").and_then(toml::Value::as_array);
    let disabled = disabled.into_iter().flatten().any(|id| id.as_str().is_some_and(|id| CRI.contains(&id)));
    Ok(disabled || runtimes(&config)?.is_some_and(|runtimes| runtimes.contains_key(HANDLER)))
}

/// What a config says besides our handler, the files that it imports, and tables with nothing in them: migrating a
/// config, containerd 2 leaves some.
pub fn without_handler(text: &str) -> Result<toml::Table> {
    let mut config = table(text)?;
    config.remove("imports");
    let mut runtimes = Some(&mut config);
    for name in runtimes_path(table_version(&table(text)?))? {
        runtimes = runtimes.and_then(|table| table.get_mut(name)?.as_table_mut());
    }
    runtimes.and_then(|runtimes| runtimes.remove(HANDLER));
    prune(&mut config);
    Ok(config)
}

fn table(text: &str) -> Result<toml::Table> {
    text.parse().context("containerd's config is not valid TOML")
}

fn table_version(config: &toml::Table) -> i64 {
    config.get("version").and_then(toml::Value::as_integer).unwrap_or(1)
}

fn runtimes(config: &toml::Table) -> Result<Option<&toml::Table>> {
    let path = runtimes_path(table_version(config))?;
    Ok(path.into_iter().try_fold(config, |table, name| table.get(name)?.as_table()))
}

/// Removes the tables with nothing in them.
fn prune(table: &mut toml::Table) {
    table.retain(|_, value| {
        let Some(inner) = value.as_table_mut() else { return true };
        prune(inner);
        !inner.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DEBIAN: &str = include_str!("../tests/containerd-debian-12.toml");
    const KUBERNETES: &str = "\
# kubeadm wants this
version = 3
imports = [\"/etc/containerd/conf.d/*.toml\"]

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  # the kubelet's driver
  runtime_type = 'io.containerd.runc.v2' # the usual one
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true # must match the kubelet

[proxy_plugins]
  [proxy_plugins.mine]
    type = \"snapshot\"
";

    fn handler() -> Handler {
        Handler { binary: "/usr/local/bin/nixenv-runc".into(), version: 2, runc: None }
    }

    #[rstest]
    #[case::debian_12(DEBIAN)]
    #[case::kubernetes(KUBERNETES)]
    #[case::version_4("version = 4\n")]
    #[case::version_1_without_a_version("[plugins.cri]\n  systemd_cgroup = false\n")]
    #[case::comments_only_at_the_end("version = 2\n\n[plugins]\n# nothing yet\n")]
    #[case::inline_tables("version = 2\nplugins = { opt = { path = \"/opt\" } } # short\n")]
    #[case::no_newline_at_the_end("version = 2\n[debug]\n  level = \"info\"")]
    #[case::windows_line_ends("version = 2\r\n[debug]\r\n  level = \"info\"\r\n")]
    fn undoing_gives_the_same_text_and_nothing_is_lost_between(#[case] text: &str) {
        let edited = handler().add_to(text).unwrap();
        assert!(edited.contains(HANDLER), "{edited}");
        let lines_kept =
            text.lines().filter(|line| !line.contains("plugins = {")).all(|line| edited.contains(line));
        assert!(lines_kept, "{edited}");
        assert_eq!(without_handler(&edited).unwrap(), without_handler(text).unwrap());
        // The encoder ends the last line and writes `\n`; the backup gives the exact bytes.
        assert_eq!(handler().remove_from(&edited).unwrap().trim_end(), text.replace("\r\n", "\n").trim_end());
    }

    #[rstest]
    #[case::as_written(|text: String| text, true)]
    #[case::changed_since(|text: String| text.replace("IoUid = 0", "IoUid = 1"), false)]
    fn the_default_runc_of_containerd_1_is_written_out_and_removed_again(
        #[case] change: fn(String) -> String,
        #[case] removed: bool,
    ) {
        const DUMP: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n\
            runtime_type = 'io.containerd.runc.v2'\noptions = { IoUid = 0, SystemdCgroup = false }\n";
        let handler = Handler { runc: runc_handler(DUMP).unwrap(), ..handler() };
        let edited = handler.add_to(DEBIAN).unwrap();
        assert_eq!(runc_handler(&edited).unwrap(), handler.runc);
        let left = handler.remove_from(&change(edited)).unwrap();
        assert_eq!(left == DEBIAN, removed, "{left}");
    }

    #[test]
    fn a_runc_handler_of_the_nodes_own_is_not_touched() {
        let handler = Handler { runc: runc_handler(KUBERNETES).unwrap(), ..handler() };
        let text =
            KUBERNETES.replace("kubelet's driver", "driver").replace("'io.containerd.runc.v2'", "'other'");
        assert_eq!(handler.remove_from(&handler.add_to(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn adding_twice_changes_nothing() {
        let once = handler().add_to(KUBERNETES).unwrap();
        assert_eq!(handler().add_to(&once).unwrap(), once);
    }

    #[test]
    fn the_options_of_runc_hold_for_ours() {
        let edited: toml::Table = handler().add_to(KUBERNETES).unwrap().parse().unwrap();
        let ours = &edited["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"][HANDLER];
        assert_eq!(ours["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(ours["options"]["BinaryName"].as_str(), Some("/usr/local/bin/nixenv-runc"));
        assert_eq!(ours["pod_annotations"].as_array().unwrap().len(), ANNOTATIONS.len());
    }

    #[rstest]
    #[case::it_is_there(
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.nixenv-runc]\n",
        true
    )]
    #[case::another_file_replaced_the_section("version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n", false)]
    #[case::nothing_reads_it("version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n", true)]
    #[case::nothing_reads_it_as_docker_ships_it("disabled_plugins = ['cri']\n", true)]
    fn a_merged_config_takes_the_handler(#[case] dump: &str, #[case] taken: bool) {
        assert_eq!(has_handler(dump).unwrap(), taken);
    }

    #[test]
    fn a_drop_in_holds_the_handler_and_nothing_else() {
        let text = handler().drop_in(KUBERNETES).unwrap();
        assert!(text.contains("SystemdCgroup"), "{text}");
        assert!(!text.contains("proxy_plugins") && !text.contains("runtimes.runc]"), "{text}");
        assert_eq!(without_handler(&text).unwrap()["version"].as_integer(), Some(3));
    }

    #[test]
    fn a_file_that_does_not_exist_gets_the_version_that_containerd_writes() {
        let text = Handler { version: 3, ..handler() }.add_to("").unwrap();
        assert!(text.starts_with("version = 3\n"), "{text}");
        assert!(text.contains("cri.v1.runtime"), "{text}");
    }

    #[rstest]
    #[case::unknown_version("version = 5", "version 5")]
    #[case::plugins_is_not_a_table("version = 2\nplugins = 1", "'plugins'")]
    #[case::not_toml("version = ", "not valid TOML")]
    fn what_cannot_be_edited_is_refused(#[case] text: &str, #[case] expected: &str) {
        let error = format!("{:#}", handler().add_to(text).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    #[case::no_config_file(None, 2, "/etc/containerd/config.toml")]
    #[case::imports_in_containerd_2(Some(KUBERNETES), 2, "/etc/containerd/conf.d/nixenv.toml")]
    #[case::imports_in_containerd_1_replace_sections(Some(KUBERNETES), 1, "/etc/containerd/config.toml")]
    #[case::no_imports(Some(DEBIAN), 2, "/etc/containerd/config.toml")]
    #[case::a_relative_pattern(Some("imports = [\"d/*.toml\"]"), 2, "/etc/containerd/d/nixenv.toml")]
    #[case::a_pattern_of_directories(Some("imports = [\"/a/*/*.toml\"]"), 2, "/etc/containerd/config.toml")]
    #[case::a_single_file(Some("imports = [\"/a/b.toml\"]"), 2, "/etc/containerd/config.toml")]
    fn the_handler_goes(#[case] text: Option<&str>, #[case] major: u32, #[case] expected: &str) {
        let config = Path::new("/etc/containerd/config.toml");
        assert_eq!(place(config, text, major).unwrap(), Path::new(expected));
    }
}
