//! Runs a test again in namespaces, mounts and cgroups of its own.
//!
//! The first run of a test only starts the second one, and cleans up after it. The second is in new mount, PID,
//! network, IPC, UTS and cgroup namespaces: when it ends, however it ends, the kernel kills every process that it
//! left and removes every mount and network device.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::artifacts;

/// Set in the second run: the test's directory.
const DIRECTORY: &str = "NIXENV_E2E_DIRECTORY";

/// Keeps a failed test's directory when it is set.
const KEEP: &str = "NIXENV_E2E_KEEP";

/// No test may run longer.
const LIMIT: Duration = Duration::from_secs(600);

/// Lines that are shown of each log of a failed test.
const LOG_LINES: usize = 60;

/// Directories of the machine that a test sees, and writes to without changing them.
const COPIED: [&str; 4] = ["etc", "var/lib", "opt", "usr/local"];

/// What the machine may have of nixenv and of its engines, and a test's node begins without.
const ABSENT: [&str; 8] = [
    "etc/nixenv",
    "etc/containerd",
    "etc/cni",
    "etc/nerdctl",
    "usr/local/libexec/nixenv",
    "usr/local/bin/nixenv",
    "usr/local/bin/nixenv-runc",
    "usr/local/bin/nixenv-snapshotter",
];

/// Where the machine may have nixenv's user.
const ACCOUNTS: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Directories that a test has for itself. They are real directories of the disk, because an overlay's upper
/// directory cannot lie on an overlay.
const OWN: [&str; 4] = ["nix", "var/lib/containerd", "var/lib/nerdctl", "var/lib/nixenv"];

/// Runs `test` in isolation; it gets a directory that is removed afterwards.
///
/// # Panics
/// When the test fails, after showing what it and its services said.
pub fn isolated(test: impl FnOnce(&Path)) {
    if let Some(directory) = env::var_os(DIRECTORY) {
        let directory = PathBuf::from(directory);
        enter(&directory);
        return test(&directory);
    }
    let name = test_name();
    let directory = TestDirectory::create(&name);
    let groups = ControlGroups::create(&format!("nixenv-e2e-{}", directory.id()));
    // The inner shell is PID 1: it reaps the processes whose parents have gone.
    let output = Command::new("timeout")
        .args(["--signal=KILL", &LIMIT.as_secs().to_string(), "bash", "-c"])
        .arg(
            r#"for group in $0; do echo 0 > "$group/cgroup.procs"; done
            exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child --mount-proc \
                bash -c '"$@"; exit $?' test "$@""#,
        )
        .arg(groups.0.iter().map(|group| group.to_str().expect("ASCII")).collect::<Vec<_>>().join(" "))
        .arg(env::current_exe().expect("a program has a path"))
        .args([&name, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(DIRECTORY, &directory.0)
        .env("HOME", directory.0.join("home"))
        .env("TMPDIR", directory.0.join("tmp"))
        .output()
        .expect("timeout, bash and unshare are installed");
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        directory.show_logs();
        if output.status.signal().is_some() || output.status.code() == Some(137) {
            panic!("{name} was killed; no test may run longer than {LIMIT:?}");
        }
        panic!("{name} failed in its namespaces; see above");
    }
}

/// The name of the running test, which is the name of its thread, or libtest's argument when there is no thread.
fn test_name() -> String {
    match thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => env::args()
            .skip(1)
            .find(|argument| !argument.starts_with('-'))
            .expect("in a single thread, run one test by its --exact name"),
    }
}

/// A directory on the disk for one run of one test.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn create(test: &str) -> Self {
        let directory =
            artifacts::target().join(format!("e2e/{}-{}", process::id(), test.replace("::", ".")));
        for name in ["home", "tmp", "log", "work"].into_iter().chain(OWN) {
            create(&directory.join(name));
        }
        Self(directory)
    }

    fn id(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).expect("made of ASCII")
    }

    fn show_logs(&self) {
        let mut logs: Vec<_> = fs::read_dir(self.0.join("log"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        logs.sort();
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            // containerd tells of each plugin.
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains("level=info")).collect();
            println!("--- {}", log.file_name().unwrap_or_default().display());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                println!("{line}");
            }
        }
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        if thread::panicking() && env::var_os(KEEP).is_some() {
            println!("kept: {}", self.0.display());
            return;
        }
        // A container's directories may nest deeper than the stack of `fs::remove_dir_all`.
        if !Command::new("rm").arg("-rf").arg(&self.0).status().is_ok_and(|status| status.success()) {
            println!("cannot remove {}", self.0.display());
        }
    }
}

