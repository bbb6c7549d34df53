//! The daemon with a real Nix: each test on a node of its own, in private namespaces.

mod node;

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use e2e::isolation::isolated;
use environment::cache;
use environment::protocol::{Client, Request as Frame, Resolve, Response};
use environment::reference::{ConfigReference, Request};
use environment::snapshot::Snapshot;
use rstest::rstest;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal};

use node::{Node, PROGRAM, add_program, chain, daemon, names, processes};

/// Takes hours, and neither stack nor memory.
const LOOP: &str = "let loop = f: builtins.foldl' (_: f) 0 (builtins.genList (x: x) 100000); in loop (_: loop (_: loop (x: x)))";
const SHELL: &str = r#"
{ pkgs ? import <nixpkgs> { } }:
pkgs.mkShell {
  packages = [ (pkgs.build "tool" "echo > $out") ];
  GREETING = "spaces, \"quotes\"\nand ünïcode";
  shellHook = "echo hello";
}
"#;

#[test]
fn a_config_becomes_an_environment() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        let resolved = node.resolve("config.nix").unwrap();
        assert!(resolved.evaluated && !resolved.hit);
        let manifest = resolved.manifest;

        let names: Vec<&str> = manifest.variables.keys().map(String::as_str).collect();
        assert_eq!(names, ["GREETING", "PATH", "packages"]);
        assert_eq!(manifest.variables["GREETING"], "spaces, \"quotes\"\nand ünïcode");
        let path = &manifest.variables["PATH"];
        assert!(path.contains("-tool/bin:") && path.ends_with("-bash/bin"), "{path}");
        let hook = manifest.shell_hook.unwrap();
        assert_eq!(hook.script, "echo hello");
        assert!(hook.shell.ends_with("-bash/bin/bash"), "{}", hook.shell);

        let root = fs::read_link(node.layout.gc_root(&manifest.key)).unwrap();
        let closure = cache::load_closure(&node.layout, &manifest.key).unwrap();
        let known = Command::new("nix-store").args(["--query", "--requisites"]).arg(root).output().unwrap();
        let mut expected: Vec<_> = std::str::from_utf8(&known.stdout).unwrap().lines().collect();
        expected.sort_unstable();
        assert_eq!(closure.iter().map(|path| path.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(closure.len(), 4, "the variables, bash, the standard environment and the tool");
        assert!(manifest.closure_bytes > 1 << 20);

        assert!(node.resolve("config.nix").unwrap().hit);
        assert_eq!(node.status().evaluations, 1);
        assert_eq!(node.leftovers(), [""; 0]);
    });
}

#[test]
fn what_nix_collects_is_not_an_environment() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        let key = node.resolve("config.nix").unwrap().manifest.key;
        let collected = Command::new("nix-store").arg("--gc").env("NIX_REMOTE", "daemon").output().unwrap();
        assert!(collected.status.success());
        for path in cache::load_closure(&node.layout, &key).unwrap() {
            assert!(path.as_path().exists(), "{path}");
        }
    });
}

#[rstest]
#[case::a_list_of_packages(
    "{ pkgs ? import <nixpkgs> { } }: [ (pkgs.build \"tool\" \"echo > $out\") ]",
    None
)]
#[case::a_set(
    "{ pkgs }: { packages = [ (pkgs.build \"tool\" \"echo > $out\") ]; env.X = \"1\"; shellHook = \"\"; }",
    None
)]
#[case::an_attribute_of_nested_sets(
    "{ pkgs, lib, system }: { a = { inNixShell }: { b = pkgs.mkShell { X = \"${system} ${lib.version}\"; }; }; }",
    Some("a.b")
)]
#[case::a_derivation_of_its_own_system(
    "with import <nixpkgs> { }; derivation { name = \"x\"; system = builtins.currentSystem; builder = \"${bash}/bin/bash\"; }",
    None
)]
#[case::imports_see_the_same_world("import ./nested { }", None)]
fn shapes_of_a_config(#[case] config: &str, #[case] attr: Option<&str>) {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", config);
        node.write("nested/default.nix", "{ pkgs ? import <nixpkgs> { } }: (import ./x.nix) pkgs");
        node.write(
            "nested/x.nix",
            "pkgs: assert builtins.currentSystem == __currentSystem; pkgs.mkShell { }",
        );
        let resolved =
            node.resolve_attr("config.nix", attr).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(resolved.manifest.variables.contains_key("PATH"));
    });
}

