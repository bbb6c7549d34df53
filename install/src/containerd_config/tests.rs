use std::path::Path;

use rstest::rstest;

use super::handler::HANDLER;
use super::*;

const DEBIAN: &str = include_str!("../../tests/containerd-debian-12.toml");
const KUBERNETES: &str = "\
# kubeadm wants this
version = 3
imports = [\"/etc/containerd/conf.d/*.toml\"]

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  # the kubelet's driver
  runtime_type = 'io.containerd.runc.v2' # the usual one
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true # must match the kubelet

[proxy_plugins]
  [proxy_plugins.mine]
    type = \"snapshot\"
";
const VERSION_1: &str = "[plugins.cri]\n  systemd_cgroup = false\n";
const STARGZ: &str = "version = 2

[plugins.'io.containerd.grpc.v1.cri'.containerd]
  snapshotter = \"stargz\" # lazily
  disable_snapshot_annotations = false
";
const UNPACKS: &str = "version = 3

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64' # ours alone
  snapshotter = 'stargz'
";
const UNPACKS_INLINE: &str = "version = 4\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [{ snapshotter = 'stargz' }]\n";

fn lines() -> Lines {
    let handler = Handler { binary: "/usr/local/bin/nixenv-runc".into(), version: 2, runc: None };
    Lines { handler, snapshotter: None }
}

/// The lines for a containerd of this release, whose config is `theirs`.
fn lines_with_snapshotter(theirs: &str, release: (u32, u32), cri: bool, transfer: bool) -> Lines {
    let plugin = Plugin {
        address: "/run/nixenv/snapshotter.sock".into(),
        root: (release >= (1, 7)).then(|| "/var/lib/nixenv/snapshotter".into()),
        capabilities: if release >= (1, 7) { vec!["remap-ids".into()] } else { vec![] },
        cri: cri.then(|| Replaced { before: cri_snapshotter(theirs).unwrap() }),
        transfer: transfer.then(|| Transfer::new(theirs, release, "amd64").unwrap()),
    };
    Lines { snapshotter: Some(Box::new(plugin)), ..lines() }
}

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

#[rstest]
#[case::debian_12(DEBIAN)]
#[case::kubernetes(KUBERNETES)]
#[case::version_4("version = 4\n")]
#[case::version_1_without_a_version(VERSION_1)]
#[case::comments_only_at_the_end("version = 2\n\n[plugins]\n# nothing yet\n")]
#[case::inline_tables("version = 2\nplugins = { opt = { path = \"/opt\" } } # short\n")]
#[case::no_newline_at_the_end("version = 2\n[debug]\n  level = \"info\"")]
#[case::windows_line_ends("version = 2\r\n[debug]\r\n  level = \"info\"\r\n")]
fn undoing_gives_the_same_text_and_nothing_is_lost_between(#[case] text: &str) {
    let edited = lines().add_to(text).unwrap();
    assert!(edited.contains(HANDLER), "{edited}");
    let lines_kept =
        text.lines().filter(|line| !line.contains("plugins = {")).all(|line| edited.contains(line));
    assert!(lines_kept, "{edited}");
    assert_eq!(without_ours(&edited).unwrap(), without_ours(text).unwrap());
    // The encoder ends the last line and writes `\n`; the backup gives the exact bytes.
    assert_eq!(lines().remove_from(&edited).unwrap().trim_end(), text.replace("\r\n", "\n").trim_end());
}

#[rstest]
#[case::version_1_of_containerd_1_6(VERSION_1, (1, 6), true, false)]
#[case::version_2_of_containerd_1_6(DEBIAN, (1, 6), true, false)]
#[case::version_2_of_containerd_1_7(DEBIAN, (1, 7), true, true)]
#[case::another_snapshotter_for_kubernetes(STARGZ, (1, 7), true, true)]
#[case::version_3_of_containerd_2_0(KUBERNETES, (2, 0), true, true)]
#[case::version_3_with_a_list_for_the_transfer_service(UNPACKS, (2, 4), true, true)]
#[case::version_4_with_an_inline_list(UNPACKS_INLINE, (2, 4), true, true)]
#[case::version_4_of_containerd_2_4("version = 4\n", (2, 4), true, true)]
#[case::nobodys_default(KUBERNETES, (2, 4), false, false)]
#[case::the_transfer_service_alone(KUBERNETES, (2, 4), false, true)]
fn the_snapshotter_comes_and_goes_and_containerd_would_have_it(
    #[case] theirs: &str,
    #[case] release: (u32, u32),
    #[case] cri: bool,
    #[case] transfer: bool,
) {
    let lines = lines_with_snapshotter(theirs, release, cri, transfer);
    let edited = lines.add_to(theirs).unwrap();
    assert_eq!(missing(&edited, &lines).unwrap(), None, "{edited}");
    assert_eq!(defaults(&edited).unwrap(), (cri, transfer), "{edited}");
    let plugin = &table(&edited)["proxy_plugins"][SNAPSHOTTER];
    assert_eq!(plugin["address"].as_str(), Some("/run/nixenv/snapshotter.sock"));
    assert_eq!(plugin.get("exports").is_some(), release >= (1, 7), "{edited}");
    assert_eq!(plugin.get("capabilities").is_some(), release >= (1, 7), "{edited}");
    assert_eq!(lines.add_to(&edited).unwrap(), edited);
    assert_eq!(lines.remove_from(&edited).unwrap(), theirs);
}

#[rstest]
#[case::of_containerd_2_0((2, 0), &["overlayfs", "nixenv"])]
#[case::of_containerd_2_3((2, 3), &["overlayfs", "erofs", "nixenv"])]
fn the_list_of_the_transfer_service_keeps_containerds_own_entries(
    #[case] release: (u32, u32),
    #[case] expected: &[&str],
) {
    let edited = lines_with_snapshotter(KUBERNETES, release, false, true).add_to(KUBERNETES).unwrap();
    let list = &table(&edited)["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"];
    let listed: Vec<_> =
        list.as_array().unwrap().iter().map(|unpack| unpack["snapshotter"].as_str().unwrap()).collect();
    assert_eq!(listed, expected);
}

#[rstest]
#[case::kubernetes_has_another_snapshotter(|text: String| text.replace("snapshotter = \"nixenv\" # lazily", "snapshotter = 'zfs'"), "snapshotter = 'zfs'")]
#[case::the_list_of_the_transfer_service_has_grown(
    |text: String| format!("{text}\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'zfs'\n"),
    "overlayfs"
)]
fn what_others_changed_since_stays(#[case] change: fn(String) -> String, #[case] kept: &str) {
    let lines = lines_with_snapshotter(STARGZ, (2, 4), true, true);
    let left = lines.remove_from(&change(lines.add_to(STARGZ).unwrap())).unwrap();
    assert!(left.contains(kept), "{left}");
    assert!(left.contains("zfs") && !left.contains("nixenv"), "{left}");
}

