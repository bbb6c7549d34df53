//! What of a build environment is a container's.
//!
//! A build environment is made for a builder: most of its variables are the builder's own. What is left is what the
//! config set, and what the set-up hooks of its packages did.

use std::collections::{BTreeMap, BTreeSet};

use environment::reference::is_variable_name;
use environment::store_path::{STORE_DIR, StorePath};
use serde::Deserialize;

/// Variables that make the dynamic linker load code into every process; refused unless the node's settings allow them.
const RESTRICTED: [&str; 3] = ["LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD"];
/// The kernel takes no longer `NAME=value` (`MAX_ARG_STRLEN`, 32 pages), and its end.
const MAX_VARIABLE_BYTES: usize = 128 * 1024 - 2;
/// Of all variables together; the kernel takes arguments and environment up to a quarter of the stack limit (8 MiB).
const MAX_TOTAL_BYTES: usize = 1 << 20;

/// Set by Nix' builder, by bash, or by `nix print-dev-env` itself.
const OF_BUILDER: &[&str] = &[
    "BASHOPTS",
    "EUID",
    "HOME",
    "HOSTNAME",
    "IN_NIX_SHELL",
    "NIX_ATTRS_JSON_FILE",
    "NIX_ATTRS_SH_FILE",
    "NIX_BUILD_CORES",
    "NIX_BUILD_TOP",
    "NIX_ENFORCE_PURITY",
    "NIX_LOG_FD",
    "NIX_REMOTE",
    "NIX_STORE",
    "OLDPWD",
    "PPID",
    "PWD",
    "SHELLOPTS",
    "SHLVL",
    "TEMP",
    "TEMPDIR",
    "TERM",
    "TMP",
    "TMPDIR",
    "UID",
    "_",
    "dontAddDisableDepTrack",
];
/// Attributes of a derivation that direct its build.
const OF_DERIVATION: &[&str] = &[
    "CONFIG_SHELL",
    "HOST_PATH",
    "__contentAddressed",
    "__ignoreNulls",
    "__impure",
    "__structuredAttrs",
    "allowSubstitutes",
    "args",
    "buildCommand",
    "buildCommandPath",
    "buildInputs",
    "buildPhase",
    "builder",
    "checkInputs",
    "cmakeFlags",
    "configureFlags",
    "configurePhase",
    "depsBuildBuild",
    "depsBuildBuildPropagated",
    "depsBuildTarget",
    "depsBuildTargetPropagated",
    "depsHostHost",
    "depsHostHostPropagated",
    "depsTargetTarget",
    "depsTargetTargetPropagated",
    "doCheck",
    "doInstallCheck",
    "enableParallelBuilding",
    "enableParallelChecking",
    "enableParallelInstalling",
    "installPhase",
    "mesonFlags",
    "name",
    "nativeBuildInputs",
    "outputs",
    "passAsFile",
    "patches",
    "phases",
    "preferLocalBuild",
    "propagatedBuildInputs",
    "propagatedNativeBuildInputs",
    "shell",
    "shellHook",
    "stdenv",
    "strictDeps",
    "system",
    "unpackPhase",
    "userHook",
];
/// Noise with this value only: a config may set another.
const WITH_VALUE: &[(&str, &str)] = &[
    ("DETERMINISTIC_BUILD", "1"),
    ("NIX_SSL_CERT_FILE", "/no-cert-file.crt"),
    ("PYTHONHASHSEED", "0"),
    ("SSL_CERT_FILE", "/no-cert-file.crt"),
];
/// Flags for compilers and linkers; without the variables that begin as in [`ROLES`] the wrappers ignore them.
const FLAGS: &[&str] = &["NIX_CFLAGS_COMPILE", "NIX_LDFLAGS", "PKG_CONFIG_PATH"];
const ROLES: &[&str] =
    &["NIX_BINTOOLS_WRAPPER_TARGET_", "NIX_CC_WRAPPER_TARGET_", "NIX_PKG_CONFIG_WRAPPER_TARGET_"];
/// Lists of directories; their empty elements would mean the working directory.
const LISTS: &[&str] = &["PATH", "XDG_DATA_DIRS"];

/// A build environment: what `nix print-dev-env --json` prints.
#[derive(Debug, Deserialize)]
pub struct BuildEnvironment {
    variables: BTreeMap<String, Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    r#type: String,
    /// Text, or a list or table for arrays, which are never exported.
    #[serde(default)]
    value: serde_json::Value,
}