#[rstest]
#[case::a_syntax_error_with_line_and_caret(
    "{\n  a = ;\n}",
    &["error: syntax error, unexpected ';'", "at config.nix:2:7:", "\n             |       ^"]
)]
#[case::an_undefined_variable("{ pkgs }:\npkgs.mkShell { X = y; }", &["undefined variable 'y'", "config.nix:2:20"])]
#[case::an_error_in_an_imported_file("import ./lib/x.nix", &["undefined variable 'nothing'", "at lib/x.nix:1:1"])]
#[case::a_missing_attribute_of_the_package_set(
    "{ pkgs }: pkgs.mkShell { X = pkgs.python; }", &["attribute 'python' missing", "config.nix:1:30"]
)]
#[case::another_type("{ }: 1", &["the config is of type int", "a list of packages"])]
#[case::a_set_of_environments("{ pkgs }: { shell = pkgs.mkShell { }; }", &["attribute 'shell'", "nixenv.attr"])]
#[case::a_package_set_that_is_not_pinned("{ x ? import <stable> { } }: x", &["<stable>", "nixenv install --nixpkgs"])]
#[case::an_endless_loop(
    LOOP,
    &["took longer than 3 s", "evaluation.timeout-seconds in /etc/nixenv/config.toml"]
)]
#[case::endless_memory(
    "let f = n: s: if n == 0 then s else f (n - 1) (s + s); in builtins.stringLength (f 40 \"xxxxxxxx\")",
    &["evaluation.memory-mib in /etc/nixenv/config.toml", "512 MiB"]
)]
#[case::endless_recursion("let f = x: 1 + f x; in f 1", &["stack overflow"])]
#[case::a_preloaded_library(
    "{ pkgs }: pkgs.mkShell { LD_PRELOAD = \"/lib/x.so\"; }",
    &["LD_PRELOAD", "variables.allow = [\"LD_PRELOAD\"]"]
)]
#[case::a_file_of_the_node("{ }: builtins.readFile \"/etc/shadow\"", &["/etc", "pure"])]
#[case::the_process_table("{ }: builtins.readFile \"/proc/self/environ\"", &["/proc", "pure"])]
#[case::another_store_path(
    "{ }: builtins.readDir \"/nix/store/.links\"", &["/nix/store/.links", "pure"]
)]
#[case::an_import_from_a_derivation(
    "{ pkgs }: import \"${pkgs.build \"x\" \"echo 1 > $out\"}\"", &["import-from-derivation"]
)]
#[case::a_download_without_hash("{ }: builtins.fetchurl \"http://127.0.0.1/x\"", &["pure", "fetchurl"])]
fn what_is_wrong_is_said_and_nothing_is_left(#[case] config: &str, #[case] expected: &[&str]) {
    isolated(|directory| {
        let node = Node::start(directory, "[evaluation]\ntimeout-seconds = 3\nmemory-mib = 512\n");
        node.write("lib/x.nix", "nothing");
        let message = node.refuses(config);
        for part in expected {
            assert!(message.contains(part), "no {part:?} in:\n{message}");
        }
        assert!(["\u{1b}[", "-config/", "«string»"].iter().all(|part| !message.contains(part)), "{message}");
        assert_eq!(node.leftovers(), [""; 0]);
        assert_eq!(names(&node.layout.environments()), [""; 0]);
        assert_eq!(processes("nix-instantiate"), 0);
        node.write("config.nix", SHELL);
        node.resolve("config.nix").unwrap();
    });
}

#[test]
fn an_unknown_attribute_is_named_beside_those_that_exist() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", "{ dev = { }; test = { }; }");
        let message = chain(&node.resolve_attr("config.nix", Some("prod")).unwrap_err());
        assert!(message.contains("no attribute 'prod'") && message.contains("dev, test"), "{message}");
    });
}

