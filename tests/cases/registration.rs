//! The snapshotter in the configurations of containerd and nerdctl.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::containerd::{Release, Snapshotter};
use e2e::node::{Node, Parts, on_a_node, on_a_node_of};
use e2e::recipe::Recipe;
use e2e::service::Service;
use rstest::rstest;

/// Debian's own configuration.
const DEBIAN: &str = include_str!("../../install/tests/containerd-debian-12.toml");

/// Where nerdctl has its settings.
const NERDCTL: &str = "/etc/nerdctl/nerdctl.toml";

/// A containerd beside the node's own, which has all of its plugins.
struct Whole {
    config: String,
    address: String,
    before: String,
}

impl Whole {
    /// Writes its configuration: what a version needs, then `more`.
    fn configure(node: &Node, version: u32, more: &str) -> Self {
        let directory = node.directory("whole");
        // A path in the test's directory would be too long for a socket.
        let address = "/run/whole.sock".to_owned();
        let sockets = match version {
            4 => format!(
                "[plugins.'io.containerd.server.v1.grpc']\naddress = '{address}'\n\
                 [plugins.'io.containerd.server.v1.ttrpc']\naddress = '{address}.ttrpc'\n"
            ),
            _ => format!("[grpc]\naddress = '{address}'\n"),
        };
        let [root, state] = ["root", "state"].map(|name| directory.join(name).display().to_string());
        let before = format!("version = {version}\nroot = '{root}'\nstate = '{state}'\n{more}\n{sockets}");
        let config = directory.join("config.toml");
        fs::write(&config, &before).expect("the node is ours");
        Self { config: config.display().to_string(), address, before }
    }

    fn start(&self, node: &Node, release: Release) -> Service {
        let mut command = Command::new(release.daemon());
        let directory = Path::new(&self.config).parent().expect("it lies in a directory");
        fs::create_dir_all(directory.join("log")).expect("the node is ours");
        let mut service = Service::start(directory, "containerd", command.args(["--config", &self.config]));
        service.wait_until(|| node.ctr(["--address", &self.address, "version"]).status.success());
        service
    }

    fn ctr(&self, node: &Node, arguments: &[&str]) -> String {
        node.ctr(["--address", &self.address].iter().chain(arguments).copied()).succeeds()
    }
}

/// Expects that a plugin of this type and id has started.
#[track_caller]
fn has_started(plugins: &str, kind: &str, id: &str) {
    let row = plugins.lines().find(|row| {
        let fields: Vec<_> = row.split_whitespace().collect();
        fields.starts_with(&[kind, id])
    });
    assert!(row.is_some_and(|row| row.trim_end().ends_with("ok")), "{kind} {id} in:\n{plugins}");
}

#[rstest]
#[case::version_2_of_containerd_1_6(Release::Debian, 2, "")]
#[case::version_2_of_containerd_2(Release::Pinned, 2, "")]
#[case::version_3_of_containerd_2(Release::Pinned, 3, "imports = ['d/*.toml']")]
#[case::version_4_of_containerd_2(Release::Pinned, 4, "")]
fn containerd_starts_with_the_snapshotter_as_its_default(
    #[case] release: Release,
    #[case] version: u32,
    #[case] more: &str,
) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        let whole = Whole::configure(node, version, more);
        let install = ["install", "--no-start", "--containerd-config", &whole.config];
        node.nixenv(install.into_iter().chain(["--default-snapshotter", "nerdctl,cri"])).succeeds();
        assert_eq!(
            fs::read_to_string(&whole.config).is_ok_and(|text| text == whole.before),
            !more.is_empty(),
            "only a drop-in leaves the file as it is"
        );

        let service = whole.start(node, release);
        let plugins = whole.ctr(node, &["plugins", "list"]);
        has_started(&plugins, "io.containerd.snapshotter.v1", "nixenv");
        has_started(&plugins, "io.containerd.grpc.v1", "cri");
        let dump =
            Command::new(release.daemon()).args(["--config", &whole.config, "config", "dump"]).output();
        let dump = String::from_utf8(dump.expect("containerd runs").stdout).expect("it is TOML");
        assert!(
            dump.contains("snapshotter = 'nixenv'") || dump.contains("snapshotter = \"nixenv\""),
            "{dump}"
        );
        let images = Path::new(&whole.config).with_file_name("root/io.containerd.snapshotter.v1.nixenv");
        // What containerd 1.6 calls the directory of images, be it there or not.
        assert_eq!(images.join("metadata.db").exists(), release == Release::Debian);
        if release == Release::Pinned {
            has_started(&plugins, "io.containerd.cri.v1", "images");
            has_started(&plugins, "io.containerd.transfer.v1", "local");
            let details = whole.ctr(node, &["plugins", "list", "--detailed", "id==nixenv"]);
            for expected in ["/var/lib/nixenv/snapshotter", "remap-ids"] {
                assert!(details.contains(expected), "'{expected}' is missing in:\n{details}");
            }
            assert!(!details.contains("rebase"), "{details}");
            let registry = node.start_registry();
            let image = registry.push(&Recipe::busybox("pulled"));
            // Not by `--local`: through the transfer service, which unpacks for those alone that it is configured for.
            for snapshotter in ["nixenv", "overlayfs"] {
                let options = ["images", "pull", "--plain-http", "--snapshotter", snapshotter, &image];
                whole.ctr(node, &options);
                let checked = whole.ctr(node, &["images", "check", "--snapshotter", snapshotter]);
                assert!(checked.trim_end().ends_with("true"), "not unpacked in {snapshotter}:\n{checked}");
            }
            whole.ctr(node, &["images", "remove", "--sync", &image]);
        }
        drop(service);

        let again = node.nixenv(["install", "--no-start", "--containerd-config", &whole.config]).succeeds();
        assert!(again.contains("nothing to change"), "{again}");
        node.nixenv(["uninstall"]).succeeds();
        assert_eq!(fs::read_to_string(&whole.config).expect("it stays"), whole.before);
        assert!(!Path::new(NERDCTL).exists());
        assert!(images.symlink_metadata().is_err());
    });
}

