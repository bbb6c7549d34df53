//! The containerd of this node: its version, its environment, and what it makes of its config.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::nix;

/// The directory that stands first on containerd's PATH; it holds only our `runc`.
pub const RUNTIME_DIRECTORY: &str = "/usr/local/libexec/nixenv/runtime";
/// What systemd gives a service that sets no PATH: `DEFAULT_PATH_NORMAL`, with `/sbin` and `/bin`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// containerd's config where its command line names none.
pub const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";

/// The containerd of this node.
pub struct Containerd {
    /// Its version, as it prints it.
    pub version: String,
    /// The environment that it was started with; none when it does not run.
    pub environment: Option<Vec<String>>,
    /// Its config.
    pub config: PathBuf,
}

impl Containerd {
    /// Finds the containerd on PATH, and the one behind the node's socket.
    pub fn find() -> Result<Self> {
        let printed = nix::output("containerd", ["--version"])
            .context("containerd is needed; apt install containerd")?;
        let version = parse_version(&printed).with_context(|| format!("'{printed}' names no version"))?;
        let process = process()?;
        let fields = |name: &str| -> Result<Option<Vec<String>>> {
            let Some(process) = &process else { return Ok(None) };
            let bytes = fs::read(process.join(name))
                .context("cannot look at containerd's process; run this as root, on its node")?;
            Ok(Some(split(&bytes)))
        };
        let arguments = fields("cmdline")?.unwrap_or_default();
        let config = config_argument(&arguments).unwrap_or(DEFAULT_CONFIG).into();
        Ok(Self { version: version.to_owned(), environment: fields("environ")?, config })
    }

    /// The first number of its version.
    pub fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
    }

    /// The first two numbers of its version.
    pub fn release(&self) -> (u32, u32) {
        let minor = self.version.split('.').nth(1).and_then(|minor| minor.parse().ok());
        (self.major(), minor.unwrap_or_default())
    }

    /// The config that it has without a file.
    pub fn default_config() -> Result<String> {
        nix::output("containerd", ["config", "default"])
    }

    /// What is between its PATH's colons, without our directory.
    fn path_entries(&self) -> Vec<&str> {
        let path = self.environment.as_deref().and_then(|environment| variable(environment, "PATH"));
        path.unwrap_or(DEFAULT_PATH).split(':').filter(|entry| *entry != RUNTIME_DIRECTORY).collect()
    }

    /// The PATH that it shall have.
    pub fn wanted_path(&self) -> String {
        [&[RUNTIME_DIRECTORY], &self.path_entries()[..]].concat().join(":")
    }

    /// Whether it runs and starts containers through us.
    pub fn runs_ours(&self) -> bool {
        let path = self.environment.as_deref().and_then(|environment| variable(environment, "PATH"));
        path.is_some_and(|path| path.split(':').next() == Some(RUNTIME_DIRECTORY))
    }

    /// The OCI runtime that it starts containers with when nixenv is not there.
    pub fn runtime(&self) -> Result<PathBuf> {
        let directories = self.path_entries();
        let mut candidates = ["runc", "crun"]
            .into_iter()
            .flat_map(|name| directories.iter().map(move |directory| Path::new(directory).join(name)));
        match candidates.find(|candidate| is_program(candidate) && !is_ours(candidate)) {
            Some(runtime) => Ok(runtime),
            None => bail!("no runc or crun in {}; apt install runc", directories.join(", ")),
        }
    }
}

/// What containerd makes of its config and the files that it imports.
pub fn merged_config(config: &Path) -> Result<String> {
    let config = config.to_str().context("the config's path must be UTF-8")?;
    nix::output("containerd", ["--config", config, "config", "dump"])
}

/// containerd's socket.
pub fn socket() -> PathBuf {
    std::env::var_os("CONTAINERD_ADDRESS").map_or("/run/containerd/containerd.sock".into(), PathBuf::from)
}