#[test]
fn a_failing_build_ends_with_its_log() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        let message = node.refuses(
            "{ pkgs }: pkgs.mkShell { packages = [ (pkgs.build \"broken\" \"for ((i=1; i<=60; i++)); do echo line $i; done; exit 3\") ]; }",
        );
        assert!(message.contains("exit code 3") && message.contains("-broken.drv"), "{message}");
        for line in 20..=60 {
            assert!(message.contains(&format!("line {line}\n")), "no line {line} in:\n{message}");
        }
        assert_eq!(node.leftovers(), [""; 0]);
        assert_eq!(names(&node.layout.environments()), [""; 0]);
    });
}

#[test]
fn twenty_requests_at_once_are_one_evaluation() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        let evaluated: usize = thread::scope(|scope| {
            let asked: Vec<_> =
                (0..20).map(|_| scope.spawn(|| node.resolve("config.nix").unwrap())).collect();
            asked.into_iter().map(|asked| usize::from(!asked.join().unwrap().hit)).sum()
        });
        assert!(evaluated > 1, "the requests did not meet");
        assert_eq!(node.status().evaluations, 1);
    });
}

#[test]
fn twenty_configs_at_once_run_two_at_a_time() {
    isolated(|directory| {
        let node = Node::start(directory, "[evaluation]\nparallel = 2\n");
        for index in 0..20 {
            node.write(&format!("{index}.nix"), &SHELL.replace("GREETING", &format!("GREETING_{index}")));
        }
        thread::scope(|scope| {
            let node = &node;
            let asked: Vec<_> =
                (0..20).map(|index| scope.spawn(move || node.resolve(&format!("{index}.nix")))).collect();
            while asked.iter().any(|asked| !asked.is_finished()) {
                // A directory that changes while it is listed may show one that is gone beside one that is new.
                assert!(names(&node.layout.scratch()).len() <= 4);
                thread::sleep(Duration::from_millis(2));
            }
            assert!(asked.into_iter().all(|asked| asked.join().unwrap().is_ok()));
        });
        assert_eq!(node.status().evaluations, 20);
        assert_eq!(node.leftovers(), [""; 0]);
    });
}

#[test]
fn a_request_whose_asker_leaves_goes_on() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write(
            "config.nix",
            "{ pkgs }: pkgs.mkShell { X = pkgs.build \"slow\" \"read -t 1 < <(read -t 5) || true; echo > $out\"; }",
        );
        let places = [environment::lookup::Namespace::of_directory(&directory.join("work/configs")).unwrap()];
        let settings = environment::settings::Settings::load(&node.layout.settings()).unwrap();
        let request = Request::new(ConfigReference::Path("config.nix".to_owned()));
        let patience = Some(Duration::from_millis(200));
        let error =
            environment::resolve::resolve(&node.layout, &settings, &request, &places, patience, |_| ())
                .unwrap_err();
        assert!(chain(&error).contains("goes on"), "{}", chain(&error));
        node.resolve("config.nix").unwrap();
        assert_eq!(node.status().evaluations, 1);
    });
}

#[test]
fn packages_need_no_file() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        let request = Request::new(ConfigReference::Packages(vec!["bash".to_owned()]));
        node.ask(&request).unwrap();
        assert!(node.ask(&request).unwrap().hit);
    });
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        node.kill_daemon();
        mount("tmpfs", node.layout.state(), "tmpfs", MountFlags::empty(), Some(c"size=256k")).unwrap();
        node.start_daemon();
        node.write("config.nix", SHELL);
        // Free pages, from none to enough: each leaves off at another step.
        let mut failures = 0;
        for pages in 0.. {
            let filler = node.layout.state().join("filler");
            while fill(&filler).is_ok() {}
            let bytes = fs::metadata(&filler).unwrap().len();
            fs::OpenOptions::new().write(true).open(&filler).unwrap().set_len(bytes - pages * 4096).unwrap();
            let result = node.resolve("config.nix");
            fs::remove_file(&filler).unwrap();
            match result {
                Ok(_) => break,
                Err(error) => {
                    failures += 1;
                    let message = chain(&error);
                    assert!(message.to_lowercase().contains("no space left on device"), "{message}");
                    assert!(message.contains("/var/lib/nixenv"), "{message}");
                    assert_eq!(node.leftovers(), [""; 0], "with {pages} pages");
                    assert_eq!(names(&node.layout.environments()), [""; 0], "with {pages} pages");
                    assert_eq!(names(&node.layout.stubs()), [""; 0], "with {pages} pages");
                }
            }
        }
        assert!(failures > 3, "only {failures} steps need space");
        assert!(node.resolve("config.nix").unwrap().hit);
    });
}