/// What a container gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The variables.
    pub variables: BTreeMap<String, String>,
    /// The text of `shellHook`, if there is any.
    pub shell_hook: Option<String>,
    /// The shell that ran the set-up hooks: the derivation's builder. (`BASH` depends on the build user's account.)
    pub shell: Option<String>,
}

/// Variables that a container cannot get.
#[derive(Debug, thiserror::Error)]
pub enum VariablesError {
    /// Nix printed something else.
    #[error("cannot read the variables that Nix printed")]
    Parse(#[source] serde_json::Error),
    /// It would change every program of the container.
    #[error(
        "the config sets {name}, which is refused: it changes every program in the container; the node's owner can allow it with variables.allow = [\"{name}\"] in /etc/nixenv/config.toml"
    )]
    Restricted {
        /// Which.
        name: String,
    },
    /// It is no variable.
    #[error(
        "the config sets '{name}', which is not a name of a variable, or its value contains a NUL character"
    )]
    Malformed {
        /// Its name.
        name: String,
    },
    /// The kernel would refuse it.
    #[error("the config sets {name} to {bytes} bytes; a variable can have {MAX_VARIABLE_BYTES}")]
    TooLong {
        /// Which.
        name: String,
        /// Its length with its name.
        bytes: usize,
    },
    /// The kernel would refuse them.
    #[error("the config's variables have {bytes} bytes; together they can have {MAX_TOTAL_BYTES}")]
    TooMany {
        /// Their length.
        bytes: usize,
    },
}

impl BuildEnvironment {
    /// Reads what Nix printed.
    ///
    /// # Errors
    /// When it is not what is expected.
    pub fn parse(json: &[u8]) -> Result<Self, VariablesError> {
        serde_json::from_slice(json).map_err(VariablesError::Parse)
    }

    /// The exported variables, as an environment of the same kind is compared with: the paths of its own outputs,
    /// which differ between any two, are the same in all.
    pub fn normalised(&self) -> BTreeMap<String, String> {
        self.exported().map(|(name, value)| (name.to_owned(), self.without_outputs(value))).collect()
    }

    /// What a container gets: what is not noise. `baseline` is the [`Self::normalised`] environment that is empty.
    ///
    /// # Errors
    /// When a variable is refused.
    pub fn extract(
        &self,
        baseline: &BTreeMap<String, String>,
        allow: &[String],
    ) -> Result<Extracted, VariablesError> {
        let outputs: BTreeSet<&str> = self.output_names().collect();
        let of_build = |name: &str| {
            OF_BUILDER.contains(&name) || OF_DERIVATION.contains(&name) || outputs.contains(name)
        };
        let own = |name: &str, value: &str| {
            LISTS[0] == name || baseline.get(name).is_none_or(|common| *common != self.without_outputs(value))
        };
        let flags = self.exported().any(|(name, value)| FLAGS.contains(&name) && own(name, value));
        let mut variables = BTreeMap::new();
        for (name, value) in self.exported() {
            let role = flags && ROLES.iter().any(|prefix| name.starts_with(prefix));
            if of_build(name) || WITH_VALUE.contains(&(name, value)) || !(own(name, value) || role) {
                continue;
            }
            check(name, value, allow)?;
            let value = if LISTS.contains(&name) { existing_elements(value) } else { value.to_owned() };
            variables.insert(name.to_owned(), value);
        }
        let bytes = variables.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if bytes > MAX_TOTAL_BYTES {
            return Err(VariablesError::TooMany { bytes });
        }
        let shell_hook = self.text("shellHook").filter(|hook| !hook.trim().is_empty()).map(str::to_owned);
        Ok(Extracted { variables, shell_hook, shell: self.text("builder").map(str::to_owned) })
    }

