//! A node in a directory: nixenv-runc, a runtime that only writes down how it was started, a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use environment::cache;
use environment::inject::Record;
use environment::key::{Key, NodeFacts, ViewId, World};
use environment::layout::Layout;
use environment::lookup::Namespace;
use environment::manifest::{Manifest, ShellHook};
use environment::settings::Settings;
use environment::snapshot::{Entry, Snapshot};
use serde_json::{Value, json};

/// What the recording runtime exits with.
pub const RECORDED: i32 = 42;

/// Writes its arguments, one a line, to `/out/args`, keeps copies of what it is given to read, and answers.
const RECORDER: &str = r#"#!/bin/sh
printf '%s\n' "$@" > /out/args
cat > /out/stdin
for argument; do
    case $previous in
        --bundle) cp "$argument/config.json" /out/config.json ;;
        --process) cp "$argument" /out/process.json ;;
    esac
    previous=$argument
done
echo "runtime's output"
echo "runtime's error" >&2
exit 42
"#;

/// Becomes the root directory's user in namespaces of its own.
const ENTER: &str = r#"
root=$0
for directory in usr proc dev; do mount --rbind "/$directory" "$root/$directory"; done
exec chroot "$root" /usr/bin/env --ignore-environment PATH="$CALLER_PATH" $CALLER_ENV "$@"
"#;

pub struct Node {
    root: tempfile::TempDir,
    /// PATH of the wrapper.
    pub path: String,
    /// Further variables of the wrapper, `NAME=VALUE` without spaces.
    pub env: Vec<&'static str>,
}

impl Node {
    /// A node whose wrapper is `/own/nixenv-runc`, with the recording runtime at `/engine/runc`.
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let node = Self { root, path: "/engine:/usr/bin:/bin".into(), env: Vec::new() };
        for directory in ["usr", "proc", "dev", "tmp", "out", "own", "engine", "bundle/rootfs", "nix/store"] {
            fs::create_dir_all(node.at(directory)).unwrap();
        }
        for link in ["bin", "sbin", "lib", "lib32", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
                symlink(target, node.at(link)).unwrap();
            }
        }
        fs::copy(env!("CARGO_BIN_EXE_nixenv-runc"), node.at("own/nixenv-runc")).unwrap();
        node.program("engine/runc", RECORDER);
        node
    }

    /// A path of the node, given without its first slash.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub fn layout(&self) -> Layout {
        Layout::under(self.root.path())
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), content).unwrap();
    }

    pub fn program(&self, path: &str, script: &str) {
        self.write(path, script);
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a program of the node.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().unwrap()
    }

    /// The command for [`Node::run`].
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", ENTER]).arg(self.root.path()).arg(program).args(args);
        command.env("CALLER_PATH", &self.path).env("CALLER_ENV", self.env.join(" "));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs the wrapper as containerd's shim does.
    pub fn engine(&self, args: &[&str]) -> Output {
        let global = ["--root", "/state", "--log", "/out/log.json", "--log-format", "json"];
        self.run("/own/nixenv-runc", &[&global, args].concat())
    }

    /// Writes the bundle's spec, and returns it.
    pub fn spec(&self, annotations: Value, env: &[&str]) -> Value {
        let spec = json!({
            "ociVersion": "1.2.1",
            "process": { "args": ["sh"], "env": env, "cwd": "/" },
            "root": { "path": "rootfs" },
            "mounts": [],
            "annotations": annotations,
        });
        self.write("bundle/config.json", serde_json::to_vec_pretty(&spec).unwrap());
        spec
    }

    /// The arguments that the recording runtime got.
    pub fn recorded_args(&self) -> Vec<String> {
        self.read("out/args").lines().map(str::to_owned).collect()
    }

    /// The spec or process that the recording runtime got.
    pub fn recorded(&self, document: &str) -> Value {
        serde_json::from_str(&self.read(&format!("out/{document}.json"))).unwrap()
    }

    /// The entries of the runtime's log.
    pub fn log(&self) -> Vec<Value> {
        match fs::read_to_string(self.at("out/log.json")) {
            Ok(log) => log.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// How many containers hold an environment.
    pub fn holds(&self) -> usize {
        environment::hold::list(&self.layout()).unwrap().len()
    }

    /// Publishes an environment for the rootfs' `config.nix`, as the daemon would.
    pub fn publish(&self, config: &str, variables: &[(&str, &str)], shell_hook: Option<ShellHook>) -> Key {
        let layout = self.layout();
        self.write("bundle/rootfs/config.nix", config);
        let settings = Settings::default();
        let namespace = Namespace::of_directory(&self.at("bundle/rootfs")).unwrap();
        let entry = Entry::find(&namespace, Path::new("config.nix"), &settings.config).unwrap().unwrap();
        let snapshot = Snapshot::take(&namespace, &entry, &settings.config).unwrap();
        let facts = NodeFacts { nix_version: "2.8.0".into(), system: "x86_64-linux".into() };
        let world = World { settings: &settings, node: &facts, attr: None };
        let key = world.key(&snapshot.digest, &snapshot.entry);
        let manifest = Manifest {
            key,
            origin: "config.nix".into(),
            variables: variables
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect::<BTreeMap<_, _>>(),
            shell_hook,
            view: ViewId::of_closure(&[]),
            closure_paths: 0,
            closure_bytes: 0,
            node: facts.clone(),
            created: 0,
            evaluation_ms: 0,
            build_ms: 0,
            warnings: Vec::new(),
        };
        cache::prepare_directories(&layout).unwrap();
        cache::record_node_facts(&layout, &facts).unwrap();
        fs::create_dir_all(layout.stub(&manifest.view)).unwrap();
        fs::create_dir_all(layout.gc_roots()).unwrap();
        if !layout.gc_root(&key).is_symlink() {
            symlink("/", layout.gc_root(&key)).unwrap();
        }
        cache::publish(&layout, &manifest, &[]).unwrap();
        let selector = world.selector(entry.name(), &entry.digest());
        cache::record_inputs(&layout, &selector, &snapshot.inputs, &key).unwrap();
        key
    }

    /// What the wrapper wrote down in the bundle.
    pub fn record(&self) -> Record {
        let record: Value = serde_json::from_str(&self.read("bundle/nixenv.json")).unwrap();
        serde_json::from_value(record["record"].clone()).unwrap()
    }
}

/// The texts of a list.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}
