//! Who wins when the container and the environment set the same variable.
//!
//! What the user set on the container wins over the environment, and the environment over the image's defaults.
//! Search paths are not a matter of winning: the environment's is put before the container's.

use std::collections::BTreeMap;

/// Search paths, and what a container without them searches: of `PATH` what runtimes and shells assume, of
/// `XDG_DATA_DIRS` what the XDG Base Directory Specification says. An image's own programs must still be found.
const SEARCH_PATHS: [(&str, &str); 2] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("XDG_DATA_DIRS", "/usr/local/share:/usr/share"),
];

/// Merges `environment` into the entries (`NAME=VALUE`) of `container`: their order stays, new names follow, sorted.
///
/// `overrides` names variables that the environment wins in any case. Of the others that both set, to different
/// values, `stays(name, value)` says whether the container's value stays. Merging again changes nothing.
pub(super) fn merge(
    container: &[String],
    environment: &BTreeMap<String, String>,
    overrides: &[String],
    mut stays: impl FnMut(&str, &str) -> bool,
) -> Vec<String> {
    let mut merged = container.to_vec();
    for (name, value) in environment {
        let present = value_of(container, name);
        let default = SEARCH_PATHS.iter().find(|(search, _)| search == name).map(|(_, default)| *default);
        let winner = match (present, default) {
            _ if overrides.contains(name) => value.clone(),
            (present, Some(default)) => {
                prepend(value, present.filter(|present| !present.is_empty()).unwrap_or(default))
            }
            (Some(present), None) if present == value || stays(name, present) => continue,
            _ => value.clone(),
        };
        set(&mut merged, name, &winner);
    }
    merged
}

/// The value of `name`: of several entries the last one's, which is the one that a process sees.
pub(super) fn value_of<'a>(entries: &'a [String], name: &str) -> Option<&'a str> {
    entries
        .iter()
        .rev()
        .find_map(|entry| entry.split_once('=').filter(|(found, _)| *found == name))
        .map(|(_, value)| value)
}

fn prepend(first: &str, rest: &str) -> String {
    let already = rest.strip_prefix(first).is_some_and(|after| after.is_empty() || after.starts_with(':'));
    if already || first.is_empty() { rest.to_owned() } else { format!("{first}:{rest}") }
}

fn set(entries: &mut Vec<String>, name: &str, value: &str) {
    let names = |entry: &String| entry.split_once('=').is_some_and(|(found, _)| found == name);
    let last = entries.iter().rposition(names);
    let entry = format!("{name}={value}");
    match last {
        None => entries.push(entry),
        Some(last) => {
            entries[last] = entry;
            let mut index = 0;
            entries.retain(|entry| {
                index += 1;
                index > last || !names(entry)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

    fn entries(text: &[&str]) -> Vec<String> {
        text.iter().map(|&entry| entry.to_owned()).collect()
    }

    fn map(text: &[&str]) -> BTreeMap<String, String> {
        text.iter().map(|entry| entry.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.into())).collect()
    }

    #[rstest]
    #[case::a_new_name_is_added(&["A=1"], &["B=2"], &["A=1", "B=2"])]
    #[case::new_names_are_sorted_behind_the_old_ones(&["Z=1"], &["C=3", "B=2"], &["Z=1", "B=2", "C=3"])]
    #[case::the_containers_value_stays(&["A=1"], &["A=2"], &["A=1"])]
    #[case::of_duplicates_the_last_counts(&["A=1", "A=2"], &["A=2"], &["A=1", "A=2"])]
    #[case::path_is_prepended(&["PATH=/bin"], &["PATH=/nix/bin"], &["PATH=/nix/bin:/bin"])]
    #[case::path_is_prepended_once(&["PATH=/nix/bin:/bin"], &["PATH=/nix/bin"], &["PATH=/nix/bin:/bin"])]
    #[case::a_longer_first_entry_is_another(&["PATH=/nix/bin2"], &["PATH=/nix/bin"], &["PATH=/nix/bin:/nix/bin2"])]
    #[case::duplicate_paths_become_one(&["PATH=/a", "B=1", "PATH=/b"], &["PATH=/n"], &["B=1", "PATH=/n:/b"])]
    #[case::data_directories_are_prepended(&["XDG_DATA_DIRS=/s"], &["XDG_DATA_DIRS=/n"], &["XDG_DATA_DIRS=/n:/s"])]
    #[case::absent_data_directories_have_a_default(&[], &["XDG_DATA_DIRS=/n"], &["XDG_DATA_DIRS=/n:/usr/local/share:/usr/share"])]
    #[case::an_entry_without_equals_sign_is_kept(&["A"], &["A=1"], &["A", "A=1"])]
    #[case::an_equals_sign_in_a_value_is_kept(&["A=b=c"], &["D=e=f"], &["A=b=c", "D=e=f"])]
    #[case::nothing_to_add_changes_nothing(&["A=1", "A=2", "B"], &[], &["A=1", "A=2", "B"])]
    #[case::an_empty_value_is_a_value(&["A="], &["A=1"], &["A="])]
    fn merging(#[case] container: &[&str], #[case] environment: &[&str], #[case] expected: &[&str]) {
        let environment = map(environment);
        let merged = merge(&entries(container), &environment, &[], |_, _| true);
        assert_eq!(merged, entries(expected));
        assert_eq!(merge(&merged, &environment, &[], |_, _| true), merged, "merging again changes nothing");
    }

    #[rstest]
    #[case::absent(&[])]
    #[case::empty(&["PATH="])]
    fn without_a_path_the_usual_one_follows(#[case] container: &[&str]) {
        let merged = merge(&entries(container), &map(&["PATH=/n"]), &[], |_, _| true);
        assert_eq!(merged, [format!("PATH=/n:{DEFAULT}")]);
    }

    #[test]
    fn an_image_default_is_replaced_in_its_place() {
        let merged = merge(&entries(&["A=old", "B=1"]), &map(&["A=new"]), &[], |_, _| false);
        assert_eq!(merged, ["A=new", "B=1"]);
    }

    #[rstest]
    #[case::a_variable(&["A=user"], &["A=env"], "A", &["A=env"])]
    #[case::a_search_path(&["PATH=/bin"], &["PATH=/n"], "PATH", &["PATH=/n"])]
    #[case::a_name_that_the_environment_lacks(&["A=user"], &["B=1"], "A", &["A=user", "B=1"])]
    fn an_override_wins(
        #[case] container: &[&str],
        #[case] env: &[&str],
        #[case] name: &str,
        #[case] expected: &[&str],
    ) {
        let merged = merge(&entries(container), &map(env), &[name.to_owned()], |_, _| true);
        assert_eq!(merged, entries(expected));
    }
}