/// One cgroup in every hierarchy, below this process's own.
struct ControlGroups(Vec<PathBuf>);

impl ControlGroups {
    fn create(name: &str) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let groups = hierarchies()
            .into_iter()
            .filter_map(|hierarchy| {
                // "4:memory:/path", and "0::/path" for cgroup v2: cgroups(7).
                let path = own.lines().find_map(|line| {
                    let (_, line) = line.split_once(':')?;
                    line.strip_prefix(&hierarchy.controllers)?.strip_prefix(":/")
                })?;
                let parent = hierarchy.mount_point.join(path);
                let group = parent.join(name);
                create(&group);
                // A cgroup without processors and memory nodes accepts no process: cpusets(7).
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if hierarchy.controllers == "cpuset" {
                        fs::copy(parent.join(file), group.join(file)).expect("cpusets can be inherited");
                    }
                }
                Some(group)
            })
            .collect();
        Self(groups)
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        for group in &self.0 {
            while let Err(error) = remove_group(group) {
                if Instant::now() > deadline {
                    println!("cannot remove the cgroup {}: {error}", group.display());
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// A mounted cgroup hierarchy.
struct Hierarchy {
    mount_point: PathBuf,
    file_system: String,
    /// As `/proc/self/cgroup` has them; none for cgroup v2.
    controllers: String,
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, mount_point, file_system @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else {
                return None;
            };
            let controllers: Vec<&str> = options
                .split(',')
                .filter(|option| {
                    *file_system == *"cgroup"
                        && !["rw", "ro", "nosuid", "nodev", "noexec", "relatime"].contains(option)
                })
                .collect();
            Some(Hierarchy {
                mount_point: mount_point.into(),
                file_system: file_system.into(),
                controllers: controllers.join(","),
            })
        })
        .collect()
}

/// Gives this process's namespaces their own mounts.
fn enter(directory: &Path) {
    let made = |what: &str, result: rustix::io::Result<()>| {
        result.unwrap_or_else(|error| panic!("cannot mount {what}: {error}"));
    };
    let hierarchies = hierarchies();
    made("cgroups", unmount("/sys/fs/cgroup", UnmountFlags::DETACH));
    let unified = hierarchies.iter().any(|hierarchy| hierarchy.mount_point == Path::new("/sys/fs/cgroup"));
    if !unified {
        made("cgroups", mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MountFlags::empty(), None));
    }
    for hierarchy in &hierarchies {
        create(&hierarchy.mount_point);
        let options = std::ffi::CString::new(hierarchy.controllers.as_str()).expect("no NUL");
        made(
            "a cgroup hierarchy",
            mount(
                "cgroup",
                &hierarchy.mount_point,
                &hierarchy.file_system,
                MountFlags::empty(),
                Some(&*options),
            ),
        );
        if unified {
            leave_the_root_group(&hierarchy.mount_point);
        }
    }
    for place in COPIED {
        let layers = directory.join("layers").join(place);
        for layer in ["upper", "work"] {
            create(&layers.join(layer));
        }
        let options = format!("lowerdir=/{place},upperdir={0}/upper,workdir={0}/work", layers.display());
        let options = std::ffi::CString::new(options).expect("no NUL");
        made(place, mount("overlay", format!("/{place}"), "overlay", MountFlags::empty(), Some(&*options)));
    }
    for place in ABSENT {
        let path = Path::new("/").join(place);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        assert!(!path.exists(), "{} cannot be hidden", path.display());
    }
    for accounts in ACCOUNTS {
        let text = fs::read_to_string(accounts).expect("root can read it");
        let others: String = text.split_inclusive('\n').filter(|line| !line.starts_with("nixenv:")).collect();
        fs::write(accounts, others).expect("it is a copy");
    }
    for place in OWN {
        let target = Path::new("/").join(place);
        create(&target);
        made(place, mount_bind(directory.join(place), target));
    }
    made("/run", mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), Some(c"mode=755")));
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "ip of iproute2 is installed");
}

/// Moves every process to a leaf: in cgroup v2 a group with processes has no children with controllers.
fn leave_the_root_group(root: &Path) {
    let leaf = root.join("init");
    create(&leaf);
    for process in fs::read_to_string(root.join("cgroup.procs")).unwrap_or_default().lines() {
        fs::write(leaf.join("cgroup.procs"), process).expect("a process can move to a leaf");
    }
}

fn create(directory: &Path) {
    fs::create_dir_all(directory)
        .unwrap_or_else(|error| panic!("cannot create {}: {error}", directory.display()));
}
