//! What a layer's labels say of it.
//!
//! | label | value |
//! | --- | --- |
//! | `containerd.io/snapshot/nix-closure` | a store path with a file `store-paths`: the paths, one a line |
//! | `containerd.io/snapshot/nix-layer` | `true`: the paths are labels, too (nix-snapshotter before 0.3) |
//! | `containerd.io/snapshot/nix-store-path.N` | one of them |
//! | `containerd.io/snapshot/nixenv-store-only` | `true`: the layer holds these paths and nothing else |
//!
//! containerd makes them of a layer's annotations (`FilterInheritedLabels` in its `core/snapshots/snapshotter.go`), so
//! whoever makes an image writes them. Each is read by one grammar or the layer is refused; nothing is guessed.
//!
//! That a layer is store-only is the one thing that cannot be checked without the layer, and believed only where the
//! node's settings say so. containerd knows layers by their chain ids alone, so after a lie every image on the node that
//! has the same layer lacks its content.

use std::collections::BTreeSet;

use environment::store_path::StorePath;

use crate::snapshots::info::Labels;

const CLOSURE: &str = "containerd.io/snapshot/nix-closure";
const LAYER: &str = "containerd.io/snapshot/nix-layer";
const STORE_PATH: &str = "containerd.io/snapshot/nix-store-path.";
const STORE_ONLY: &str = "containerd.io/snapshot/nixenv-store-only";

/// The most store paths that one layer may name; a whole desktop has some thousands.
pub(super) const MAX_PATHS: usize = 50_000;
/// What an error shows of a label's value.
const SHOWN_CHARS: usize = 80;

/// What a layer's labels name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPaths {
    pub(super) paths: Paths,
    /// Whether the layer says that it holds nothing else.
    pub(super) store_only: bool,
}

/// The store paths of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Paths {
    /// Those that the file `store-paths` in this one lists.
    Closure(StorePath),
    /// These; at least one, sorted.
    Listed(Vec<StorePath>),
}

/// Labels that are refused.
#[derive(Debug, thiserror::Error)]
pub enum ParseLabelsError {
    /// What should be a store path is something else.
    #[error("the label {label} must be a store path, /nix/store/HASH-NAME, and is {value:?}")]
    NotAStorePath {
        /// The label's name.
        label: String,
        /// The start of its value.
        value: String,
    },
    /// To realise a derivation is to build it.
    #[error("the label {label} names the derivation {path}; it must name an output")]
    Derivation {
        /// The label's name.
        label: String,
        /// The derivation.
        path: StorePath,
    },
    /// A flag is not set to a truth value.
    #[error("the label {label} must be \"true\", and is {value:?}")]
    Flag {
        /// The label's name.
        label: &'static str,
        /// The start of its value.
        value: String,
    },
    /// The labels of store paths are numbered.
    #[error("the label {label:?} must end in a number without leading zeros")]
    Number {
        /// The start of the label's name.
        label: String,
    },
    /// There are too many.
    #[error("the labels name more than {MAX_PATHS} store paths")]
    TooMany,
}

/// What the labels name; `None` when they name no store paths.
///
/// The closure counts before single paths, as in nix-snapshotter, and gaps between their numbers mean nothing.
///
/// # Errors
/// When one of the labels above is not what it must be, even one that would not count.
pub fn parse(labels: &Labels) -> Result<Option<NamedPaths>, ParseLabelsError> {
    let closure =
        labels.get(CLOSURE).map(|value| parse_store_path(CLOSURE, value)).transpose()?.map(Paths::Closure);
    let is_legacy = parse_flag(labels, LAYER)?;
    let store_only = parse_flag(labels, STORE_ONLY)?;
    let mut listed = BTreeSet::new();
    for (label, value) in labels.range(STORE_PATH.to_owned()..) {
        let Some(number) = label.strip_prefix(STORE_PATH) else { break };
        if !is_number(number) {
            return Err(ParseLabelsError::Number { label: shorten(label) });
        }
        listed.insert(parse_store_path(label, value)?);
        if listed.len() > MAX_PATHS {
            return Err(ParseLabelsError::TooMany);
        }
    }
    let listed = (is_legacy && !listed.is_empty()).then(|| Paths::Listed(listed.into_iter().collect()));
    Ok(closure.or(listed).map(|paths| NamedPaths { paths, store_only }))
}

fn parse_store_path(label: &str, value: &str) -> Result<StorePath, ParseLabelsError> {
    let path: StorePath = value
        .parse()
        .map_err(|_| ParseLabelsError::NotAStorePath { label: label.to_owned(), value: shorten(value) })?;
    if path.as_str().ends_with(".drv") {
        return Err(ParseLabelsError::Derivation { label: label.to_owned(), path });
    }
    Ok(path)
}

fn parse_flag(labels: &Labels, label: &'static str) -> Result<bool, ParseLabelsError> {
    match labels.get(label).map(String::as_str) {
        None => Ok(false),
        Some("true") => Ok(true),
        Some(value) => Err(ParseLabelsError::Flag { label, value: shorten(value) }),
    }
}

