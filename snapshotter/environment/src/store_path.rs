//! Store paths: `/nix/store/<32 characters of Nix base-32>-<name>`, nothing below it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The logical directory of every store path.
pub const STORE_DIR: &str = "/nix/store";

/// A store path, by Nix's own grammar (`libstore/path.cc`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

/// Text that is not a store path.
#[derive(Debug, thiserror::Error)]
#[error("'{text}' is not a store path")]
pub struct ParseStorePathError {
    text: String,
}

impl StorePath {
    /// The name below `/nix/store`.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.0[STORE_DIR.len() + 1..]
    }

    /// The absolute path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The absolute path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The store path that `path` is, or lies in.
    ///
    /// # Errors
    /// When `path` is not at or below a store path.
    pub fn containing(path: &str) -> Result<Self, ParseStorePathError> {
        let error = || ParseStorePathError { text: path.to_owned() };
        let rest = path.strip_prefix(STORE_DIR).and_then(|rest| rest.strip_prefix('/')).ok_or_else(error)?;
        let name = rest.split('/').next().unwrap_or_default();
        format!("{STORE_DIR}/{name}").parse().map_err(|_| error())
    }
}

impl FromStr for StorePath {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_prefix(STORE_DIR).and_then(|rest| rest.strip_prefix('/'));
        match name.and_then(|name| name.split_at_checked(32)) {
            Some((hash, rest))
                if hash.bytes().all(|b| b"0123456789abcdfghijklmnpqrsvwxyz".contains(&b))
                    && rest.len() > 1
                    && rest.len() <= 212
                    && rest.starts_with('-')
                    && rest[1..].bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(ParseStorePathError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for StorePath {
    type Error = ParseStorePathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh", true)]
    #[case::below("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh/bin", false)]
    #[case::letter_e("/nix/store/e2dydhgyxl38xw69v81pl4rpk9ndj241-sh", false)]
    #[case::no_name("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-", false)]
    #[case::elsewhere("/etc/passwd", false)]
    #[case::dots("/nix/store/../store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh", false)]
    #[case::control("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-s\nh", false)]
    fn grammar(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(text.parse::<StorePath>().is_ok(), valid);
    }

    #[test]
    fn containing_cuts_below_the_store_path() {
        let path = StorePath::containing("/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-sh/bin/sh").unwrap();
        assert_eq!(path.base_name(), "r2dydhgyxl38xw69v81pl4rpk9ndj241-sh");
    }
}
