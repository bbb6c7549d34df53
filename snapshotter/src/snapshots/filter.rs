//! Filters of a list of snapshots, in the grammar of containerd's `pkg/filters`.
//!
//! ```text
//! filter    = "" | selector *("," selector)            all of the selectors hold
//! selector  = path [ operator value ]                  without an operator: the field is present
//! path      = field *("." field)                       kind, name, parent, labels.KEY
//! field     = 1*("A".."Z" | "a".."z" | "0".."9" | "_") | quoted
//! operator  = "==" | "!=" | "~="
//! value     = characters up to a comma or white space | quoted
//! quoted    = a Go string in double quotes; after "~=" also between two "/" or two "|"
//! ```
//!
//! A list takes several filters and shows what matches any of them; without a filter it shows all. White space may precede
//! every part but the commas and dots, and may not end the filter. The rest of a path below `labels`, joined by dots, is a key:
//! `labels.a.b`, `labels."a.b"`.
//!
//! A field that is absent equals nothing, differs from every value but the empty one, and is matched as the empty text.
//!
//! # Differences from containerd
//!
//! What is accepted and what it matches is the same, with these exceptions:
//!
//! - Expressions (`~=`) are those of the crate `regex`. Like Go's they take linear time; unlike Go's, `\d`, `\s`, `\w` and `\b` know
//!   letters beyond ASCII, character classes nest, `\u0066` is a character and `\146` is none, and a repetition may be repeated. As
//!   in containerd, an expression that is none matches nothing.
//! - Text, number and compiled size of expressions are limited, see the constants. Beyond them a filter is refused.
//! - A message shows only the surroundings of a mistake in a long filter.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use super::info::Info;

/// How long the filters of one list may be together.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// How many expressions the filters of one list may have together.
const MAX_EXPRESSIONS: usize = 16;

/// How long an expression may be: as long as a label, key and value, can be.
const MAX_EXPRESSION_BYTES: usize = 4096;

/// What an expression may need once it is compiled, and again while it is matched.
const MAX_COMPILED_BYTES: usize = 1024 * 1024;

/// How much of a filter a message shows on each side of a mistake.
const EXCERPT_CHARS: usize = 60;

/// What an unquoted value is made of: `unicode.IsGraphic` without white space, the comma, and what stands for a broken character.
static GRAPHIC: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[\p{L}\p{M}\p{N}\p{P}\p{S}&&[^,\x{fffd}]]*").expect("the expression is constant")
});

/// A list's filters.
#[derive(Debug)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
}

/// A filter that is refused.
#[derive(Debug, Error)]
pub enum ParseFilterError {
    /// It does not follow the grammar.
    #[error("filters: parse error: [{excerpt}]: {problem}")]
    Malformed {
        /// The filter with the character in question marked, or as much of it as a message can have.
        excerpt: String,
        /// Where that character begins.
        byte: usize,
        /// What is wrong with it.
        problem: Cow<'static, str>,
    },
    /// The filters are too long.
    #[error("filters of {bytes} bytes; all filters of a list together may have {MAX_TEXT_BYTES}")]
    TooLong {
        /// How long they are.
        bytes: usize,
    },
    /// There are too many expressions.
    #[error("filters with more than {MAX_EXPRESSIONS} expressions (`~=`)")]
    TooManyExpressions,
    /// An expression is too long.
    #[error("filters with an expression of {bytes} bytes; it may have {MAX_EXPRESSION_BYTES}")]
    LongExpression {
        /// How long it is.
        bytes: usize,
    },
    /// An expression needs too much memory.
    #[error(
        "filters with an expression that needs more than {MAX_COMPILED_BYTES} bytes: make its repetitions smaller"
    )]
    LargeExpression,
}

/// Parses the filters of a list.
///
/// # Errors
/// Fails when one of them is malformed, or needs more than a list may take.
pub fn parse_all(filters: &[String]) -> Result<Filter, ParseFilterError> {
    let bytes = filters.iter().map(String::len).sum();
    if bytes > MAX_TEXT_BYTES {
        return Err(ParseFilterError::TooLong { bytes });
    }
    let mut parser = Parser { text: "", at: 0, expressions: 0 };
    let mut any = Vec::with_capacity(filters.len());
    for text in filters {
        (parser.text, parser.at) = (text, 0);
        any.push(parser.filter()?);
    }
    if any.is_empty() {
        any.push(vec![]);
    }
    Ok(Filter { any })
}

