//! Package sets: what `<nixpkgs>` means in every config of the node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use environment::layout::Layout;
use environment::store_path::StorePath;
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::nix;

/// A package set in the node's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pin {
    /// The name that configs use between angle brackets.
    pub name: String,
    /// Where it is.
    pub path: StorePath,
    /// Its NAR hash.
    pub sha256: String,
}

/// The GC root that keeps the package set of a name.
pub fn gc_root(layout: &Layout, name: &str) -> PathBuf {
    layout.gc_roots().join("package-sets").join(name)
}

impl Pin {
    /// The pin that a directory gives, which need not be in the store yet.
    pub fn of_directory(name: &str, directory: &Path) -> Result<Self> {
        ensure!(
            directory.join("default.nix").is_file(),
            "{} is not a package set: it has no default.nix",
            directory.display()
        );
        let path = nix::store_path_of(directory, name, false)?;
        Ok(Self { name: name.to_owned(), path, sha256: String::new() })
    }

    /// Adds the directory to the store under the set's name, so that evaluations need not copy it.
    pub fn add_to_store(self, directory: &Path) -> Result<Self> {
        let path = nix::store_path_of(directory, &self.name, true)?;
        let sha256 = nix::nar_hash(&path)?;
        Ok(Self { path, sha256, ..self })
    }

    /// Writes the pin into the node's settings; everything else, comments included, stays as it is.
    pub fn add_to(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        let mut sets = Table::new();
        sets.set_implicit(true);
        let sets = document.entry("package-sets").or_insert(Item::Table(sets));
        let sets = sets.as_table_like_mut().context("'package-sets' in the settings is not a table")?;
        let set = sets.entry(&self.name).or_insert(Item::Table(Table::new()));
        let set = set
            .as_table_like_mut()
            .with_context(|| format!("the package set {} is not a table", self.name))?;
        set.insert("path", value(self.path.as_str()));
        set.insert("sha256", value(&self.sha256));
        Ok(document.to_string())
    }

    /// Removes the pin, unless the settings by now say something else.
    pub fn remove_from(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        if let Some(sets) = document.get_mut("package-sets").and_then(Item::as_table_like_mut)
            && sets.get(&self.name).and_then(|set| set.get("path")).and_then(Item::as_str)
                == Some(self.path.as_str())
        {
            sets.remove(&self.name);
        }
        Ok(document.to_string())
    }
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().context("the node's settings are not valid TOML; mend them first")
}

#[cfg(test)]
mod tests {
    use environment::settings::Settings;
    use rstest::rstest;

    use super::*;

    fn pin() -> Pin {
        Pin {
            name: "nixpkgs".into(),
            path: "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-nixpkgs".parse().unwrap(),
            sha256: "1b8f".into(),
        }
    }

    #[rstest]
    #[case::nothing("")]
    #[case::the_commented_default(include_str!("../units/config.toml"))]
    #[case::other_settings("# mine\n[start]\nwait-seconds = 5 # short\n")]
    #[case::another_set(
        "[package-sets.other]\npath = \"/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-o\"\nsha256 = \"x\"\n"
    )]
    fn a_pin_is_read_back_and_its_removal_leaves_no_trace(#[case] text: &str) {
        let edited = pin().add_to(text).unwrap();
        let settings: Settings = toml::from_str(&edited).unwrap();
        assert_eq!(settings.package_sets["nixpkgs"].path, pin().path);
        assert_eq!(pin().remove_from(&edited).unwrap(), text);
    }

    #[test]
    fn a_pin_that_somebody_changed_stays() {
        let other =
            Pin { path: "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj242-nixpkgs".parse().unwrap(), ..pin() };
        let text = other.add_to("").unwrap();
        assert_eq!(pin().remove_from(&text).unwrap(), text);
    }

    #[test]
    fn a_new_pin_replaces_the_old_and_keeps_comments() {
        let text = "[package-sets.nixpkgs] # of May\npath = \"/x\"\nsha256 = \"\"\n";
        let edited = pin().add_to(text).unwrap();
        assert!(edited.contains("# of May") && !edited.contains("/x"), "{edited}");
    }
}
