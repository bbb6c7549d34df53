//! The runtime's command line, as far as it concerns us.
//!
//! Both dialects are read: runc's (Go's `flag`: `-root X`, `--root=X`, no clusters) and crun's (`argp`: `-b X`, `-bX`,
//! `-tb X`). Whatever is not understood is not ours: the runtime gets it and complains.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Global options that take a value; others are switches.
const GLOBAL: Options = Options {
    long: &["root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager"],
    short: &[],
};

/// Options of `create`, `run` and `restore` that take a value.
const CREATE: Options = Options {
    long: &[
        "bundle",
        "config",
        "console-socket",
        "pid-file",
        "pidfd-socket",
        "preserve-fds",
        "image-path",
        "work-path",
        "parent-path",
        "manage-cgroups-mode",
        "empty-ns",
        "lsm-profile",
        "lsm-mount-context",
    ],
    short: &[("b", "bundle"), ("f", "config")],
};

/// Options of `exec` that take a value.
const EXEC: Options = Options {
    long: &[
        "process",
        "console-socket",
        "cwd",
        "env",
        "user",
        "additional-gids",
        "pid-file",
        "pidfd-socket",
        "process-label",
        "apparmor",
        "cap",
        "preserve-fds",
        "cgroup",
    ],
    short: &[("p", "process"), ("e", "env"), ("u", "user"), ("g", "additional-gids"), ("c", "cap")],
};

/// Switches of one letter: `--detach`, `--tty`.
const SWITCHES: &[u8] = b"dt";

/// A runtime's command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// Whether `--log-format` is `json`.
    pub log_is_json: bool,
    /// What is asked for.
    pub subcommand: Subcommand,
}

/// What the runtime is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subcommand {
    /// `create`, `run` or `restore`.
    Create(Create),
    /// `exec --process`. Without `--process`, the runtime itself takes the process from the bundle's injected spec.
    Exec(Exec),
    /// Anything else.
    #[default]
    Other,
}

/// A container to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// `--bundle`; the working directory by default.
    pub bundle: PathBuf,
    /// crun's `--config`, in place of the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// The container's id.
    pub id: String,
}

/// A process to start in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// `--process`.
    pub process: PathBuf,
    /// The container's id.
    pub id: String,
}

/// Parses the arguments behind the program's name.
#[must_use]
pub fn parse(args: &[OsString]) -> CommandLine {
    let mut global = Scanner::new(&GLOBAL, args);
    let subcommand = global.next_word();
    let mut line = CommandLine {
        root: global.value("root"),
        log: global.value("log"),
        log_is_json: global.value("log-format") == Some("json".into()),
        subcommand: Subcommand::Other,
    };
    line.subcommand = match subcommand.and_then(OsStr::to_str) {
        Some("create" | "run" | "restore") => parse_create(global.rest),
        Some("exec") => parse_exec(global.rest),
        _ => None,
    }
    .unwrap_or_default();
    line
}

fn parse_create(args: &[OsString]) -> Option<Subcommand> {
    let mut scanner = Scanner::new(&CREATE, args);
    let id = scanner.next_word()?.to_str()?.to_owned();
    // runc accepts options behind the id, too.
    while scanner.next_word().is_some() {}
    Some(Subcommand::Create(Create {
        bundle: scanner.value("bundle").unwrap_or_else(|| ".".into()),
        config: scanner.value("config"),
        id,
    }))
}

fn parse_exec(args: &[OsString]) -> Option<Subcommand> {
    let mut scanner = Scanner::new(&EXEC, args);
    let id = scanner.next_word()?.to_str()?.to_owned();
    Some(Subcommand::Exec(Exec { process: scanner.value("process")?, id }))
}

struct Options {
    long: &'static [&'static str],
    short: &'static [(&'static str, &'static str)],
}

impl Options {
    fn long(&self, name: &[u8]) -> Option<&'static str> {
        self.long.iter().copied().find(|long| long.as_bytes() == name)
    }

    fn short(&self, letter: u8) -> Option<&'static str> {
        self.short.iter().find(|(short, _)| short.as_bytes() == [letter]).map(|(_, long)| *long)
    }
}

/// Walks over arguments, and puts options aside.
struct Scanner<'a> {
    options: &'a Options,
    rest: &'a [OsString],
    only_words: bool,
    found: Vec<(&'static str, &'a OsStr)>,
}

impl<'a> Scanner<'a> {
    fn new(options: &'a Options, rest: &'a [OsString]) -> Self {
        Self { options, rest, only_words: false, found: Vec::new() }
    }