fn fill(path: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(&[0; 4096])
}

#[test]
fn what_a_binary_cache_has_is_not_built() {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        let (marker, cache) = (directory.join("work/marker"), directory.join("work/cache"));
        fs::write(&marker, "").unwrap();
        let build = format!("[[ -e {} ]]; echo > $out", marker.display());
        node.write(
            "config.nix",
            &format!("{{ pkgs }}: pkgs.mkShell {{ X = pkgs.build \"costly\" \"{build}\"; }}"),
        );
        let manifest = node.resolve("config.nix").unwrap().manifest;
        let url = format!("file://{}", cache.display());
        let mut copy = Command::new("nix");
        copy.args(["--extra-experimental-features", "nix-command", "copy", "--to", &url]);
        assert!(copy.arg(&manifest.variables["X"]).status().unwrap().success());

        node.kill_daemon();
        fs::remove_dir_all(node.layout.environments()).unwrap();
        node.start_daemon();
        fs::remove_file(&marker).unwrap();
        assert!(Command::new("nix-store").arg("--gc").output().unwrap().status.success());
        node.pin_again();
        let message = chain(&node.resolve("config.nix").unwrap_err());
        assert!(message.contains("costly"), "{message}");
        node.stop_nix();
        let settings = format!(
            "substituters = {url}\nrequire-sigs = false\nbuild-users-group = nixbld\nsandbox = false\n"
        );
        fs::write("/etc/nix/nix.conf", settings).unwrap();
        node.start_nix();
        let again = node.resolve("config.nix").unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(again.manifest.variables["X"], manifest.variables["X"]);
    });
}

#[test]
fn what_the_container_will_not_see_is_warned_of() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write(
            "config.nix",
            "{ pkgs }: pkgs.mkShell { HERE = toString ./.; THERE = \"${./config.nix}\"; }",
        );
        let resolved = node.resolve("config.nix").unwrap();
        assert_eq!(resolved.warnings.len(), 1);
        assert!(resolved.warnings[0].starts_with("HERE names /nix/store/"), "{}", resolved.warnings[0]);
    });
}

#[rstest]
#[case::while_it_evaluates(LOOP, "nix-instantiate")]
#[case::while_it_builds(
    "{ pkgs }: pkgs.mkShell { X = pkgs.build \"slow\" \"read -t 60 < <(read -t 60); echo > $out\"; }",
    "nix"
)]
fn a_killed_daemon_leaves_only_what_the_next_removes(#[case] config: &str, #[case] program: &str) {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        node.write("config.nix", config);
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let places =
                    [environment::lookup::Namespace::of_directory(&directory.join("work/configs")).unwrap()];
                let layout = environment::layout::Layout::node();
                let settings = environment::settings::Settings::load(&layout.settings()).unwrap();
                let request = Request::new(ConfigReference::Path("config.nix".to_owned()));
                environment::resolve::resolve(&layout, &settings, &request, &places, None, |_| ())
            });
            eventually(|| processes(program) > 0);
            node.kill_daemon();
            assert!(asked.join().unwrap().is_err());
        });
        eventually(|| processes(program) == 0);
        node.start_daemon();
        assert_eq!(node.leftovers(), [""; 0]);
        node.write("config.nix", SHELL);
        node.resolve("config.nix").unwrap();
    });
}

