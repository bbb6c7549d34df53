//! What a container sees under `/nix/store`, and what it does not.

use std::path::Path;
use std::process::Command;

use e2e::command::Outcome;
use e2e::node::{EXAMPLE, on_a_node};
use environment::layout::Layout;

/// The closure of the node's only environment, as Nix knows it.
fn closure() -> Vec<String> {
    let roots = std::fs::read_dir(Layout::node().gc_roots()).expect("an environment is rooted");
    let roots = roots.map(|root| root.expect("it can be listed").path());
    // Package sets are rooted in a directory of their own.
    let roots: Vec<_> = roots.filter(|root| root.is_symlink()).collect();
    let [root] = &roots[..] else { panic!("one root is expected: {roots:?}") };
    let query = Outcome::of(Command::new("nix-store").args(["--query", "--requisites"]).arg(root)).succeeds();
    let mut names: Vec<String> =
        query.lines().map(|path| path.trim_start_matches("/nix/store/").to_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_container_sees_exactly_the_closure_and_cannot_write_to_it() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        let listing = node.boot("config.nix", "ls -A /nix/store").succeeds();
        let mut seen: Vec<&str> = listing.lines().collect();
        seen.sort_unstable();
        let closure = closure();
        assert!(seen.len() > 10, "{seen:?}");
        assert_eq!(seen, closure);
        assert!(seen.iter().any(|name| name.contains("-python3-")));

        let other = node.directory("other").join("another-path");
        std::fs::write(&other, "").expect("a file can be written");
        let other = Outcome::of(Command::new("nix-store").arg("--add").arg(&other)).succeeds();
        assert!(Path::new(other.trim()).exists());
        node.boot("config.nix", &format!("test ! -e {} && ls -A /nix", other.trim())).prints("store");

        for write in [
            "touch /nix/store/new",
            "rm -r /nix/store/*-jq-*",
            "echo x > $(command -v jq)",
            "chmod -R u+w /nix/store",
        ] {
            node.boot("config.nix", write).fails_saying(&["Read-only file system"]);
        }
    });
}

#[test]
fn every_file_of_the_closure_is_the_hosts() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        let list = r#"
            find() { /bin/busybox find "$@"; }
            find "$@" ! -type f ! -type l
            find "$@" -type f -exec /bin/busybox sha256sum {} +
            find "$@" -type l -exec /bin/busybox sh -c 'for l; do echo "$l -> $(/bin/busybox readlink "$l")"; done' _ {} +
        "#;
        let lines = |output: String| output.lines().map(str::to_owned).collect::<Vec<_>>();
        let mut seen = lines(node.boot("config.nix", &format!("set -- /nix/store/*\n{list}")).succeeds());
        let paths: Vec<String> = closure().iter().map(|name| format!("/nix/store/{name}")).collect();
        let script = format!("set -- {}\n{list}", paths.join(" "));
        let host = [
            "run",
            "--rm",
            "--net",
            "none",
            "-v",
            "/nix/store:/nix/store:ro",
            "busybox",
            "sh",
            "-c",
            &script,
        ];
        let mut host = lines(node.nerdctl(host).succeeds());
        seen.sort();
        host.sort();
        assert!(seen.len() > 1000, "{}", seen.len());
        let differing: Vec<_> = seen.iter().zip(&host).filter(|(seen, host)| seen != host).take(3).collect();
        assert!(
            seen.len() == host.len() && differing.is_empty(),
            "{} {} {differing:?}",
            seen.len(),
            host.len()
        );
    });
}

#[test]
fn the_images_own_files_are_unchanged() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        // The engine mounts something at what is left out, and the root itself has got a directory.
        let list = "/bin/busybox find / -xdev -mindepth 1 ! -path '/nix*' -exec /bin/busybox stat -c '%n %f %s %u %g %Y' {} + \
                    | grep -v -E '^/(dev|proc|sys|etc|etc/hosts|etc/hostname|etc/resolv.conf) '; \
                    find /bin /etc/passwd -type f -exec sha256sum {} +; ls -A /";
        let plain = node.nerdctl(["run", "--rm", "--net", "none", "busybox", "sh", "-c", list]).succeeds();
        let environment = node.boot("config.nix", list).succeeds();
        let (plain, environment): (Vec<&str>, Vec<&str>) =
            (plain.lines().collect(), environment.lines().collect());
        let only_here: Vec<_> = environment.iter().filter(|line| !plain.contains(line)).collect();
        let only_there: Vec<_> = plain.iter().filter(|line| !environment.contains(line)).collect();
        assert_eq!(only_here, [&"nix"]);
        assert!(only_there.is_empty(), "{only_there:?}");
    });
}

#[test]
fn an_image_with_a_store_of_its_own_keeps_it() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        let own = "nix/store/00000000000000000000000000000000-own/file";
        node.load(node.image("with-store").file(own, "the image's own").file("nix/var/kept", ""));
        let script =
            format!("cat /{own}; echo; ls /nix/var; python3 -c 'print(42)'; ls -A /nix/store | wc -l");
        let run = [
            "run",
            "--rm",
            "--net",
            "none",
            "--annotation",
            "nixenv=config.nix",
            "with-store",
            "sh",
            "-c",
            &script,
        ];
        let output = node.nerdctl(run).succeeds();
        assert_eq!(output, format!("the image's own\nkept\n42\n{}\n", closure().len() + 1));
    });
}
