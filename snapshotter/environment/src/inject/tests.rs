use rstest::rstest;

use super::*;
use crate::digest::Digest;
use crate::key::{NodeFacts, World};
use crate::settings::Settings;

fn injection(variables: &[(&str, &str)]) -> Injection {
    let node = NodeFacts { nix_version: "2.8.0".into(), system: "x86_64-linux".into() };
    let world = World { settings: &Settings::default(), node: &node, attr: None };
    Injection {
        key: world.key(&Digest::of(b"a"), "config.nix"),
        variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        allowed: vec![],
        overrides: vec![],
        shell_hook: None,
        store: "/run/nixenv/views/v/view".into(),
        poststop: Poststop { program: "/usr/bin/nixenv-runc".into(), args: vec!["nixenv-runc".into()] },
    }
}

fn spec(env: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.1",
        "process": { "args": ["sh", "-c", "echo hi"], "env": env, "cwd": "/" },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "unknown": { "survives": [1, null] },
    })
}

fn nobody_knows() -> Option<Vec<String>> {
    None
}

fn env_of(process: &Value) -> Vec<&str> {
    process["env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect()
}

fn injected(env: &[&str], injection: &Injection, image: Option<&[&str]>) -> (Value, Record) {
    let image = image.map(|image| image.iter().map(|&entry| entry.to_owned()).collect());
    inject_into_spec(spec(env), injection, || image).unwrap()
}

#[rstest]
#[case::the_users_value_beats_the_environments(&["A=user"], Some(&["A=image"][..]), &["A=user"])]
#[case::the_environments_value_beats_the_images(&["A=image"], Some(&["A=image"][..]), &["A=env"])]
#[case::a_default_that_the_image_repeats_is_its_last(&["A=2"], Some(&["A=1", "A=2"][..]), &["A=env"])]
#[case::the_containers_value_stays_when_nobody_knows_the_image(&["A=image"], None, &["A=image"])]
#[case::a_name_that_only_the_user_set_stays(&["A=user"], Some(&[][..]), &["A=user"])]
#[case::a_name_that_the_container_lacks_is_added(&[], None, &["A=env"])]
fn who_wins(#[case] env: &[&str], #[case] image: Option<&[&str]>, #[case] expected: &[&str]) {
    let (spec, _) = injected(env, &injection(&[("A", "env")]), image);
    assert_eq!(env_of(&spec["process"]), expected);
}

#[rstest]
#[case::no_name_is_in_both(&["B=1", "PATH=/bin"], false)]
#[case::both_agree(&["A=env"], false)]
#[case::both_differ(&["A=other"], true)]
fn the_image_is_asked_only_when_needed(#[case] env: &[&str], #[case] expected: bool) {
    let mut asked = false;
    let injection = injection(&[("A", "env"), ("PATH", "/nix/bin")]);
    inject_into_spec(spec(env), &injection, || {
        asked = true;
        None
    })
    .unwrap();
    assert_eq!(asked, expected);
}

#[test]
fn an_override_beats_the_user_and_asks_nobody() {
    let injection = Injection { overrides: vec!["A".into()], ..injection(&[("A", "env")]) };
    let (spec, _) = inject_into_spec(spec(&["A=user"]), &injection, || panic!("asked")).unwrap();
    assert_eq!(env_of(&spec["process"]), ["A=env"]);
}

#[test]
fn values_arrive_intact() {
    let value = "spaces, \"quotes\", 'more'\nlines $and `ünïcode`\\";
    let (spec, _) = injected(&[], &injection(&[("A", value)]), None);
    assert_eq!(env_of(&spec["process"]), [format!("A={value}")]);
}

#[test]
fn everything_else_of_the_spec_survives() {
    let (mut edited, record) = injected(&["B=1"], &injection(&[("A", "1")]), None);
    assert_eq!(record.original, spec(&["B=1"]));
    assert_eq!(edited["mounts"].as_array_mut().unwrap().pop().unwrap()["destination"], "/nix/store");
    let edited = edited.as_object_mut().unwrap();
    edited.remove("hooks").unwrap();
    edited["process"]["env"] = json!(["B=1"]);
    assert_eq!(*edited, *spec(&["B=1"]).as_object().unwrap());
}

#[test]
fn injecting_again_changes_nothing() {
    let hook = ShellHook { shell: "/nix/store/x/bin/bash".into(), script: "echo".into() };
    let injection = Injection { shell_hook: Some(hook), ..injection(&[("A", "env"), ("PATH", "/nix/bin")]) };
    let image = || Some(vec!["A=image".to_owned()]);
    let (once, _) = inject_into_spec(spec(&["A=image", "PATH=/bin"]), &injection, image).unwrap();
    let (twice, _) = inject_into_spec(once.clone(), &injection, image).unwrap();
    assert_eq!(once, twice);
}

#[test]
fn a_spec_without_env_mounts_and_hooks_gets_them() {
    let bare = json!({ "process": { "args": ["a"] }, "hooks": null });
    let (spec, _) = inject_into_spec(bare, &injection(&[("A", "1")]), nobody_knows).unwrap();
    assert_eq!(env_of(&spec["process"]), ["A=1"]);
    assert_eq!(spec["mounts"][0]["destination"], "/nix/store");
    assert_eq!(spec["hooks"]["poststop"][0]["path"], "/usr/bin/nixenv-runc");
}

#[test]
fn the_store_is_mounted_read_only_behind_the_containers_mounts() {
    let mut spec = spec(&[]);
    spec["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/nix", "type": "tmpfs" }));
    let (spec, _) = inject_into_spec(spec, &injection(&[]), nobody_knows).unwrap();
    assert_eq!(
        spec["mounts"][2],
        json!({
            "destination": "/nix/store",
            "type": "bind",
            "source": "/run/nixenv/views/v/view",
            "options": ["bind", "ro", "nosuid", "nodev", "rprivate"],
        })
    );
}