/// The directory in `/proc` of the containerd behind the node's socket.
fn process() -> Result<Option<PathBuf>> {
    let Ok(stream) = UnixStream::connect(socket()) else { return Ok(None) };
    let pid = rustix::net::sockopt::socket_peercred(&stream)?.pid;
    Ok(Some(format!("/proc/{}", pid.as_raw_nonzero()).into()))
}

/// What is between the zero bytes of an environment or a command line.
fn split(bytes: &[u8]) -> Vec<String> {
    let fields = bytes.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    fields.map(|field| String::from_utf8_lossy(field).into_owned()).collect()
}

/// The config that a command line of containerd's names.
fn config_argument(arguments: &[String]) -> Option<&str> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        match name.split_once('=') {
            _ if name == argument => {}
            Some(("config" | "c", config)) => return Some(config),
            None if ["config", "c"].contains(&name) => return arguments.next().map(String::as_str),
            _ => {}
        }
    }
    None
}

/// The value of a variable in an environment.
pub fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

/// `containerd github.com/containerd/containerd v1.7.2 0cae528`: Debian leaves the `v` out.
fn parse_version(printed: &str) -> Option<&str> {
    printed
        .split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether a file can be executed.
pub fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether a runtime is a name of nixenv-runc.
fn is_ours(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|real| real.file_name().is_some_and(|name| name == "nixenv-runc"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn containerd(version: &str, environment: Option<Vec<String>>) -> Containerd {
        Containerd { version: version.to_owned(), environment, config: DEFAULT_CONFIG.into() }
    }

    #[rstest]
    #[case::none("containerd", None)]
    #[case::a_word_of_its_own("containerd --config /c.toml", Some("/c.toml"))]
    #[case::behind_an_equals_sign("containerd -l debug --config=/c.toml", Some("/c.toml"))]
    #[case::short("containerd -c /c.toml", Some("/c.toml"))]
    #[case::a_command("containerd config dump", None)]
    fn the_config_is_what_the_command_line_names(#[case] line: &str, #[case] expected: Option<&str>) {
        let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
        assert_eq!(config_argument(&arguments), expected);
    }

    #[rstest]
    #[case::debian(
        "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
        "1.6.20~ds1",
        1
    )]
    #[case::upstream("containerd github.com/containerd/containerd/v2 v2.4.2 1c4457e", "2.4.2", 2)]
    #[case::docker("containerd containerd.io 1.7.24 88bf19b2105c", "1.7.24", 1)]
    #[case::built_from_modules(
        "containerd github.com/containerd/containerd/v2 2.4.2+unknown ",
        "2.4.2+unknown",
        2
    )]
    fn versions(#[case] printed: &str, #[case] version: &str, #[case] major: u32) {
        let containerd = containerd(parse_version(printed).unwrap(), None);
        assert_eq!((containerd.version.as_str(), containerd.major()), (version, major));
    }

    #[test]
    fn environments_are_split_at_zero_bytes() {
        let environment = split(b"PATH=/a:/b\0EMPTY=\0PATHS=/c\0");
        assert_eq!(variable(&environment, "PATH"), Some("/a:/b"));
        assert_eq!(variable(&environment, "EMPTY"), Some(""));
        assert_eq!(variable(&environment, "HOME"), None);
    }

    #[rstest]
    #[case::before_the_installation("/a:/b", false)]
    #[case::after_it("/usr/local/libexec/nixenv/runtime:/a:/b", true)]
    #[case::behind_another_directory("/a:/usr/local/libexec/nixenv/runtime:/b", false)]
    fn the_wanted_path_has_our_directory_first_and_once(#[case] path: &str, #[case] ours: bool) {
        let containerd = containerd("", Some(vec![format!("PATH={path}")]));
        assert_eq!(containerd.wanted_path(), format!("{RUNTIME_DIRECTORY}:/a:/b"));
        assert_eq!(containerd.runs_ours(), ours);
    }
}
