//! nerdctl's settings: which snapshotter it uses where a command names none.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item};

use crate::containerd_config::{Replaced, SNAPSHOTTER, set};

/// The file for root's nerdctl.
pub const CONFIG: &str = "/etc/nerdctl/nerdctl.toml";

/// The line in nerdctl's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshotter(Replaced);

impl Snapshotter {
    /// The line for settings that are `theirs` without it.
    pub fn new(theirs: &str) -> Result<Self> {
        let before = parse(theirs)?.get("snapshotter").and_then(Item::as_str).map(str::to_owned);
        Ok(Self(Replaced { before }))
    }

    /// Adds the line.
    pub fn add_to(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        set(document.as_table_mut(), "snapshotter", SNAPSHOTTER);
        Ok(document.to_string())
    }

    /// Removes the line, unless somebody has changed it.
    pub fn remove_from(&self, text: &str) -> Result<String> {
        let mut document = parse(text)?;
        if document.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER) {
            match &self.0.before {
                Some(before) => set(document.as_table_mut(), "snapshotter", before),
                None => drop(document.remove("snapshotter")),
            }
        }
        Ok(document.to_string())
    }
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().context("nerdctl's settings are not valid TOML; mend them first")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::no_settings("", "snapshotter = \"nixenv\"\n")]
    #[case::others("debug = true # loud\n", "debug = true # loud\nsnapshotter = \"nixenv\"\n")]
    #[case::another_snapshotter(
        "snapshotter = \"stargz\"\ncni_path = \"/c\"\n",
        "snapshotter = \"nixenv\"\ncni_path = \"/c\"\n"
    )]
    fn the_line_comes_and_goes(#[case] theirs: &str, #[case] expected: &str) {
        let line = Snapshotter::new(theirs).unwrap();
        let edited = line.add_to(theirs).unwrap();
        assert_eq!(edited, expected);
        assert_eq!(line.add_to(&edited).unwrap(), edited);
        assert_eq!(line.remove_from(&edited).unwrap(), theirs);
    }

    #[test]
    fn what_somebody_has_changed_since_stays() {
        let line = Snapshotter::new("").unwrap();
        let theirs = "snapshotter = \"overlayfs\"\n";
        assert_eq!(line.remove_from(theirs).unwrap(), theirs);
    }
}