    /// The next argument that is no option.
    fn next_word(&mut self) -> Option<&'a OsStr> {
        while let Some((first, rest)) = self.rest.split_first() {
            self.rest = rest;
            let bytes = first.as_bytes();
            if self.only_words || bytes == b"-" || !bytes.starts_with(b"-") {
                return Some(first);
            }
            if bytes == b"--" {
                self.only_words = true;
                continue;
            }
            match self.option(bytes) {
                Some((name, Some(value))) => self.found.push((name, OsStr::from_bytes(value))),
                Some((name, None)) => {
                    if let Some((value, rest)) = self.rest.split_first() {
                        self.rest = rest;
                        self.found.push((name, value));
                    }
                }
                None => (),
            }
        }
        None
    }

    /// The option that takes a value in `argument`, and the value if it is there as well.
    fn option(&self, argument: &'a [u8]) -> Option<(&'static str, Option<&'a [u8]>)> {
        let body = argument.strip_prefix(b"--").unwrap_or(&argument[1..]);
        let (name, value) = match body.iter().position(|&byte| byte == b'=') {
            Some(at) => (&body[..at], Some(&body[at + 1..])),
            None => (body, None),
        };
        if let Some(long) = self.options.long(name) {
            return Some((long, value));
        }
        if argument.starts_with(b"--") {
            return None;
        }
        // One letter, or a cluster of switches that ends with an option and its value.
        let at = body.iter().position(|letter| !SWITCHES.contains(letter))?;
        let long = self.options.short(body[at])?;
        let value = &body[at + 1..];
        let value = if at == 0 { value.strip_prefix(b"=").unwrap_or(value) } else { value };
        Some((long, (!value.is_empty()).then_some(value)))
    }

    /// The last value of an option.
    fn value(&self, name: &str) -> Option<PathBuf> {
        self.found.iter().rev().find(|(found, _)| *found == name).map(|(_, value)| PathBuf::from(value))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse_words(line: &str) -> CommandLine {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn create(bundle: &str, id: &str) -> Subcommand {
        Subcommand::Create(Create { bundle: bundle.into(), config: None, id: id.into() })
    }

    fn exec(process: &str, id: &str) -> Subcommand {
        Subcommand::Exec(Exec { process: process.into(), id: id.into() })
    }

    #[rstest]
    #[case::containerds_create(
        "--root /r --log /l --log-format json create --bundle /b --pid-file /b/p c",
        create("/b", "c")
    )]
    #[case::with_equals_signs(
        "--root=/r --log=/l --log-format=json create --bundle=/b --pid-file=/b/p c",
        create("/b", "c")
    )]
    #[case::short_options("create -b /b c", create("/b", "c"))]
    #[case::a_short_option_with_its_value("create -b/b c", create("/b", "c"))]
    #[case::a_short_option_with_an_equals_sign("create -b=/b c", create("/b", "c"))]
    #[case::one_dash_as_go_allows("-root /r create -bundle /b c", create("/b", "c"))]
    #[case::a_cluster("run -db /b c", create("/b", "c"))]
    #[case::a_switch_that_holds_an_options_letter("run -no-subreaper c", create(".", "c"))]
    #[case::switches("--systemd-cgroup --debug run --detach --no-pivot c", create(".", "c"))]
    #[case::no_bundle("create c", create(".", "c"))]
    #[case::a_bundle_named_create("create --bundle create c", create("create", "c"))]
    #[case::a_root_named_create("--root create run c", create(".", "c"))]
    #[case::a_container_named_exec("create exec", create(".", "exec"))]
    #[case::options_behind_the_id("create c --bundle /b", create("/b", "c"))]
    #[case::the_last_bundle_counts("create --bundle /a --bundle /b c", create("/b", "c"))]
    #[case::an_id_behind_two_dashes("create --bundle /b -- -c", create("/b", "-c"))]
    #[case::restore("restore --image-path /i --work-path /w --bundle /b c", create("/b", "c"))]
    #[case::containerds_exec(
        "--root /r exec --process /p --console-socket /s --detach --pid-file /f c",
        exec("/p", "c")
    )]
    #[case::exec_with_equals_sign("exec --process=/p c", exec("/p", "c"))]
    #[case::exec_with_short_option("exec -t -p /p c", exec("/p", "c"))]
    #[case::exec_without_a_process("exec -e A=1 c env", Subcommand::Other)]
    #[case::options_of_the_command_are_its_own("exec c ps --process x", Subcommand::Other)]
    #[case::create_without_an_id("create --bundle /b", Subcommand::Other)]
    #[case::a_missing_value("create c --bundle", create(".", "c"))]
    #[case::state("--root /r state create", Subcommand::Other)]
    #[case::delete("--root /r delete --force run", Subcommand::Other)]
    #[case::version("--version", Subcommand::Other)]
    #[case::nothing("", Subcommand::Other)]
    fn the_subcommand_is_found_by_its_position(#[case] line: &str, #[case] expected: Subcommand) {
        assert_eq!(parse_words(line).subcommand, expected);
    }

    #[rstest]
    #[case::apart("--root /r --log /l --log-format json state c")]
    #[case::with_equals_signs("--root=/r --log=/l --log-format=json state c")]
    #[case::one_dash("-root /r -log=/l -log-format json state c")]
    #[case::among_others(
        "--criu /c --root /r --rootless auto --log /l --debug --log-format json --systemd-cgroup state c"
    )]
    fn global_options_are_read(#[case] line: &str) {
        let line = parse_words(line);
        assert_eq!(line.root, Some("/r".into()));
        assert_eq!(line.log, Some("/l".into()));
        assert!(line.log_is_json);
    }

    #[test]
    fn a_global_option_behind_the_subcommand_is_not_global() {
        assert_eq!(parse_words("create --log /l c").log, None);
    }

    #[test]
    fn crun_may_name_another_config() {
        let Subcommand::Create(create) = parse_words("run -f /x/spec.json -b /b c").subcommand else {
            panic!()
        };
        assert_eq!((create.bundle, create.config), ("/b".into(), Some("/x/spec.json".into())));
    }
}