impl Filter {
    /// Tells whether a snapshot is to be listed.
    #[must_use]
    pub fn matches(&self, info: &Info) -> bool {
        self.any.iter().any(|all| all.iter().all(|selector| selector.matches(info)))
    }
}

#[derive(Debug)]
struct Selector {
    field: Field,
    condition: Condition,
}

#[derive(Debug)]
enum Field {
    Kind,
    Name,
    Parent,
    Label(String),
    Unknown,
}

/// Values are bytes, since escapes can spell what is no text. No field equals such a value.
#[derive(Debug)]
enum Condition {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Matches(Regex),
    Never,
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let field = self.field.of(info);
        let value = field.unwrap_or_default();
        match &self.condition {
            Condition::Present => field.is_some(),
            Condition::Equal(expected) => field.is_some() && value.as_bytes() == expected,
            Condition::NotEqual(excluded) => value.as_bytes() != excluded,
            Condition::Matches(expression) => expression.is_match(value),
            Condition::Never => false,
        }
    }
}

impl Field {
    /// Finds the field that a path names, as containerd's `adaptSnapshot` does.
    fn at(path: &[Vec<u8>]) -> Self {
        match path[0].as_slice() {
            b"kind" => Self::Kind,
            b"name" => Self::Name,
            b"parent" => Self::Parent,
            b"labels" => String::from_utf8(path[1..].join(&b'.')).map_or(Self::Unknown, Self::Label),
            _ => Self::Unknown,
        }
    }

    fn of<'i>(&self, info: &'i Info) -> Option<&'i str> {
        match self {
            Self::Kind => Some(info.kind.as_str()),
            Self::Name => Some(&info.name),
            Self::Parent => Some(&info.parent),
            Self::Label(key) => info.labels.get(key).map(String::as_str),
            Self::Unknown => None,
        }
    }
}

/// What is wrong with the character, or the quoted text, that comes next.
type Problem = Cow<'static, str>;

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// How many the filters before and this one have, so far.
    expressions: usize,
}