#[test]
fn what_an_interrupted_publication_left_is_removed() {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        let manifest = node.resolve("config.nix").unwrap().manifest;
        node.kill_daemon();
        let orphan = "0".repeat(64);
        std::os::unix::fs::symlink("/nix/store", node.layout.gc_roots().join(&orphan)).unwrap();
        fs::create_dir(node.layout.stubs().join(&orphan)).unwrap();
        fs::create_dir(node.layout.environments().join("new-x")).unwrap();
        fs::create_dir(node.layout.scratch().join("x")).unwrap();
        node.start_daemon();
        assert_eq!(node.leftovers(), [""; 0]);
        assert_eq!(names(&node.layout.stubs()), [manifest.view.to_string()]);
        assert!(node.resolve("config.nix").unwrap().hit);
    });
}

#[test]
fn a_damaged_manifest_is_resolved_again() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        let manifest = node.resolve("config.nix").unwrap().manifest;
        let path = node.layout.manifest(&manifest.key);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let again = node.resolve("config.nix").unwrap();
        assert!(!again.hit && again.evaluated && !again.warnings.is_empty());
        assert!(node.resolve("config.nix").unwrap().hit);
    });
}

#[test]
fn the_daemon_stops_when_it_is_told_to_and_only_one_runs() {
    isolated(|directory| {
        let node = Node::start(directory, "");
        let second = daemon().output().unwrap();
        assert!(!second.status.success());
        let message = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(message.contains("another nixenv-snapshotter runs"), "{message}");

        node.write("config.nix", LOOP);
        thread::scope(|scope| {
            let layout = node.layout.clone();
            let configs = directory.join("work/configs");
            scope.spawn(move || {
                let places = [environment::lookup::Namespace::of_directory(&configs).unwrap()];
                let settings = environment::settings::Settings::load(&layout.settings()).unwrap();
                let request = Request::new(ConfigReference::Path("config.nix".to_owned()));
                environment::resolve::resolve(&layout, &settings, &request, &places, None, |_| ())
                    .unwrap_err()
            });
            eventually(|| processes("nix-instantiate") > 0);
            let pid = Pid::from_raw(node.daemon_pid() as i32).unwrap();
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
            eventually(|| processes(PROGRAM) == 0);
        });
        eventually(|| processes("nix-instantiate") == 0);
        assert!(!node.layout.socket().exists());
        assert!(fs::read_to_string(directory.join("log/nixenv-snapshotter")).unwrap().contains("stopping"));
    });
}

#[test]
fn without_the_nix_daemon_the_remedy_is_named_and_hits_go_on() {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        node.write("config.nix", SHELL);
        node.resolve("config.nix").unwrap();
        node.stop_nix();
        assert!(node.resolve("config.nix").unwrap().hit);
        let message = node.refuses("{ pkgs }: pkgs.mkShell { }");
        assert!(message.contains("systemctl start nix-daemon.socket"), "{message}");
        node.start_nix();
        node.resolve("config.nix").unwrap();
    });
}

#[rstest]
#[case::one_that_can_still_change(false, None, "not sealed")]
#[case::one_that_is_too_large(true, Some(64 << 20), "at most")]
#[case::one_that_is_no_archive(true, None, "archive")]
fn a_snapshot_is_refused(#[case] sealed: bool, #[case] bytes: Option<u64>, #[case] expected: &str) {
    isolated(|directory| {
        let node = Node::start(directory, "");
        let file = fs::File::from(memory_file());
        file.set_len(bytes.unwrap_or(100)).unwrap();
        if sealed {
            use rustix::fs::SealFlags;
            rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)
                .unwrap();
        }
        let snapshot = Snapshot::of_text("config.nix", "1");
        let request = Frame::Resolve(Resolve {
            origin: "config.nix".to_owned(),
            entry: snapshot.entry,
            attr: None,
            inputs: snapshot.inputs,
        });
        let mut client = Client::connect(&node.layout.socket()).unwrap();
        let answer = client.ask(&request, Some(file.as_fd()), None, |_| ()).unwrap();
        let Response::Failed { message } = answer else { panic!("{answer:?}") };
        assert!(message.contains(expected), "{message}");
        assert_eq!(node.leftovers(), [""; 0]);
    });
}

fn memory_file() -> OwnedFd {
    rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap()
}