#[rstest]
#[case::the_plugin(&["proxy_plugins", SNAPSHOTTER], "the snapshotter")]
#[case::the_default_of_kubernetes(&["plugins", "io.containerd.cri.v1.images", "snapshotter"], "Kubernetes")]
#[case::the_list(&["plugins", "io.containerd.transfer.v1.local", "unpack_config"], "transfer")]
#[case::the_handler(&["plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", HANDLER], "handler")]
fn what_containerd_does_not_see_is_named(#[case] path: &[&str], #[case] expected: &str) {
    let lines = lines_with_snapshotter(KUBERNETES, (2, 4), true, true);
    let mut dump = table(&lines.add_to(KUBERNETES).unwrap());
    let (name, parents) = path.split_last().unwrap();
    let parent = parents.iter().try_fold(&mut dump, |table, name| table.get_mut(*name)?.as_table_mut());
    parent.unwrap().remove(*name).unwrap();
    let missing = missing(&dump.to_string(), &lines).unwrap().unwrap();
    assert!(missing.contains(expected), "{missing}");
}

#[rstest]
#[case::containerd_1_6(DEBIAN, (1, 6), "1.7")]
#[case::a_config_of_version_1(VERSION_1, (1, 7), "containerd config migrate")]
fn what_cannot_unpack_for_us_is_refused(
    #[case] theirs: &str,
    #[case] release: (u32, u32),
    #[case] expected: &str,
) {
    let error = format!("{:#}", Transfer::new(theirs, release, "amd64").unwrap_err());
    assert!(error.contains(expected), "{error}");
}

#[rstest]
#[case::as_written(|text: String| text, true)]
#[case::changed_since(|text: String| text.replace("IoUid = 0", "IoUid = 1"), false)]
fn the_default_runc_of_containerd_1_is_written_out_and_removed_again(
    #[case] change: fn(String) -> String,
    #[case] removed: bool,
) {
    const DUMP: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n\
        runtime_type = 'io.containerd.runc.v2'\noptions = { IoUid = 0, SystemdCgroup = false }\n";
    let mut lines = lines();
    lines.handler.runc = runc_handler(DUMP).unwrap();
    let edited = lines.add_to(DEBIAN).unwrap();
    assert_eq!(runc_handler(&edited).unwrap(), lines.handler.runc);
    let left = lines.remove_from(&change(edited)).unwrap();
    assert_eq!(left == DEBIAN, removed, "{left}");
}