fn is_number(text: &str) -> bool {
    let is_digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits && (text == "0" || !text.starts_with('0'))
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const A: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a";
    const B: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj242-b";

    fn labels(labels: &[(&str, &str)]) -> Labels {
        let name = |label: &str| format!("containerd.io/snapshot/{label}");
        labels.iter().map(|(label, value)| (name(label), (*value).to_owned())).collect()
    }

    fn closure(path: &str) -> Paths {
        Paths::Closure(path.parse().unwrap())
    }

    fn listed(paths: &[&str]) -> Paths {
        Paths::Listed(paths.iter().map(|path| path.parse().unwrap()).collect())
    }

    #[rstest]
    #[case::of_a_plain_layer_name_nothing(&[("diff-id", "sha256:0")], None)]
    #[case::name_a_closure(&[("nix-closure", A)], Some((closure(A), false)))]
    #[case::say_that_there_is_nothing_else(&[("nix-closure", A), ("nixenv-store-only", "true")], Some((closure(A), true)))]
    #[case::list_paths(&[("nix-layer", "true"), ("nix-store-path.1", A), ("nix-store-path.0", B)], Some((listed(&[A, B]), false)))]
    #[case::list_a_path_twice(&[("nix-layer", "true"), ("nix-store-path.0", A), ("nix-store-path.1", A)], Some((listed(&[A]), false)))]
    #[case::have_a_gap(&[("nix-layer", "true"), ("nix-store-path.0", A), ("nix-store-path.17", B)], Some((listed(&[A, B]), false)))]
    #[case::prefer_the_closure(&[("nix-closure", A), ("nix-layer", "true"), ("nix-store-path.0", B)], Some((closure(A), false)))]
    #[case::list_nothing(&[("nix-layer", "true")], None)]
    #[case::list_paths_of_no_nix_layer(&[("nix-store-path.0", A)], None)]
    #[case::claim_to_be_store_only_without_paths(&[("nixenv-store-only", "true")], None)]
    fn labels_that(#[case] given: &[(&str, &str)], #[case] expected: Option<(Paths, bool)>) {
        let expected = expected.map(|(paths, store_only)| NamedPaths { paths, store_only });
        assert_eq!(parse(&labels(given)).unwrap(), expected);
    }

    const OF_4_KIB: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-";

    #[rstest]
    #[case::a_file_of_the_host("nix-closure", "/etc")]
    #[case::a_way_out_of_the_store("nix-closure", "/nix/store/..")]
    #[case::a_way_out_of_a_path("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a/../../../etc")]
    #[case::a_place_in_a_path("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a/bin")]
    #[case::a_trailing_slash("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a/")]
    #[case::another_store("nix-closure", "/gnu/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a")]
    #[case::a_relative_path("nix-closure", "nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a")]
    #[case::a_line_feed("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a\n")]
    #[case::a_nul("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a\0b")]
    #[case::an_output_of_a_derivation("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a!out")]
    #[case::a_derivation("nix-closure", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a.drv")]
    #[case::nothing("nix-closure", "")]
    #[case::a_listed_file_of_the_host("nix-store-path.0", "/etc/shadow")]
    #[case::a_listed_derivation("nix-store-path.0", "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-a.drv")]
    #[case::a_number_with_a_zero("nix-store-path.01", A)]
    #[case::a_number_with_a_sign("nix-store-path.-1", A)]
    #[case::no_number("nix-store-path.", A)]
    #[case::a_word_for_a_number("nix-store-path.x", A)]
    #[case::an_endless_number("nix-store-path.99999999999999999999", A)]
    #[case::half_a_truth("nix-layer", "yes")]
    #[case::a_lie("nixenv-store-only", "false")]
    fn a_layer_is_refused_for(#[case] label: &str, #[case] value: &str) {
        assert!(parse(&labels(&[(label, value)])).is_err());
        // What would not count is refused all the same.
        let mut others = labels(&[("nix-closure", B), ("nix-layer", "true"), ("nix-store-path.7", B)]);
        others.extend(labels(&[(label, value)]));
        assert!(parse(&others).is_err());
    }

    #[test]
    fn a_value_of_4_kib_is_refused_and_not_repeated() {
        let value = format!("{OF_4_KIB}{}", "ä\u{7}".repeat(1350));
        let message = parse(&labels(&[("nix-closure", &value)])).unwrap_err().to_string();
        assert!(message.len() < 400, "{message}");
        assert!(!message.chars().any(char::is_control), "{message}");
    }

    #[test]
    fn more_paths_than_the_limit_are_refused() {
        let path = |n: usize| format!("/nix/store/{n:032}-a");
        let label = |n: usize| (format!("{STORE_PATH}{n}"), path(n));
        let mut labels: Labels = (0..MAX_PATHS).map(label).collect();
        labels.insert(LAYER.to_owned(), "true".to_owned());
        assert!(parse(&labels).is_ok());
        labels.extend([label(MAX_PATHS)]);
        assert!(matches!(parse(&labels), Err(ParseLabelsError::TooMany)));
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_in_the_store(
            label in "(nix-closure|nix-layer|nix-store-path\\.[0-9a]{0,3}|nixenv-store-only)",
            value in "(true|/nix/store/[0-9a-df-np-sv-z]{32}-[a-z.]{1,9}|.{0,60})",
        ) {
            if let Ok(Some(named)) = parse(&labels(&[(&label, &value), ("nix-store-path.0", A)])) {
                let paths = match named.paths {
                    Paths::Closure(path) => vec![path],
                    Paths::Listed(paths) => paths,
                };
                for path in paths {
                    let name = path.as_str().strip_prefix("/nix/store/").unwrap();
                    prop_assert!(!name.contains('/') && !name.starts_with('.') && !name.ends_with(".drv"));
                }
            }
        }
    }
}