/// What stands in for Nix here tells what a program can do that has taken Nix over.
#[test]
fn a_confined_program_has_nothing_but_the_store() {
    isolated(|directory| {
        let mut node = Node::start(directory, "");
        node.write("bash.nix", "{ pkgs }: pkgs.mkShell { shellHook = \":\"; }");
        let shell = node.resolve("bash.nix").unwrap().manifest.shell_hook.unwrap().shell;
        node.kill_daemon();
        let probe = PROBE.replace("BASH", &shell);
        node.replace_nix(&add_program(directory, "nix", &probe));
        node.start_daemon();
        let facts = cache::load_node_facts(&node.layout).unwrap();
        assert_eq!((&*facts.nix_version, &*facts.system), ("9.9", "probe-linux"));
        let message = node.refuses("1");
        for expected in [
            "user=65534 65534 65534 65534",
            "capabilities=0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000",
            "no-new-privileges=1",
            "first=1",
            "root=dev etc nix proc var",
            "node=etc/group etc/nsswitch.conf etc/passwd var/lib",
            "state=nixenv",
            "devices=null random urandom zero",
            "network=no",
            "kernel=no",
            "root-written=no",
            "store-written=no",
            "config-written=no",
            "writable=home",
            "home-written=yes",
            "socket=yes",
            "variables=GC_NPROCS HOME LC_ALL NIX_CONF_DIR NIX_REMOTE PATH TMPDIR USER",
            "memory=4194304",
            "core=0",
        ] {
            assert!(message.lines().any(|line| line == expected), "no {expected:?} in:\n{message}");
        }

        // Another Nix than before is noticed without a restart.
        node.replace_nix(&add_program(directory, "nix", &probe.replace("9.9", "10.0")));
        node.refuses("1");
        assert_eq!(cache::load_node_facts(&node.layout).unwrap().nix_version, "10.0");
    });
}

const PROBE: &str = r#"#!BASH
case " $* " in
  *" --version "*) echo "nix (Nix) 9.9"; exit ;;
  *" eval "*) echo -n probe-linux; exit ;;
esac
variables=" $(compgen -e | while read -r name; do [[ $name == @(_|OLDPWD|PWD|SHLVL) ]] || echo -n "$name "; done)"
field() {
  local name values
  while read -r name values; do [[ $name != "$1:" ]] || echo ${values//$'\t'/ }; done < /proc/self/status
}
can_write() { if (: > "$1/probe") 2> /dev/null; then echo yes; else echo no; fi; }
connects() { if (: <> /dev/tcp/127.0.0.1/9) 2>&1 | { read -r e; [[ $e == *unreachable* ]]; }; then echo no; else echo yes; fi; }
{
  echo "user=$(field Uid)"
  echo "capabilities=$(field CapInh) $(field CapPrm) $(field CapEff) $(field CapBnd) $(field CapAmb)"
  echo "no-new-privileges=$(field NoNewPrivs)"
  echo "first=$$"
  echo "root=$(cd / && echo *)"
  echo "node=$(cd / && echo etc/* var/*)"
  echo "state=$(cd /var/lib && echo *)"
  echo "devices=$(cd /dev && echo *)"
  echo "network=$(connects)"
  echo "kernel=$([[ -e /proc/sys || -e /proc/kallsyms ]] && echo yes || echo no)"
  echo "root-written=$(can_write /)"
  echo "store-written=$(can_write /nix/store)"
  echo "config-written=$(can_write "$HOME/../config")"
  echo "writable=$(while read -r _ place _ options _; do
    [[ $place == /dev/* || $options == ro,* ]] || echo "${place/"$HOME"/home}"
  done < /proc/self/mounts)"
  echo "home-written=$(can_write "$HOME")"
  echo "socket=$([[ -S /nix/var/nix/daemon-socket/socket ]] && echo yes || echo no)"
  echo "variables=$(echo $variables)"
  echo "memory=$(ulimit -v)"
  echo "core=$(ulimit -c)"
} >&2
exit 1
"#;

fn eventually(condition: impl FnMut() -> bool) {
    let mut condition = condition;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come true");
        thread::sleep(Duration::from_millis(5));
    }
}
