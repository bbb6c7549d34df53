//! Which config an OCI spec's annotations name: nixenv's public interface.
//!
//! | annotation | value |
//! | --- | --- |
//! | `nixenv` | the config: a path, or `@name` for one in `/etc/nixenv/configs/` |
//! | `nixenv/<container>` | the same, for one container of a pod |
//! | `nixenv.attr` | attribute of the config's value to use |
//! | `nixenv.packages` | `git,jq`: packages without a file |
//! | `nixenv.shell-hook` | `run` (default) or `skip` |
//! | `nixenv.override` | names of variables that win over what the container sets |
//! | `nixenv.store` | `closure` (default) or `shared` |

use serde_json::{Map, Value};

/// What a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The config.
    pub config: ConfigReference,
    /// Attribute of the config's value to use.
    pub attr: Option<String>,
    /// What becomes of the environment's `shellHook`.
    pub shell_hook: ShellHookMode,
    /// Names of variables that win over what the container sets.
    pub overrides: Vec<String>,
    /// What the container sees of the store.
    pub store: StoreMode,
}

/// How a config is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigReference {
    /// By its path.
    Path(String),
    /// By a name that the node's owner gave it.
    Named(String),
    /// Not at all: packages of `<nixpkgs>`.
    Packages(Vec<String>),
}

/// What becomes of an environment's `shellHook`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShellHookMode {
    /// It runs once, before the container's process.
    #[default]
    Run,
    /// It does not run.
    Skip,
}

/// What a container sees of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreMode {
    /// Its environment's closure.
    #[default]
    Closure,
    /// The node's whole store.
    Shared,
}

/// Annotations that ask for something impossible.
#[derive(Debug, thiserror::Error)]
pub enum ParseReferenceError {
    /// An annotation of ours that does not exist.
    #[error(
        "there is no annotation '{0}'; known are nixenv, nixenv/<container>, nixenv.attr, nixenv.packages, \
         nixenv.shell-hook, nixenv.override and nixenv.store"
    )]
    Unknown(String),
    /// A value that does not fit.
    #[error("the annotation '{name}' cannot be '{value}'; expected is {expected}")]
    Value {
        /// The annotation.
        name: String,
        /// Its value.
        value: String,
        /// What fits.
        expected: &'static str,
    },
    /// Options without a config.
    #[error(
        "the annotation '{0}' needs a config; add the annotation nixenv=config.nix or nixenv.packages=NAME"
    )]
    Alone(String),
    /// Two configs.
    #[error(
        "the annotations 'nixenv' and 'nixenv.packages' exclude each other; move the packages into the config"
    )]
    Both,
}

impl ConfigReference {
    /// Parses the value of the annotation `nixenv`.
    ///
    /// # Errors
    /// When it is empty or not a name after `@`.
    pub fn parse(value: &str) -> Result<Self, ParseReferenceError> {
        let wrong =
            |expected| ParseReferenceError::Value { name: "nixenv".into(), value: value.into(), expected };
        match value.strip_prefix('@') {
            Some(name) if name.starts_with('.') || !name.bytes().all(is_name) || name.is_empty() => {
                Err(wrong("a name of letters, digits, '.', '_' and '-' after '@'"))
            }
            Some(name) => Ok(Self::Named(name.to_owned())),
            None if value.is_empty() || value.contains('\0') => {
                Err(wrong("the path of a Nix file, or @NAME"))
            }
            None => Ok(Self::Path(value.to_owned())),
        }
    }

    /// Parses the value of the annotation `nixenv.packages`.
    ///
    /// # Errors
    /// When there is none, or one is not an attribute path.
    pub fn parse_packages(value: &str) -> Result<Self, ParseReferenceError> {
        let packages: Vec<String> =
            value.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if packages.is_empty() || !packages.iter().all(|package| is_attribute_path(package)) {
            return Err(ParseReferenceError::Value {
                name: "nixenv.packages".into(),
                value: value.into(),
                expected: "names of packages with commas between: git,jq",
            });
        }
        Ok(Self::Packages(packages))
    }
}

impl Request {
    /// A request for `config` with every option at its default.
    #[must_use]
    pub fn new(config: ConfigReference) -> Self {
        Self {
            config,
            attr: None,
            shell_hook: ShellHookMode::default(),
            overrides: Vec::new(),
            store: StoreMode::default(),
        }
    }
}

impl std::fmt::Display for ConfigReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Named(name) => write!(f, "@{name}"),
            Self::Packages(packages) => write!(f, "packages {}", packages.join(",")),
        }
    }
}

