//! What there is on a node: files, mounts, processes. What a start that was cut short leaves shows in it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use environment::layout::Layout;

/// No process of a start may take longer to end.
const SETTLE: Duration = Duration::from_secs(10);

/// Digests and random names are written as `*`, so that two starts of different configs leave the same.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

impl Inventory {
    /// What there is now: files of nixenv's, Nix's GC roots, every mount and every process.
    ///
    /// # Panics
    /// When `/proc` is not mounted.
    #[must_use]
    pub fn take(directory: &Path) -> Self {
        let layout = Layout::node();
        let mut inventory = Self::default();
        // Where the Nix daemon registers roots for its clients.
        let indirect = layout.gc_roots().with_file_name("auto");
        for place in [layout.state(), layout.run(), layout.gc_roots(), indirect, directory.join("tmp")] {
            inventory.add_files(&place);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        for mount in mounts.lines() {
            let mut fields = mount.split(' ');
            let (_, mount_point, file_system) = (fields.next(), fields.next(), fields.next());
            inventory.add(format!(
                "mount {} {}",
                file_system.unwrap_or_default(),
                mount_point.unwrap_or_default()
            ));
        }
        for process in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            let Ok(status) = fs::read_to_string(process.path().join("status")) else { continue };
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(name), Some(state)) = (field("Name:"), field("State:")) {
                // PID 1 has not reaped it yet; or it is the tests' own.
                if !state.starts_with('Z') && name != "strace" {
                    inventory.add(format!("process {name}"));
                }
            }
        }
        inventory
    }

    /// What has come since `before`, and, with a minus, what has gone.
    #[must_use]
    pub fn since(&self, before: &Self) -> Changes {
        let mut changes = Changes::default();
        self.0.iter().for_each(|(what, count)| changes.add(what, count.cast_signed()));
        before.0.iter().for_each(|(what, count)| changes.add(what, -count.cast_signed()));
        changes
    }

    /// What has changed on a node since `before`, as soon as that is `expected`; processes take a moment to end.
    #[must_use]
    pub fn settle(directory: &Path, before: &Self, expected: &Changes) -> Changes {
        let deadline = Instant::now() + SETTLE;
        loop {
            let changes = Self::take(directory).since(before);
            if changes == *expected || Instant::now() > deadline {
                return changes;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn add(&mut self, what: String) {
        *self.0.entry(without_digests(&what)).or_default() += 1;
    }

    fn add_files(&mut self, place: &Path) {
        let mut directories: Vec<PathBuf> = vec![place.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                self.add(format!("file {}", path.display()));
                // What is below a mount point is not nixenv's.
                let is_view = directory == Layout::node().mount_points();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_view {
                    directories.push(path);
                }
            }
        }
    }
}

/// The difference of two inventories.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<String, isize>);

impl Changes {
    /// These changes without the `expected` ones; with a minus what was expected and has not come.
    #[must_use]
    pub fn besides(&self, expected: &Self) -> Self {
        let mut changes = self.clone();
        expected.0.iter().for_each(|(what, count)| changes.add(what, -count));
        changes
    }

    fn add(&mut self, what: &str, count: isize) {
        let sum = self.0.entry(what.to_owned()).or_default();
        *sum += count;
        if *sum == 0 {
            self.0.remove(what);
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| writeln!(f, "{count:+} {what}"))
    }
}

/// Writes `*` for each run of at least 26 letters and digits: SHA-256 in any base, and what Nix names its roots.
fn without_digests(text: &str) -> String {
    let mut result = String::new();
    let mut word = String::new();
    for character in text.chars().chain(['\0']) {
        if character.is_ascii_alphanumeric() {
            word.push(character);
        } else {
            result.push_str(if word.len() >= 26 { "*" } else { &word });
            word.clear();
            result.push(character);
        }
    }
    result.pop();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_hidden_and_changes_are_counted() {
        let mut before = Inventory::default();
        before.add("file /a".into());
        let mut after = before.clone();
        after.add("file /nix/store/lra0ad8sz0wz5d9hpzwkmk6mgiq5r8ar-bash-5.2.15".into());
        after.add("file /nix/store/z25ylrlmgpm53pcff9w8n8zcv92fq53b-bash-5.2.15".into());
        assert_eq!(format!("{:?}", after.since(&before)), "+2 file /nix/store/*-bash-5.2.15\n");
        assert_eq!(format!("{:?}", before.since(&after)), "-2 file /nix/store/*-bash-5.2.15\n");
    }
}