#[test]
fn a_runc_handler_of_the_nodes_own_is_not_touched() {
    let mut lines = lines();
    lines.handler.runc = runc_handler(KUBERNETES).unwrap();
    let text = KUBERNETES.replace("kubelet's driver", "driver").replace("'io.containerd.runc.v2'", "'other'");
    assert_eq!(lines.remove_from(&lines.add_to(&text).unwrap()).unwrap(), text);
}

#[test]
fn the_options_of_runc_hold_for_ours() {
    let edited = table(&lines().add_to(KUBERNETES).unwrap());
    let ours = &edited["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"][HANDLER];
    assert_eq!(ours["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(ours["options"]["BinaryName"].as_str(), Some("/usr/local/bin/nixenv-runc"));
    assert_eq!(ours["pod_annotations"].as_array().unwrap().len(), 3);
}

#[rstest]
#[case::it_is_there(
    "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.nixenv-runc]\n",
    true
)]
#[case::another_file_replaced_the_section("version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n", false)]
#[case::nothing_reads_it("version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n", true)]
#[case::nothing_reads_it_as_docker_ships_it("disabled_plugins = ['cri']\n", true)]
fn a_merged_config_takes_the_handler(#[case] dump: &str, #[case] taken: bool) {
    assert_eq!(missing(dump, &lines()).unwrap().is_none(), taken);
}

#[test]
fn a_drop_in_holds_our_lines_and_nothing_else() {
    let text = lines_with_snapshotter(KUBERNETES, (2, 4), true, true).drop_in(KUBERNETES).unwrap();
    assert!(text.contains("SystemdCgroup"), "{text}");
    assert!(!text.contains("mine") && !text.contains("runtimes.runc]"), "{text}");
    assert_eq!(missing(&text, &lines_with_snapshotter(KUBERNETES, (2, 4), true, true)).unwrap(), None);
    assert_eq!(without_ours(&text).unwrap(), table("version = 3"));
}

#[test]
fn a_drop_in_repeats_the_list_of_the_transfer_service_which_it_would_replace() {
    let text = lines_with_snapshotter(UNPACKS, (2, 4), false, true).drop_in(UNPACKS).unwrap();
    assert!(text.contains("stargz") && !text.contains("overlayfs"), "{text}");
    assert_eq!(defaults(&text).unwrap(), (false, true));
}

#[test]
fn a_file_that_does_not_exist_gets_the_version_that_containerd_writes() {
    let mut lines = lines();
    lines.handler.version = 3;
    let text = lines.add_to("").unwrap();
    assert!(text.starts_with("version = 3\n"), "{text}");
    assert!(text.contains("cri.v1.runtime"), "{text}");
}

#[rstest]
#[case::unknown_version("version = 5", "version 5")]
#[case::plugins_is_not_a_table("version = 2\nplugins = 1", "'plugins'")]
#[case::not_toml("version = ", "not valid TOML")]
#[case::the_list_is_none(
    "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = 1",
    "unpack_config"
)]
fn what_cannot_be_edited_is_refused(#[case] text: &str, #[case] expected: &str) {
    let plain = lines_with_snapshotter("", (2, 4), false, true);
    let error = format!("{:#}", plain.add_to(text).unwrap_err());
    assert!(error.contains(expected), "{error}");
}

#[rstest]
#[case::no_config_file(None, 2, "/etc/containerd/config.toml")]
#[case::imports_in_containerd_2(Some(KUBERNETES), 2, "/etc/containerd/conf.d/nixenv.toml")]
#[case::imports_in_containerd_1_replace_sections(Some(KUBERNETES), 1, "/etc/containerd/config.toml")]
#[case::no_imports(Some(DEBIAN), 2, "/etc/containerd/config.toml")]
#[case::a_relative_pattern(Some("imports = [\"d/*.toml\"]"), 2, "/etc/containerd/d/nixenv.toml")]
#[case::a_pattern_of_directories(Some("imports = [\"/a/*/*.toml\"]"), 2, "/etc/containerd/config.toml")]
#[case::a_single_file(Some("imports = [\"/a/b.toml\"]"), 2, "/etc/containerd/config.toml")]
fn our_lines_go(#[case] text: Option<&str>, #[case] major: u32, #[case] expected: &str) {
    let config = Path::new("/etc/containerd/config.toml");
    assert_eq!(place(config, text, major).unwrap(), Path::new(expected));
}