impl<'t> Parser<'t> {
    fn filter(&mut self) -> Result<Vec<Selector>, ParseFilterError> {
        let mut selectors = vec![];
        while !self.text.is_empty() {
            selectors.push(self.selector()?);
            match self.peek() {
                None => break,
                Some(',') => self.at += 1,
                Some('\0') => return Err(self.malformed(self.at, "unexpected input: \u{fffd}")),
                Some(other) => return Err(self.malformed(self.at, format!("unexpected input: {other}"))),
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, ParseFilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        let condition = match self.peek() {
            None | Some(',') => Condition::Present,
            Some(_) => match self.operator()? {
                "==" => Condition::Equal(self.value(false)?),
                "!=" => Condition::NotEqual(self.value(false)?),
                _ => {
                    let expression = self.value(true)?;
                    self.expressions += 1;
                    if self.expressions > MAX_EXPRESSIONS {
                        return Err(ParseFilterError::TooManyExpressions);
                    }
                    compile(expression)?
                }
            },
        };
        Ok(Selector { field: Field::at(&path), condition })
    }

    fn field(&mut self) -> Result<Vec<u8>, ParseFilterError> {
        match self.part()? {
            Some('"' | '/' | '|') => self.quoted(false),
            Some(first) if is_field(first) => Ok(self.take_while(is_field).into()),
            _ => Err(self.malformed(self.at, "expected field or quoted")),
        }
    }

    fn operator(&mut self) -> Result<&'t str, ParseFilterError> {
        let next = self.part()?;
        let start = self.at;
        match self.take_while(is_operator) {
            operator @ ("==" | "!=" | "~=") => Ok(operator),
            "" => {
                if matches!(next, Some('"' | '/' | '|')) {
                    self.quoted_content().map_err(|problem| self.malformed(start, problem))?;
                }
                Err(self.malformed(start, r#"expected an operator ("=="|"!="|"~=")"#))
            }
            other => Err(self.malformed(start, format!("unsupported operator {other:?}"))),
        }
    }

    fn value(&mut self, is_expression: bool) -> Result<Vec<u8>, ParseFilterError> {
        match self.part()? {
            Some('"' | '/' | '|') => self.quoted(is_expression),
            None | Some('.' | ',' | '=' | '!' | '~') => {
                Err(self.malformed(self.at, "expected value or quoted"))
            }
            Some(first) => {
                // Only what follows the first character has to be graphic.
                let rest = &self.text[self.at + first.len_utf8()..];
                let length = first.len_utf8() + GRAPHIC.find(rest).map_or(0, |graphic| graphic.len());
                let value = &self.text[self.at..][..length];
                self.at += length;
                Ok(value.into())
            }
        }
    }

    /// Parses what is between quotes, of any kind for an expression.
    fn quoted(&mut self, is_expression: bool) -> Result<Vec<u8>, ParseFilterError> {
        let start = self.at;
        let content = self.quoted_content().map_err(|problem| self.malformed(start, problem))?;
        if !is_expression && !self.text[start..].starts_with('"') {
            return Err(self.malformed(start, "invalid quote encountered"));
        }
        content.ok_or_else(|| self.malformed(start, "unquoting failed: quote syntax error"))
    }

    /// Reads up to the closing quote; gives nothing if an escape is for no character.
    fn quoted_content(&mut self) -> Result<Option<Vec<u8>>, Problem> {
        let quote = self.next()?;
        let mut content = vec![];
        let mut valid = true;
        loop {
            match self.next()? {
                None | Some('\n') => return Err("quoted literal not terminated".into()),
                next if next == quote => return Ok(valid.then_some(content)),
                Some('\\') => valid &= self.escape(quote, &mut content)?,
                Some(other) => push(&mut content, other),
            }
        }
    }

    /// Reads what follows a backslash; tells whether that is a character.
    fn escape(&mut self, quote: Option<char>, content: &mut Vec<u8>) -> Result<bool, Problem> {
        match self.next()? {
            Some('a') => content.push(0x07),
            Some('b') => content.push(0x08),
            Some('f') => content.push(0x0c),
            Some('n') => content.push(b'\n'),
            Some('r') => content.push(b'\r'),
            Some('t') => content.push(b'\t'),
            Some('v') => content.push(0x0b),
            Some('\\') => content.push(b'\\'),
            Some('x') => content.push(self.digits(2, 16)? as u8),
            Some('u') => return Ok(push_code(content, self.digits(4, 16)?)),
            Some('U') => return Ok(push_code(content, self.digits(8, 16)?)),
            Some('0'..='7') => {
                self.at -= 1;
                let byte = u8::try_from(self.digits(3, 8)?);
                content.extend(byte.ok());
                return Ok(byte.is_ok());
            }
            Some(other) if Some(other) == quote => push(content, other),
            _ => return Err("illegal escape sequence".into()),
        }
        Ok(true)
    }

    fn digits(&mut self, count: u32, radix: u32) -> Result<u32, Problem> {
        (0..count).try_fold(0, |number, _| {
            let digit = self.next()?.and_then(|digit| digit.to_digit(radix));
            Ok(number * radix + digit.ok_or("illegal numeric escape sequence")?)
        })
    }

    /// Skips white space, then looks at the first character of a part.
    fn part(&mut self) -> Result<Option<char>, ParseFilterError> {
        self.take_while(char::is_whitespace);
        let start = self.at;
        let first = self.next().map_err(|problem| self.malformed(start, problem))?;
        self.at = start;
        Ok(first)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Result<Option<char>, Problem> {
        let next = self.peek();
        self.at += next.map_or(0, char::len_utf8);
        match next {
            Some('\0') => Err("unexpected null".into()),
            Some(char::REPLACEMENT_CHARACTER) => Err("rune error".into()),
            _ => Ok(next),
        }
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let length = rest.find(|character| !is_part(character)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn malformed(&self, byte: usize, problem: impl Into<Problem>) -> ParseFilterError {
        let (before, from) = self.text.split_at(byte);
        let mut after = from.chars();
        let mut excerpt = String::new();
        if let Some((cut, _)) = before.char_indices().rev().nth(EXCERPT_CHARS) {
            excerpt = format!("…{}", &before[cut..]);
        } else {
            excerpt.push_str(before);
        }
        if let Some(here) = after.next() {
            excerpt.push_str(&format!(" >|{here}|< "));
            excerpt.extend(after.by_ref().take(EXCERPT_CHARS));
            if after.next().is_some() {
                excerpt.push('…');
            }
        }
        ParseFilterError::Malformed { excerpt, byte, problem: problem.into() }
    }
}

fn is_field(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

fn is_operator(character: char) -> bool {
    matches!(character, '=' | '!' | '~')
}

fn push(content: &mut Vec<u8>, character: char) {
    content.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Adds the character of a code point, as Go's `strconv.Unquote` would: surrogates are replaced, and since its
/// characters are signed, numbers beyond 31 bits count as bytes.
fn push_code(content: &mut Vec<u8>, code: u32) -> bool {
    match code {
        0x8000_0000.. => content.push(code as u8),
        0x11_0000.. => return false,
        _ => push(content, char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
    true
}

/// Compiles an expression; one that is malformed matches nothing, as containerd's clients are used to.
fn compile(expression: Vec<u8>) -> Result<Condition, ParseFilterError> {
    if expression.len() > MAX_EXPRESSION_BYTES {
        return Err(ParseFilterError::LongExpression { bytes: expression.len() });
    }
    let Ok(expression) = String::from_utf8(expression) else {
        return Ok(Condition::Never);
    };
    let compiled = RegexBuilder::new(&expression)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build();
    match compiled {
        Ok(compiled) => Ok(Condition::Matches(compiled)),
        Err(regex::Error::CompiledTooBig(_)) => Err(ParseFilterError::LargeExpression),
        Err(_) => Ok(Condition::Never),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;
    use rstest::rstest;
    use serde::Deserialize;

    use super::*;
    use crate::snapshots::info::Kind;

    fn snapshot(kind: Kind, name: &str, parent: &str, labels: &[(&str, &str)]) -> Info {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let now = SystemTime::UNIX_EPOCH;
        Info { name: name.to_owned(), parent: parent.to_owned(), kind, labels, created: now, updated: now }
    }

    fn snapshots() -> [Info; 3] {
        let view = [("foo", "bar"), ("containerd.io/gc.root", ""), ("", "empty")];
        let committed = [("a.b", "c"), ("very complex label", "x,y é\n\"/|"), ("foo", "1")];
        [
            snapshot(Kind::Active, "default/1/key", "sha256:a", &[]),
            snapshot(Kind::View, "foo", "", &view),
            snapshot(Kind::Committed, "sha256:a", "", &committed),
        ]
    }

    fn parse(filters: &[&str]) -> Result<Filter, ParseFilterError> {
        parse_all(&filters.iter().map(|&filter| filter.to_owned()).collect::<Vec<_>>())
    }

    /// The indices of the snapshots that are listed.
    fn listed(filter: &Filter) -> String {
        let matching = snapshots().into_iter().zip("012".chars()).filter(|(info, _)| filter.matches(info));
        matching.map(|(_, index)| index).collect()
    }

    #[rstest]
    #[case::no_filter_lists_all(&[], "012")]
    #[case::the_empty_filter_lists_all(&["", "name==x"], "012")]
    #[case::several_filters_list_what_any_of_them_does(&["kind==view", "name==sha256:a"], "12")]
    #[case::all_selectors_of_a_filter_must_hold(&["parent==,kind==committed"], "")]
    #[case::an_empty_value_is_quoted(&[r#"parent=="",kind==committed"#], "2")]
    #[case::a_label_is_present(&["labels.foo"], "12")]
    #[case::a_label_may_be_present_and_empty(&[r#"labels."containerd.io/gc.root""#], "1")]
    #[case::the_parts_of_a_key_are_joined(&["labels.a.b==c"], "2")]
    #[case::an_empty_parent_is_present(&["parent"], "012")]
    #[case::an_absent_label_differs(&["labels.foo!=bar"], "02")]
    #[case::an_absent_label_is_matched_as_the_empty_text(&["labels.foo~=^$"], "0")]
    #[case::an_unknown_field_is_absent(&["size"], "")]
    #[case::an_unknown_field_differs(&["size!=1"], "012")]
    #[case::expressions_may_stand_between_slashes(&["name~=/^(foo|sha256:.)$/"], "12")]
    #[case::a_malformed_expression_matches_nothing(&["name~=*", "kind==view"], "1")]
    fn lists(#[case] filters: &[&str], #[case] expected: &str) {
        let filter = parse(filters);
        let listed = filter.as_ref().map(listed).unwrap_or_default();
        assert_eq!(listed, expected, "{filter:?}");
    }

    #[rstest]
    #[case::a_mistake_is_marked(
        "name==foo,$",
        "filters: parse error: [name==foo, >|$|< ]: expected field or quoted"
    )]
    #[case::a_missing_end_is_not(
        "name==\"foo\",",
        "filters: parse error: [name==\"foo\",]: expected field or quoted"
    )]
    #[case::a_character_is_shown_whole(
        "name é",
        "filters: parse error: [name  >|é|< ]: expected an operator (\"==\"|\"!=\"|\"~=\")"
    )]
    fn says_what_is_wrong(#[case] filter: &str, #[case] expected: &str) {
        assert_eq!(parse(&[filter]).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_message_shows_the_surroundings_of_a_mistake() {
        let filter = format!("name==foo,{}$,{}", "labels.foo,".repeat(20), "kind,".repeat(20));
        let message = parse(&[&filter]).unwrap_err().to_string();
        assert!(message.contains("labels.foo, >|$|< ,kind,") && message.len() < 250, "{message}");
    }

    #[rstest]
    #[case::a_mebibyte_of_text("name==".to_owned() + &"x".repeat(1 << 20), "filters of 1048582 bytes")]
    #[case::a_mebibyte_of_selectors("kind,".repeat(1 << 18), "filters of 1310720 bytes")]
    #[case::many_expressions("name~=x,".repeat(20) + "name", "more than 16 expressions")]
    #[case::a_long_expression("name~=".to_owned() + &"x".repeat(5000), "an expression of 5000 bytes")]
    #[case::a_large_expression("name~=/((x{100}){100}){100}/".to_owned(), "needs more than 1048576 bytes")]
    fn refuses(#[case] filter: String, #[case] expected: &str) {
        let message = parse(&[&filter]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }

    /// One filter of the table, and what containerd 2.4.2 makes of it.
    #[derive(Deserialize)]
    struct Row {
        #[serde(rename = "f")]
        filters: Vec<String>,
        /// Where the mistake is, and which.
        #[serde(rename = "e", default)]
        error: String,
        /// The snapshots that match.
        #[serde(rename = "m", default)]
        listed: String,
    }

    #[test]
    fn accepts_and_matches_what_containerd_does() {
        for line in include_str!("../../tests/filters.jsonl").lines() {
            let row: Row = serde_json::from_str(line).expect("the table is JSON");
            match parse_all(&row.filters) {
                Ok(filter) => {
                    assert_eq!((listed(&filter), ""), (row.listed, row.error.as_str()), "{line}");
                }
                Err(ParseFilterError::Malformed { byte, problem, .. }) => {
                    assert_eq!(format!("{byte} {problem}"), row.error, "{line}");
                }
                Err(other) => panic!("{line}: {other}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(texts in prop::collection::vec(r#"([a-z.,=!~"/| \\x0-9]|.){0,40}"#, 0..4)) {
            if let Ok(filter) = parse_all(&texts) {
                listed(&filter);
            }
        }

        #[test]
        fn what_is_quoted_is_taken_as_it_is(key in "[^\0\u{fffd}]{0,20}", value in "[^\0\u{fffd}]{0,20}") {
            let quoted = |text: &str| text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            let filter = format!(r#"labels."{}"=="{}""#, quoted(&key), quoted(&value));
            let filter = parse(&[&filter]).expect("it is well formed");
            prop_assert!(filter.matches(&snapshot(Kind::View, "", "", &[(&key, &value)])));
            let other = format!("{value}.");
            prop_assert!(!filter.matches(&snapshot(Kind::View, "", "", &[(&key, &other)])));
        }
    }
}
