//! Nix's messages, whole, in the user's terms.

use std::process::ExitStatus;

/// Lines of a build that are shown with its failure.
const MAX_LINES: usize = 200;

/// Removes terminal escapes (ECMA-48 control sequences) and what is about the prelude, and replaces paths that the user
/// never saw.
pub fn clean(messages: &str, replacements: &[(String, String)]) -> String {
    let mut text = without_escapes(messages);
    for (seen, meant) in replacements {
        text = text.replace(seen.as_str(), meant);
    }
    let lines = without_prelude(text.trim().lines().map(str::trim_end));
    lines[lines.len().saturating_sub(MAX_LINES)..].join("\n")
}

/// What Nix said; of a Nix that was killed before it could say anything, how.
pub fn or_status(messages: String, status: ExitStatus) -> String {
    if messages.trim().is_empty() { format!("Nix ended with {status}") } else { messages }
}

/// The replacements that turn paths in the copy of a config into paths as the user writes them.
///
/// `origin` is what the user called the entry file: `dir/config.nix` makes `dir/` the copy's directory.
pub fn paths_of_copy(copy: &str, entry: &str, origin: &str) -> Vec<(String, String)> {
    let directory = origin.strip_suffix(entry).unwrap_or_default();
    let itself = match directory.trim_end_matches('/') {
        "" => ".",
        directory => directory,
    };
    vec![(format!("{copy}/"), directory.to_owned()), (copy.to_owned(), itself.to_owned())]
}

/// Removes the frames of a trace that are in the prelude, which Nix is given as a string, and the advice to call Nix
/// with another option. A frame is a line that begins with an ellipsis, and what follows it up to an empty line.
fn without_prelude<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut frame: Option<usize> = None;
    for line in lines {
        if line.trim_start().starts_with('…') {
            frame = Some(kept.len());
        }
        if line.contains("'--show-trace'") {
            continue;
        }
        if line.is_empty() {
            let of_prelude = |start: usize| kept[start..].iter().any(|line| line.contains("at «string»:"));
            if let Some(start) = frame.take().filter(|&start| of_prelude(start)) {
                kept.truncate(start);
                continue;
            }
            if kept.last().is_none_or(|last| last.is_empty() || *last == "error:") {
                continue;
            }
        }
        // Of a trace, only the error itself is left.
        if kept.last() == Some(&"error:") && line.trim_start().starts_with("error:") {
            kept.pop();
        }
        kept.push(line);
    }
    kept
}

fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' if rest.next_if_eq(&'[').is_some() => {
                while rest.next().is_some_and(|character| !('@'..='~').contains(&character)) {}
            }
            '\n' | '\t' => plain.push(character),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const COPY: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config";

    #[rstest]
    #[case::a_position_names_the_users_file(
        "config.nix",
        "config.nix",
        "error: syntax error\n\n       at /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config/config.nix:3:5:\n",
        "error: syntax error\n\n       at config.nix:3:5:"
    )]
    #[case::an_imported_file_lies_beside_the_config(
        "config.nix",
        "/src/env/config.nix",
        "at /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config/lib/x.nix:1:1",
        "at /src/env/lib/x.nix:1:1"
    )]
    #[case::the_copy_itself_is_the_configs_directory(
        "config.nix",
        "env/config.nix",
        "cannot coerce '/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config'",
        "cannot coerce 'env'"
    )]
    #[case::a_named_config_has_no_directory(
        "config.nix",
        "@python",
        "at /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config/config.nix:1:1",
        "at config.nix:1:1"
    )]
    #[case::other_store_paths_stay(
        "config.nix",
        "config.nix",
        "at /nix/store/1111111111111111111111111111111a-nixpkgs/x.nix",
        "at /nix/store/1111111111111111111111111111111a-nixpkgs/x.nix"
    )]
    #[case::colours_and_controls_vanish(
        "config.nix",
        "config.nix",
        "\x1b[31;1merror:\x1b[0m no\r\n\t| \x07caret ^\n",
        "error: no\n\t| caret ^"
    )]
    #[case::what_the_prelude_does_is_not_told(
        "config.nix",
        "config.nix",
        "error:\n       … while calling the 'map' builtin\n         at «string»:1:1:\n            1| map x\n             | ^\n\n       … while calling y\n         at /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-config/y.nix:1:1:\n\n       (stack trace truncated; use '--show-trace' to show the full, detailed trace)\n\n       error: no\n       at z\n",
        "error:\n       … while calling y\n         at y.nix:1:1:\n\n       error: no\n       at z"
    )]
    #[case::without_a_trace_the_error_stands_alone(
        "config.nix",
        "config.nix",
        "warning: x\nerror:\n       … while calling the 'map' builtin\n         at «string»:1:1:\n            1| map x\n\n       error: no\n",
        "warning: x\n       error: no"
    )]
    #[case::a_cut_escape_ends_the_text("config.nix", "config.nix", "a\x1b[31", "a")]
    fn messages(#[case] entry: &str, #[case] origin: &str, #[case] nix: &str, #[case] expected: &str) {
        assert_eq!(clean(nix, &paths_of_copy(COPY, entry, origin)), expected);
    }

    #[test]
    fn the_end_of_a_long_log_is_kept() {
        let log: String = (0..1000).map(|line| format!("line {line}\n")).collect();
        let text = clean(&log, &[]);
        assert_eq!(text.lines().count(), MAX_LINES);
        assert!(text.ends_with("line 999"));
    }
}