#[test]
fn the_poststop_hook_comes_after_the_containers_and_has_an_environment() {
    let mut spec = spec(&[]);
    spec["hooks"] = json!({ "poststop": [{ "path": "/engine" }], "createRuntime": [{ "path": "/net" }] });
    let (spec, _) = inject_into_spec(spec, &injection(&[]), nobody_knows).unwrap();
    assert_eq!(spec["hooks"]["createRuntime"], json!([{ "path": "/net" }]));
    assert_eq!(spec["hooks"]["poststop"][0], json!({ "path": "/engine" }));
    assert!(!spec["hooks"]["poststop"][1]["env"].as_array().unwrap().is_empty());
}

#[rstest]
#[case::at_the_store("/nix/store")]
#[case::with_a_slash("/nix/store/")]
#[case::in_the_store("/nix/store/abc")]
#[case::by_dots("/nix/var/../store")]
#[case::without_a_root("nix/store")]
fn a_mount_of_the_containers_own_is_refused(#[case] destination: &str) {
    let mut spec = spec(&[]);
    spec["mounts"][0]["destination"] = json!(destination);
    let error = inject_into_spec(spec, &injection(&[]), nobody_knows).unwrap_err();
    assert!(error.to_string().contains(destination), "{error}");
}

#[rstest]
#[case::beside_it("/nix/storehouse")]
#[case::above_it("/nix")]
#[case::elsewhere("/srv/nix/store")]
fn a_mount_elsewhere_is_not(#[case] destination: &str) {
    let mut spec = spec(&[]);
    spec["mounts"][0]["destination"] = json!(destination);
    assert!(inject_into_spec(spec, &injection(&[]), nobody_knows).is_ok());
}