    fn exported(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter(|(_, variable)| variable.r#type == "exported")
            .filter_map(|(name, variable)| Some((name.as_str(), variable.value.as_str()?)))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.value.as_str()
    }

    fn output_names(&self) -> impl Iterator<Item = &str> {
        self.text("outputs").unwrap_or("out").split_ascii_whitespace()
    }

    fn without_outputs(&self, value: &str) -> String {
        self.output_names()
            .filter_map(|name| self.text(name).filter(|path| path.starts_with(STORE_DIR)))
            .fold(value.to_owned(), |value, path| value.replace(path, "/nix/store/output"))
    }
}

fn check(name: &str, value: &str, allow: &[String]) -> Result<(), VariablesError> {
    if !is_variable_name(name) || value.contains('\0') {
        return Err(VariablesError::Malformed { name: name.to_owned() });
    }
    if RESTRICTED.contains(&name) && !allow.iter().any(|allowed| allowed == name) {
        return Err(VariablesError::Restricted { name: name.to_owned() });
    }
    let bytes = name.len() + value.len();
    if bytes > MAX_VARIABLE_BYTES {
        return Err(VariablesError::TooLong { name: name.to_owned(), bytes });
    }
    Ok(())
}

/// A list of directories without the empty ones, and those that Nix' builder names for nothing to be found there.
fn existing_elements(list: &str) -> String {
    let elements: Vec<&str> = list
        .split(':')
        .filter(|element| !matches!(*element, "" | "/path-not-set" | "/homeless-shelter"))
        .collect();
    elements.join(":")
}

/// The variables that name a store path outside of the closure, with the first such path.
pub fn outside_of_closure<'a>(
    variables: &'a BTreeMap<String, String>,
    closure: &'a BTreeSet<&str>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    variables.iter().filter_map(|(name, value)| {
        store_hashes(value).find(|hash| !closure.contains(hash)).map(|hash| (name.as_str(), hash))
    })
}

/// The part of a store path that identifies it.
pub fn store_hash(path: &StorePath) -> &str {
    &path.base_name()[..32]
}

