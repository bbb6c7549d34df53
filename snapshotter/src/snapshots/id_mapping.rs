//! Owners in user namespaces: the labels `containerd.io/snapshot/uidmapping` and `gidmapping`.
//!
//! Their value is a list of `CONTAINER-ID:HOST-ID:SIZE`, separated by commas, as containerd's `internal/userns`
//! writes it.

use super::info::Labels;

const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// What is no id: the kernel's `(uid_t)-1`.
const INVALID_ID: u32 = u32::MAX;
/// How much of a value a message shows.
const SHOWN_CHARS: usize = 200;

/// A mapping that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdMappingError {
    /// It is not a mapping.
    #[error(
        "label {label}: {value:?} is not a list of CONTAINER-ID:HOST-ID:SIZE, each below 4294967295, separated by commas"
    )]
    Malformed {
        /// The label.
        label: &'static str,
        /// The beginning of its value.
        value: String,
    },
    /// The container's root has no id on the host.
    #[error("label {label}: {value:?} does not map id 0")]
    NoRoot {
        /// The label.
        label: &'static str,
        /// The beginning of its value.
        value: String,
    },
}

/// The user and group on the host that a snapshot's mappings make of root; `None` without a mapping.
///
/// # Errors
/// When a mapping is wrong or has no place for root.
pub fn root_of(labels: &Labels) -> Result<Option<(u32, u32)>, IdMappingError> {
    if !labels.contains_key(UID_MAPPING) && !labels.contains_key(GID_MAPPING) {
        return Ok(None);
    }
    Ok(Some((map_root(labels, UID_MAPPING)?, map_root(labels, GID_MAPPING)?)))
}

/// The options that make a mount id-mapped, which containerd's mount package takes out again.
pub fn mount_options(labels: &Labels) -> impl Iterator<Item = String> + '_ {
    [("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING)]
        .into_iter()
        .filter_map(|(option, label)| Some(format!("{option}={}", labels.get(label)?)))
}

fn map_root(labels: &Labels, label: &'static str) -> Result<u32, IdMappingError> {
    // Without a mapping ids stay what they are.
    let Some(value) = labels.get(label).filter(|value| !value.is_empty()) else { return Ok(0) };
    // A client may write what it likes; a message shows some of it.
    let shown = || value.chars().take(SHOWN_CHARS).collect::<String>();
    let malformed = || IdMappingError::Malformed { label, value: shown() };
    let mappings = value
        .split(',')
        .map(|mapping| parse(mapping).ok_or_else(malformed))
        .collect::<Result<Vec<_>, _>>()?;
    mappings
        .iter()
        .find(|[container, _, size]| *container == 0 && *size > 0)
        .map(|[_, host, _]| *host)
        .ok_or_else(|| IdMappingError::NoRoot { label, value: shown() })
}

fn parse(mapping: &str) -> Option<[u32; 3]> {
    let mut fields = mapping.split(':').map(|field| field.parse().ok().filter(|id| *id != INVALID_ID));
    let parsed = [fields.next()??, fields.next()??, fields.next()??];
    fields.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing_is_mapped(&[], Ok(None))]
    #[case::both(&[(UID_MAPPING, "0:666:65536"), (GID_MAPPING, "0:888:65536")], Ok(Some((666, 888))))]
    #[case::one_stays_as_it_is(&[(UID_MAPPING, "0:666:65536")], Ok(Some((666, 0))))]
    #[case::root_is_in_the_second(&[(UID_MAPPING, "1000:1:5,0:666:1000")], Ok(Some((666, 0))))]
    #[case::negative(&[(UID_MAPPING, "-1:-1:-2")], Err("not a list"))]
    #[case::the_second_is_negative(&[(GID_MAPPING, "0:0:1,6:6:-6")], Err("not a list"))]
    #[case::the_invalid_id(&[(UID_MAPPING, "0:4294967295:1")], Err("not a list"))]
    #[case::too_few_fields(&[(UID_MAPPING, "0:0")], Err("not a list"))]
    #[case::too_many_fields(&[(UID_MAPPING, "0:0:1:1")], Err("not a list"))]
    #[case::root_is_missing(&[(UID_MAPPING, "666:666:666")], Err("does not map id 0"))]
    #[case::root_has_no_size(&[(UID_MAPPING, "0:666:0")], Err("does not map id 0"))]
    fn roots(#[case] labels: &[(&str, &str)], #[case] expected: Result<Option<(u32, u32)>, &str>) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match (root_of(&labels), expected) {
            (Ok(root), Ok(expected)) => assert_eq!(root, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (root, expected) => panic!("{root:?} is not {expected:?}"),
        }
    }

    #[test]
    fn options_repeat_the_labels() {
        let labels = Labels::from([(GID_MAPPING.to_owned(), "0:8:1".to_owned())]);
        assert_eq!(mount_options(&labels).collect::<Vec<_>>(), ["gidmap=0:8:1"]);
    }
}