#[rstest]
#[case::preload("LD_PRELOAD", "x", "variables.allow")]
#[case::audit("LD_AUDIT", "x", "variables.allow")]
#[case::library_path("LD_LIBRARY_PATH", "x", "variables.allow")]
#[case::an_empty_name("", "x", "letters, digits")]
#[case::a_leading_digit("1A", "x", "letters, digits")]
#[case::an_equals_sign("A=B", "x", "letters, digits")]
#[case::a_newline("A\nB", "x", "letters, digits")]
#[case::another_alphabet("Ä", "x", "letters, digits")]
#[case::a_nul_byte("A", "x\0y", "NUL")]
fn a_hostile_variable_is_refused(#[case] name: &str, #[case] value: &str, #[case] expected: &str) {
    let error = inject_into_spec(spec(&[]), &injection(&[(name, value)]), nobody_knows).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn the_node_may_allow_a_refused_variable() {
    let injection = Injection { allowed: vec!["LD_PRELOAD".into()], ..injection(&[("LD_PRELOAD", "x")]) };
    let (spec, _) = inject_into_spec(spec(&[]), &injection, nobody_knows).unwrap();
    assert_eq!(env_of(&spec["process"]), ["LD_PRELOAD=x"]);
}

#[rstest]
#[case::no_process(json!({}))]
#[case::a_list_for_a_spec(json!([]))]
#[case::a_number_among_the_variables(json!({ "process": { "env": [1] } }))]
#[case::text_for_a_process(json!({ "process": "sh" }))]
#[case::text_for_the_mounts(json!({ "process": {}, "mounts": "x" }))]
#[case::text_for_the_hooks(json!({ "process": {}, "hooks": "x" }))]
#[case::a_number_among_the_hooks(json!({ "process": {}, "hooks": { "poststop": 1 } }))]
fn a_malformed_spec_is_an_error(#[case] spec: Value) {
    let error = inject_into_spec(spec, &injection(&[]), nobody_knows).unwrap_err();
    assert!(matches!(error, InjectError::Document { .. }), "{error}");
}

mod shell_hooks {
    use std::process::Command;

    use super::*;

    fn started(script: &str, env: &[&str], args: &[&str]) -> std::process::Output {
        let hook = ShellHook { shell: "/bin/bash".into(), script: script.into() };
        let injection = Injection { shell_hook: Some(hook), ..injection(&[]) };
        let mut spec = spec(env);
        spec["process"]["args"] = json!(args);
        let (spec, _) = inject_into_spec(spec, &injection, nobody_knows).unwrap();
        let args = entries(&spec["process"], "args").unwrap();
        let env = env.iter().map(|entry| entry.split_once('=').unwrap());
        Command::new(&args[0]).args(&args[1..]).env_clear().envs(env).output().unwrap()
    }

    #[rstest]
    #[case::exports_arrive("export A=1", "A=1")]
    #[case::arguments_are_not_the_hooks("set -- x; shift; export A=1", "A=1")]
    #[case::a_failing_command_is_passed_over("false; no-such-command; return 3; export A=1", "A=1")]
    #[case::several_lines("export A=1\n# a comment\n", "A=1")]
    #[case::a_syntax_error_is_passed_over("if", "")]
    fn run_before_the_process(#[case] script: &str, #[case] expected: &str) {
        let output = started(script, &["PATH=/usr/bin:/bin"], &["/usr/bin/env"]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let leaked: Vec<&str> =
            stdout.lines().filter(|line| !["PATH=/usr/bin:/bin", "SHLVL=0"].contains(line)).collect();
        assert_eq!(leaked.join("\n"), expected, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success());
    }

    #[test]
    fn the_process_keeps_its_arguments_and_status() {
        let output = started(
            "echo hook",
            &["PATH=/usr/bin:/bin"],
            &["sh", "-c", "echo \"$0|$1\"; exit 7", "a b", "*'\""],
        );
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "hook\na b|*'\"\n");
        assert_eq!(output.status.code(), Some(7));
    }

    #[test]
    fn variables_of_the_shell_that_the_container_set_stay() {
        let output = started(":", &["PWD=/", "OLDPWD=/"], &["/usr/bin/env"]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let mut names: Vec<&str> = stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort_unstable();
        assert_eq!(names, ["OLDPWD", "PWD", "SHLVL"], "{stdout}");
    }

    #[test]
    fn one_that_linux_cannot_pass_is_refused() {
        let hook = ShellHook { shell: "/bin/bash".into(), script: "#".repeat(MAX_ARGUMENT_BYTES) };
        let injection = Injection { shell_hook: Some(hook), ..injection(&[]) };
        let error = inject_into_spec(spec(&[]), &injection, nobody_knows).unwrap_err();
        assert!(error.to_string().contains("nixenv.shell-hook=skip"), "{error}");
    }
}

mod later_processes {
    use super::*;

    /// What an exec sees, of a container whose spec had `created` as its env.
    fn exec(created: &[&str], image: Option<&[&str]>, overrides: &[&str], exec: &[&str]) -> Vec<String> {
        let overrides = overrides.iter().map(|&name| name.to_owned()).collect();
        let variables = injection(&[("A", "env"), ("PATH", "/nix/bin")]);
        let (_, record) = injected(created, &Injection { overrides, ..variables }, image);
        let mut process = json!({ "args": ["env"], "env": exec, "unknown": 1 });
        inject_into_process(&mut process, &record).unwrap();
        let once = process.clone();
        inject_into_process(&mut process, &record).unwrap();
        assert_eq!(process, once, "injecting again changes nothing");
        assert_eq!(process["unknown"], 1);
        env_of(&process).into_iter().map(str::to_owned).collect()
    }

    #[rstest]
    #[case::a_name_that_is_in_neither_is_added(&[], None, &["PATH=/bin"], &["PATH=/nix/bin:/bin", "A=env"])]
    #[case::a_name_of_the_execs_own_stays(&[], None, &["PATH=/bin", "A=exec"], &["PATH=/nix/bin:/bin", "A=exec"])]
    #[case::what_the_user_set_on_the_container_stays(&["A=user"], Some(&[][..]), &["A=user", "PATH=/"], &["A=user", "PATH=/nix/bin:/"])]
    #[case::what_the_image_set_is_replaced(&["A=image"], Some(&["A=image"][..]), &["A=image", "PATH=/"], &["A=env", "PATH=/nix/bin:/"])]
    #[case::what_the_exec_set_differently_stays(&["A=image"], Some(&["A=image"][..]), &["A=exec", "PATH=/"], &["A=exec", "PATH=/nix/bin:/"])]
    #[case::what_the_exec_appended_counts(&["A=image"], Some(&["A=image"][..]), &["A=image", "A=exec", "PATH=/"], &["A=image", "A=exec", "PATH=/nix/bin:/"])]
    #[case::a_value_of_an_unknown_origin_stays(&["A=image"], None, &["A=image", "PATH=/"], &["A=image", "PATH=/nix/bin:/"])]
    fn are_treated_as_the_first(
        #[case] created: &[&str],
        #[case] image: Option<&[&str]>,
        #[case] process: &[&str],
        #[case] expected: &[&str],
    ) {
        assert_eq!(exec(created, image, &[], process), expected);
    }

    #[test]
    fn overrides_win_over_the_container_and_not_over_the_exec() {
        assert_eq!(
            exec(&["A=user", "PATH=/"], None, &["A"], &["A=user", "PATH=/"]),
            ["A=env", "PATH=/nix/bin:/"]
        );
        assert_eq!(
            exec(&["A=user", "PATH=/"], None, &["A"], &["A=exec", "PATH=/"]),
            ["A=exec", "PATH=/nix/bin:/"]
        );
    }

    #[test]
    fn a_record_survives_its_file() {
        let (_, record) = injected(&["B=1"], &injection(&[("A", "1")]), None);
        let bytes = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), record);
    }

    #[rstest]
    #[case::not_an_object(json!([]))]
    #[case::not_a_list(json!({ "env": "A=1" }))]
    fn a_malformed_process_is_an_error(#[case] mut process: Value) {
        let (_, record) = injected(&[], &injection(&[]), None);
        assert!(inject_into_process(&mut process, &record).is_err());
    }
}