#[rstest]
#[case::pinned_containerd(Release::Pinned)]
#[case::debians_containerd(Release::Debian)]
fn nerdctl_uses_the_snapshotter_by_default_until_that_is_taken_back(#[case] release: Release) {
    on_a_node_of(Parts { release, ..Parts::default() }, |node| {
        let settings = "debug = false # quiet\nsnapshotter = 'overlayfs'";
        fs::create_dir_all("/etc/nerdctl").expect("the node is ours");
        fs::write(NERDCTL, settings).expect("the node is ours");
        let driver = || node.nerdctl(["info", "--format", "{{.Driver}}"]).succeeds().trim().to_owned();
        assert_eq!(driver(), "overlayfs");
        node.nixenv(["install", "--no-start", "--default-snapshotter", "nerdctl"]).succeeds();
        assert_eq!(driver(), "nixenv");
        node.nerdctl(["run", "--rm", "--net", "none", "busybox", "echo", "unpacked anew"])
            .prints("unpacked anew");
        assert!(!node.on(Snapshotter::Nixenv).keys().is_empty());
        let found = node.nixenv(["doctor"]).succeeds();
        assert!(found.contains("the default of nerdctl"), "{found}");
        node.nixenv(["install", "--no-start", "--default-snapshotter", "none"]).succeeds();
        assert_eq!(fs::read_to_string(NERDCTL).expect("it stays"), settings);
    });
}

#[test]
fn what_the_transfer_service_of_containerd_1_6_cannot_do_is_refused() {
    on_a_node_of(Parts { release: Release::Debian, ..Parts::default() }, |node| {
        let whole = Whole::configure(node, 2, DEBIAN.strip_prefix("version = 2").expect("it has a version"));
        let install = ["install", "--no-start", "--containerd-config", &whole.config];
        node.nixenv(install.into_iter().chain(["--default-snapshotter", "transfer"]))
            .fails_saying(&["since 1.7"]);
        assert_eq!(fs::read_to_string(&whole.config).expect("it stays"), whole.before);
    });
}

#[test]
fn uninstall_names_those_who_use_the_snapshotter_and_leaves_it_to_them() {
    on_a_node(|node| {
        let on = node.on(Snapshotter::Nixenv);
        on.nerdctl(["run", "--detach", "--name", "user", "--net", "none", "busybox", "sleep", "600"])
            .succeeds();
        let id = node.nerdctl(["inspect", "--format", "{{.ID}}", "user"]).succeeds();
        node.nixenv(["uninstall"]).fails_saying(&["containers use the snapshotter", id.trim(), "--force"]);
        on.nerdctl(["rm", "--force", "user"]).succeeds();
        node.nixenv(["uninstall", "--purge"]).fails_saying(&[
            "images are in the snapshotter",
            "docker.io/library/busybox:latest",
            "--force",
        ]);
        on.nerdctl(["run", "--rm", "--net", "none", "busybox", "echo", "still there"]).prints("still there");
        let said = node.nixenv(["uninstall"]).succeeds();
        assert!(said.contains("docker.io/library/busybox:latest"), "{said}");
        assert!(Path::new("/var/lib/nixenv/snapshotter/metadata.db").exists(), "it was not to be purged");
    });
}

#[test]
fn doctor_sees_that_containerd_does_not_know_the_snapshotter() {
    on_a_node(|node| {
        let found = node.nixenv(["doctor"]).succeeds();
        for expected in ["containerd knows it as nixenv", "nobody's default", "was mounted and written to"] {
            assert!(found.contains(expected), "'{expected}' is missing in:\n{found}");
        }
        fs::remove_file("/run/nixenv/snapshotter.sock").expect("the daemon listens there");
        let found = node.nixenv(["doctor"]).stdout;
        assert!(found.contains("does not answer at /run/nixenv/snapshotter.sock"), "{found}");
    });
}