/// Finds what a container asks for; `None` when it asks for nothing, or is a pod's sandbox.
///
/// # Errors
/// When an annotation of ours is unknown, contradicts another, or has a value that does not fit.
pub fn parse_annotations(annotations: &Map<String, Value>) -> Result<Option<Request>, ParseReferenceError> {
    let text = |name: &str| annotations.get(name).and_then(Value::as_str);
    if text("io.kubernetes.cri.container-type") == Some("sandbox") {
        return Ok(None);
    }
    let mut options = Vec::new();
    for name in annotations.keys() {
        match name.strip_prefix("nixenv.") {
            Some("attr" | "packages" | "shell-hook" | "override" | "store") => options.push(name),
            Some(_) => return Err(ParseReferenceError::Unknown(name.clone())),
            None => (),
        }
    }
    let container = text("io.kubernetes.cri.container-name").and_then(|name| text(&format!("nixenv/{name}")));
    let config = match (container.or_else(|| text("nixenv")), text("nixenv.packages")) {
        (Some(value), None) => ConfigReference::parse(value)?,
        (None, Some(value)) => ConfigReference::parse_packages(value)?,
        (Some(_), Some(_)) => return Err(ParseReferenceError::Both),
        // In a pod the options may be meant for another container.
        (None, None) => match options.first() {
            Some(name) if text("io.kubernetes.cri.container-name").is_none() => {
                return Err(ParseReferenceError::Alone((*name).clone()));
            }
            _ => return Ok(None),
        },
    };
    let mut request = Request::new(config);
    request.attr = text("nixenv.attr").map(parse_attr).transpose()?;
    request.overrides = text("nixenv.override").map(parse_overrides).transpose()?.unwrap_or_default();
    request.shell_hook = match text("nixenv.shell-hook") {
        None | Some("run") => ShellHookMode::Run,
        Some("skip") => ShellHookMode::Skip,
        Some(value) => return Err(wrong("nixenv.shell-hook", value, "run or skip")),
    };
    request.store = match text("nixenv.store") {
        None | Some("closure") => StoreMode::Closure,
        Some("shared") => StoreMode::Shared,
        Some(value) => return Err(wrong("nixenv.store", value, "closure or shared")),
    };
    Ok(Some(request))
}

/// Parses the value of the annotation `nixenv.attr`.
///
/// # Errors
/// When it is not an attribute path.
pub fn parse_attr(value: &str) -> Result<String, ParseReferenceError> {
    if is_attribute_path(value) {
        Ok(value.to_owned())
    } else {
        Err(wrong("nixenv.attr", value, "an attribute path such as devShells.default"))
    }
}

fn parse_overrides(value: &str) -> Result<Vec<String>, ParseReferenceError> {
    let names: Vec<String> =
        value.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.iter().all(|name| is_variable_name(name)) {
        Ok(names)
    } else {
        Err(wrong("nixenv.override", value, "names of variables with commas between"))
    }
}

/// Whether `name` may be a variable's name: `[A-Za-z_][A-Za-z0-9_]*` (POSIX, Base Definitions 8.1).
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_attribute_path(path: &str) -> bool {
    path.split('.').all(|name| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit() || first == '-' || first == '\'')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-'".contains(&byte))
    })
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn wrong(name: &str, value: &str, expected: &'static str) -> ParseReferenceError {
    ParseReferenceError::Value { name: name.into(), value: value.into(), expected }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn parse(annotations: Value) -> Result<Option<Request>, ParseReferenceError> {
        parse_annotations(annotations.as_object().unwrap())
    }

    #[rstest]
    #[case::a_path(json!({"nixenv": "config.nix"}), ConfigReference::Path("config.nix".into()))]
    #[case::a_name(json!({"nixenv": "@python-3.11"}), ConfigReference::Named("python-3.11".into()))]
    #[case::packages(json!({"nixenv.packages": "git, python3Packages.numpy"}),
        ConfigReference::Packages(vec!["git".into(), "python3Packages.numpy".into()]))]
    #[case::a_container_of_a_pod(
        json!({"nixenv": "all.nix", "nixenv/web": "web.nix", "io.kubernetes.cri.container-name": "web"}),
        ConfigReference::Path("web.nix".into()))]
    #[case::another_container_of_the_pod(
        json!({"nixenv": "all.nix", "nixenv/web": "web.nix", "io.kubernetes.cri.container-name": "db"}),
        ConfigReference::Path("all.nix".into()))]
    fn names_a_config(#[case] annotations: Value, #[case] expected: ConfigReference) {
        assert_eq!(parse(annotations).unwrap().unwrap().config, expected);
    }

    #[rstest]
    #[case::nothing(json!({}))]
    #[case::others(json!({"nixenvironment": "x", "nerdctl/name": "nixenv"}))]
    #[case::a_sandbox(json!({"nixenv": "config.nix", "io.kubernetes.cri.container-type": "sandbox"}))]
    #[case::another_container_of_the_pod(
        json!({"nixenv/web": "web.nix", "nixenv.attr": "a", "io.kubernetes.cri.container-name": "db"}))]
    fn asks_for_nothing(#[case] annotations: Value) {
        assert_eq!(parse(annotations).unwrap(), None);
    }

    #[rstest]
    #[case::unknown(json!({"nixenv": "a", "nixenv.atr": "x"}), "there is no annotation 'nixenv.atr'")]
    #[case::empty(json!({"nixenv": ""}), "cannot be ''")]
    #[case::a_name_with_a_slash(json!({"nixenv": "@../x"}), "a name of letters")]
    #[case::alone(json!({"nixenv.attr": "x"}), "needs a config")]
    #[case::both(json!({"nixenv": "x", "nixenv.packages": "y"}), "exclude each other")]
    #[case::nix_code_as_package(json!({"nixenv.packages": "git; x"}), "names of packages")]
    #[case::nix_code_as_attr(json!({"nixenv": "x", "nixenv.attr": "a or b"}), "an attribute path")]
    #[case::mode(json!({"nixenv": "x", "nixenv.store": "all"}), "closure or shared")]
    #[case::hook(json!({"nixenv": "x", "nixenv.shell-hook": "no"}), "run or skip")]
    #[case::overrides(json!({"nixenv": "x", "nixenv.override": "A,B=C"}), "names of variables")]
    fn is_refused(#[case] annotations: Value, #[case] expected: &str) {
        let error = parse(annotations).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