fn store_hashes(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("/nix/store/").filter_map(|(index, prefix)| {
        let hash = text.get(index + prefix.len()..index + prefix.len() + 32)?;
        format!("/nix/store/{hash}-x").parse::<StorePath>().is_ok().then_some(hash)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const OUT: &str = "/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-x-env";

    fn environment(exported: &[(&str, &str)]) -> BuildEnvironment {
        let variables = exported.iter().chain(&[("out", OUT), ("outputs", "out")]).map(|(name, value)| {
            let variable = Variable { r#type: "exported".to_owned(), value: (*value).into() };
            ((*name).to_owned(), variable)
        });
        BuildEnvironment { variables: variables.collect() }
    }

    fn extract(
        environment: &BuildEnvironment,
        baseline: &[(&str, &str)],
        allow: &[&str],
    ) -> Result<Extracted, VariablesError> {
        let baseline =
            baseline.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        environment.extract(&baseline, &allow.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[rstest]
    #[case::what_a_config_sets_passes(&[("A", "spaces, \"quotes\"\nand ünïcode")], &[], &["A"])]
    #[case::what_a_builder_needs_does_not(
        &[("HOME", "/homeless-shelter"), ("TMPDIR", "/build"), ("PWD", "/build"), ("SHLVL", "1"), ("_", "/x")],
        &[], &[]
    )]
    #[case::what_directs_a_build_does_not(&[("buildInputs", ""), ("name", "x"), ("shellHook", "")], &[], &[])]
    #[case::outputs_do_not(&[], &[], &[])]
    #[case::what_an_empty_environment_has_does_not(&[("CC", "gcc")], &[("CC", "gcc")], &[])]
    #[case::with_another_value_it_does(&[("CC", "clang")], &[("CC", "gcc")], &["CC"])]
    #[case::path_always_does(&[("PATH", "/nix/store/x/bin")], &[("PATH", "/nix/store/x/bin")], &["PATH"])]
    #[case::own_outputs_make_no_difference(
        &[("NIX_LDFLAGS", "-rpath /nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-x-env/lib")],
        &[("NIX_LDFLAGS", "-rpath /nix/store/output/lib")], &[]
    )]
    #[case::a_certificate_file_that_is_none_does_not(&[("SSL_CERT_FILE", "/no-cert-file.crt")], &[], &[])]
    #[case::a_certificate_file_does(&[("SSL_CERT_FILE", "/etc/ssl/x")], &[], &["SSL_CERT_FILE"])]
    #[case::compilers_know_what_flags_are_for(
        &[("NIX_CFLAGS_COMPILE", "-isystem x"), ("NIX_CC_WRAPPER_TARGET_HOST_x86_64", "1")],
        &[("NIX_CFLAGS_COMPILE", ""), ("NIX_CC_WRAPPER_TARGET_HOST_x86_64", "1")],
        &["NIX_CC_WRAPPER_TARGET_HOST_x86_64", "NIX_CFLAGS_COMPILE"]
    )]
    #[case::without_flags_they_need_not(
        &[("NIX_CC_WRAPPER_TARGET_HOST_x86_64", "1")], &[("NIX_CC_WRAPPER_TARGET_HOST_x86_64", "1")], &[]
    )]
    fn noise(
        #[case] exported: &[(&str, &str)],
        #[case] baseline: &[(&str, &str)],
        #[case] expected: &[&str],
    ) {
        let extracted = extract(&environment(exported), baseline, &[]).unwrap();
        assert_eq!(extracted.variables.keys().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_environment_without_anything_is_empty_beside_its_own_baseline() {
        let environment = environment(&[("CC", "gcc"), ("NIX_LDFLAGS", OUT), ("XDG_DATA_DIRS", "/x")]);
        let baseline = environment.normalised();
        assert_eq!(environment.extract(&baseline, &[]).unwrap().variables, BTreeMap::new());
    }

    #[rstest]
    #[case::is_refused("LD_PRELOAD", &[], false)]
    #[case::is_refused_though_another_is_allowed("LD_AUDIT", &["LD_PRELOAD"], false)]
    #[case::is_allowed_by_the_node("LD_LIBRARY_PATH", &["LD_LIBRARY_PATH"], true)]
    fn a_variable_of_the_dynamic_linker(#[case] name: &str, #[case] allow: &[&str], #[case] passes: bool) {
        let result = extract(&environment(&[(name, "/x.so")]), &[], allow);
        assert_eq!(result.is_ok(), passes);
    }

    #[rstest]
    #[case::a_name_with_an_end_of_line("A\nB", "x")]
    #[case::a_name_with_an_equals_sign("A=B", "x")]
    #[case::a_value_with_nul("A", "x\0y")]
    fn a_malformed_variable_is_refused(#[case] name: &str, #[case] value: &str) {
        let result = extract(&environment(&[(name, value)]), &[], &[]);
        assert!(matches!(result, Err(VariablesError::Malformed { .. })));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        let value = "x".repeat(MAX_VARIABLE_BYTES);
        let result = extract(&environment(&[("A", &value)]), &[], &[]);
        assert!(matches!(result, Err(VariablesError::TooLong { .. })));
        assert!(extract(&environment(&[("A", &value[1..])]), &[], &[]).is_ok());
        let names: Vec<String> = (0..10).map(|index| format!("A{index}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), &value[2..])).collect();
        assert!(matches!(extract(&environment(&many), &[], &[]), Err(VariablesError::TooMany { .. })));
    }

    #[rstest]
    #[case::no_empty_element("/a/bin:/path-not-set::/b/bin:", "/a/bin:/b/bin")]
    #[case::nothing_but_empty_elements(":", "")]
    fn a_path_names_directories(#[case] value: &str, #[case] expected: &str) {
        let extracted = extract(&environment(&[("PATH", value)]), &[], &[]).unwrap();
        assert_eq!(extracted.variables["PATH"], expected);
    }

    #[test]
    fn arrays_and_unexported_variables_stay_behind() {
        let json = br#"{"variables": {
            "A": {"type": "exported", "value": "1"},
            "B": {"type": "var", "value": "1"},
            "C": {"type": "array", "value": ["1"]},
            "D": {"type": "associative", "value": {"1": "1"}},
            "E": {"type": "unknown"},
            "shellHook": {"type": "exported", "value": " echo hi\n"}},
            "bashFunctions": {}}"#;
        let extracted = BuildEnvironment::parse(json).unwrap().extract(&BTreeMap::new(), &[]).unwrap();
        assert_eq!(extracted.variables, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert_eq!(extracted.shell_hook.as_deref(), Some(" echo hi\n"));
    }

    #[test]
    fn a_store_path_outside_of_the_closure_is_seen() {
        let variables = BTreeMap::from([
            ("A".to_owned(), format!("{OUT}/bin:/nix/store/1111111111111111111111111111111a-b.")),
            ("B".to_owned(), format!("x{OUT}y /nix/store/ /nix/store/short")),
        ]);
        let closure = BTreeSet::from(["r2dydhgyxl38xw69v81pl4rpk9ndj241"]);
        let outside: Vec<_> = outside_of_closure(&variables, &closure).collect();
        assert_eq!(outside, [("A", "1111111111111111111111111111111a")]);
    }
}
