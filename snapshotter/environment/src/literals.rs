//! The relative path literals in the text of a Nix file.
//!
//! Only tokens are looked at (`rnix`'s tokenizer keeps no call stack), so a hostile file cannot exhaust the stack.
//! Where tokens leave a doubt, the answer covers more paths, never fewer.

use rnix::SyntaxKind::{self, *};

/// A relative path in a Nix file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathLiteral {
    /// The path as written; of an interpolated path the directory before the first `${`.
    pub path: String,
    /// What of the path the expression may read.
    pub reach: Reach,
}

/// What an expression may read through a path literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// `import ./x`: the file, or `default.nix` in the directory.
    Import,
    /// `./x`: the file, or everything in the directory.
    Whole,
    /// `./x + "…"`: also anything whose name begins like this, so everything in the directory around it.
    Around,
}

/// Finds the relative path literals of a Nix file, in order of appearance.
#[must_use]
pub fn parse_path_literals(text: &str) -> Vec<PathLiteral> {
    let tokens: Vec<(SyntaxKind, &str)> =
        rnix::tokenize(text).filter(|(kind, _)| !matches!(kind, TOKEN_WHITESPACE | TOKEN_COMMENT)).collect();
    let mut literals = Vec::new();
    for (index, &(kind, path)) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|index| tokens.get(index));
        let after = tokens.get(index + 1).map(|token| token.0);
        // The part of an interpolated path behind `${…}` is a token of the same kind.
        if kind != TOKEN_PATH_REL || before.is_some_and(|token| token.0 == TOKEN_INTERPOL_END) {
            continue;
        }
        let literal = if after == Some(TOKEN_INTERPOL_START) {
            let directory = path.rsplit_once('/').map_or(".", |(directory, _)| directory);
            PathLiteral { path: directory.to_owned(), reach: Reach::Whole }
        } else if after == Some(TOKEN_ADD) || before.is_some_and(|token| token.0 == TOKEN_ADD) {
            PathLiteral { path: path.to_owned(), reach: Reach::Around }
        } else if before == Some(&(TOKEN_IDENT, "import")) {
            PathLiteral { path: path.to_owned(), reach: Reach::Import }
        } else {
            PathLiteral { path: path.to_owned(), reach: Reach::Whole }
        };
        literals.push(literal);
    }
    literals
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::import("import ./a.nix", &[("./a.nix", Reach::Import)])]
    #[case::import_through_builtins("builtins.import ../a", &[("../a", Reach::Import)])]
    #[case::a_comment_between("import /* x */ ./a", &[("./a", Reach::Import)])]
    #[case::read_file("builtins.readFile ./a/b.txt", &[("./a/b.txt", Reach::Whole)])]
    #[case::no_leading_dot("import sub/a.nix", &[("sub/a.nix", Reach::Import)])]
    #[case::this_directory("src = ./.;", &[("./.", Reach::Whole)])]
    #[case::added("./a + \".nix\"", &[("./a", Reach::Around)])]
    #[case::added_to("x + ./a", &[("./a", Reach::Around)])]
    #[case::interpolated("./a/${x}.nix", &[("./a", Reach::Whole)])]
    #[case::interpolated_at_once("./${x}", &[(".", Reach::Whole)])]
    #[case::interpolated_twice("./a/${x}/b/${y}", &[("./a", Reach::Whole)])]
    #[case::in_a_string("\"${./a}/b\"", &[("./a", Reach::Whole)])]
    #[case::quoted_or_commented("\"./a\" ''./b'' # ./c", &[])]
    #[case::absolute_home_and_search("[ /etc/passwd ~/x <nixpkgs> ]", &[])]
    #[case::division_with_spaces("a / b", &[])]
    #[case::a_syntax_error("{ a = ./b; ] )", &[("./b", Reach::Whole)])]
    fn finds(#[case] text: &str, #[case] expected: &[(&str, Reach)]) {
        let expected: Vec<PathLiteral> =
            expected.iter().map(|&(path, reach)| PathLiteral { path: path.to_owned(), reach }).collect();
        assert_eq!(parse_path_literals(text), expected);
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        assert_eq!(parse_path_literals(&"(".repeat(1 << 20)), []);
        assert_eq!(parse_path_literals(&"\"${".repeat(1 << 20)), []);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            let _ = parse_path_literals(&text);
        }
    }
}
