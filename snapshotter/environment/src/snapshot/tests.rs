use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

struct Project(tempfile::TempDir);

impl Project {
    /// Files by path and content; `-> target` makes a link, `/` at the end a directory.
    fn new(files: &[(&str, &str)]) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        for (path, content) in files {
            project.put(path, content);
        }
        project
    }

    fn put(&self, path: &str, content: &str) {
        let full = self.0.path().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).unwrap();
            return;
        }
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&full);
        match content.strip_prefix("-> ") {
            Some(target) => symlink(target, full).unwrap(),
            None => fs::write(full, content).unwrap(),
        }
    }

    fn namespace(&self) -> Namespace {
        Namespace::of_directory(self.0.path()).unwrap()
    }

    fn entry(&self, path: &str) -> Entry {
        Entry::find(&self.namespace(), Path::new(path), &ConfigLimits::default()).unwrap().unwrap()
    }

    fn take(&self, path: &str) -> Result<Snapshot, SnapshotError> {
        Snapshot::take(&self.namespace(), &self.entry(path), &ConfigLimits::default())
    }

    fn holds(&self, path: &str, inputs: &Inputs) -> bool {
        inputs.check(&self.namespace(), &self.entry(path)).is_ok()
    }
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.inputs.0.iter().map(|(path, _)| path.as_str()).collect()
}

#[rstest]
#[case::an_entry_alone("{}", &[], &["config.nix"])]
#[case::imports_recursively("import ./a.nix", &[("a.nix", "import ./b.nix"), ("b.nix", "1"), ("c.nix", "2")],
    &["a.nix", "b.nix", "config.nix"])]
#[case::imports_in_a_circle("import ./a.nix", &[("a.nix", "import ./config.nix")], &["a.nix", "config.nix"])]
#[case::a_file_read("builtins.readFile ./x.txt", &[("x.txt", "import ./y.nix"), ("y.nix", "")],
    &["config.nix", "x.txt"])]
#[case::the_default_of_a_directory("import ./d", &[("d/default.nix", "./e.txt"), ("d/e.txt", ""), ("d/f.txt", "")],
    &["config.nix", "d/default.nix", "d/e.txt"])]
#[case::a_directory_read("builtins.readDir ./d", &[("d/x", ""), ("d/s/y", ""), ("d/empty/", ""), ("z", "")],
    &["config.nix", "d", "d/empty", "d/s", "d/s/y", "d/x"])]
#[case::without_git("./.", &[(".git/HEAD", "")], &[".", "config.nix"])]
#[case::a_dynamic_path("./d/${x}.nix", &[("d/x.nix", "../e.nix"), ("e.nix", "")],
    &["config.nix", "d", "d/x.nix", "e.nix"])]
#[case::an_added_name("./d/x + \".nix\"", &[("d/x.nix", "")], &["config.nix", "d", "d/x", "d/x.nix"])]
#[case::something_absent("builtins.pathExists ./local.nix", &[], &["config.nix", "local.nix"])]
#[case::below_something_absent("./no/local.nix", &[], &["config.nix", "no/local.nix"])]
#[case::a_link("import ./l.nix", &[("l.nix", "-> s/t.nix"), ("s/t.nix", "./u"), ("s/u", "")],
    &["config.nix", "l.nix", "s/t.nix", "s/u"])]
#[case::a_dangling_link("./l", &[("l", "-> nowhere")], &["config.nix", "l", "nowhere"])]
#[case::a_link_out_of_a_directory_read("./d", &[("d/result", "-> /nix/store"), ("d/up", "-> ../../../..")],
    &["config.nix", "d", "d/result", "d/up"])]
#[case::a_link_to_the_directory_around("./d", &[("d/up", "-> .")], &["config.nix", "d", "d/up"])]
fn takes(#[case] text: &str, #[case] files: &[(&str, &str)], #[case] expected: &[&str]) {
    let project = Project::new(files);
    project.put("config.nix", text);
    let snapshot = project.take("config.nix").unwrap();
    assert_eq!(names(&snapshot), expected);
    assert!(project.holds("config.nix", &snapshot.inputs));
}

#[rstest]
#[case::content("import ./a.nix", "a.nix", "changed")]
#[case::a_name_in_a_directory("builtins.readDir ./d", "d/new", "")]
#[case::a_name_deep_in_a_directory("./.", "d/e/new", "")]
#[case::something_absent("builtins.pathExists ./local.nix", "local.nix", "")]
#[case::a_retargeted_link("./link", "link", "-> a.nix")]
#[case::a_file_in_place_of_a_link("./link", "link", "1")]
#[case::a_link_in_place_of_a_file("./a.nix", "a.nix", "-> d/b")]
#[case::behind_a_link("./link", "d/b", "changed")]
fn notices_and_forgives(#[case] text: &str, #[case] path: &str, #[case] content: &str) {
    let files = [("config.nix", text), ("a.nix", "1"), ("d/b", "2"), ("d/e/f", "3"), ("link", "-> d/b")];
    let project = Project::new(&files);
    let before = project.take("config.nix").unwrap();
    project.put(path, content);
    assert!(!project.holds("config.nix", &before.inputs));
    assert_ne!(project.take("config.nix").unwrap().digest, before.digest);
    fs::remove_file(project.0.path().join(path)).unwrap();
    for (path, content) in files {
        project.put(path, content);
    }
    assert!(project.holds("config.nix", &before.inputs));
    assert_eq!(project.take("config.nix").unwrap().digest, before.digest);
}

#[test]
fn the_place_does_not_count() {
    let files = [("a/b/config.nix", "import ../lib.nix"), ("a/lib.nix", "1")];
    let one = Project::new(&files).take("a/b/config.nix").unwrap();
    let files = [("z/y/b/config.nix", "import ../lib.nix"), ("z/y/lib.nix", "1")];
    let other = Project::new(&files);
    assert_eq!(one.digest, other.take("z/y/b/config.nix").unwrap().digest);
    assert_eq!(one.entry, "b/config.nix");
    assert!(other.holds("z/y/b/config.nix", &one.inputs));
}

#[test]
fn config_map_links_do_not_count() {
    let files = |stamp: &str| {
        let project =
            Project::new(&[("..data", &format!("-> {stamp}")), ("config.nix", "-> ..data/config.nix")]);
        project.put(&format!("{stamp}/config.nix"), "import ./lib.nix");
        project.put(&format!("{stamp}/lib.nix"), "1");
        project
    };
    let (one, other) = (files("..2026_01"), files("..2026_02"));
    let snapshot = one.take("config.nix").unwrap();
    assert_eq!(snapshot.digest, other.take("config.nix").unwrap().digest);
    assert!(other.holds("config.nix", &snapshot.inputs));
}

#[test]
fn a_literal_that_leaves_the_place_is_refused() {
    let project = Project::new(&[("config.nix", "builtins.readFile ../../etc/shadow")]);
    let error = project.take("config.nix").unwrap_err();
    assert!(matches!(error, SnapshotError::LookUpLiteral { .. }), "{error}");
    let project = Project::new(&[("config.nix", "./link"), ("link", "-> /etc/shadow")]);
    assert!(matches!(project.take("config.nix"), Err(SnapshotError::LookUpLiteral { .. })));
}

#[test]
fn limits_hold_before_a_byte_is_read() {
    let project = Project::new(&[("config.nix", "./big")]);
    let big = fs::File::create(project.0.path().join("big")).unwrap();
    big.set_len(1 << 40).unwrap();
    assert!(matches!(project.take("config.nix"), Err(SnapshotError::TooLarge { .. })));
    let project = Project::new(&[("config.nix", "./.")]);
    for index in 0..1000 {
        project.put(&index.to_string(), "");
    }
    assert!(matches!(project.take("config.nix"), Err(SnapshotError::TooMany { .. })));
}

#[test]
fn a_fifo_is_refused_at_once() {
    let project = Project::new(&[("config.nix", "./.")]);
    let path = project.0.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert!(matches!(project.take("config.nix"), Err(SnapshotError::Special { .. })));
    let error = Entry::find(&project.namespace(), Path::new("fifo"), &ConfigLimits::default()).unwrap_err();
    assert!(error.to_string().contains("a FIFO"), "{error}");
}

#[rstest]
#[case::same("/a/b", "/a/b", ".")]
#[case::below("/a", "/a/b/c", "b/c")]
#[case::beside("/a/b", "/a/c", "../c")]
#[case::far("/a/b", "/x", "../../x")]
#[case::from_the_root("/", "/x", "x")]
fn relative_paths(#[case] base: &str, #[case] path: &str, #[case] expected: &str) {
    assert_eq!(relative(Path::new(base), Path::new(path)), expected);
}

/// One random change to a project.
fn changes() -> impl Strategy<Value = (String, String)> {
    let path = prop::sample::select(vec![
        "config.nix",
        "a.nix",
        "d/default.nix",
        "d/x",
        "d/e/y",
        "new.nix",
        "d/new",
    ]);
    let content = prop::sample::select(vec![
        "1",
        "./a.nix",
        "import ./d",
        "./d + \"/x\"",
        "./e",
        "-> a.nix",
        "-> d",
        "-> d/x",
    ]);
    (path.prop_map(str::to_owned), content.prop_map(str::to_owned))
}

proptest! {
    /// The claim on which a warm start rests: observations hold if and only if a new snapshot would be the same.
    #[test]
    fn inputs_hold_exactly_while_the_snapshot_is_the_same(
        before in prop::collection::vec(changes(), 0..6),
        after in prop::collection::vec(changes(), 0..3),
    ) {
        let project = Project::new(&[
            ("config.nix", "[ ./a.nix (import ./d) (builtins.pathExists ./new.nix) ]"),
            ("a.nix", "1"),
            ("d/default.nix", "2"),
            ("d/e/y", "3"),
        ]);
        let apply = |changes: &[(String, String)]| {
            for (path, content) in changes {
                let full = project.0.path().join(path);
                // A link in place of a directory is left; writing through links is not this test's matter.
                let through_link = full.parent().is_some_and(|parent| parent.is_symlink());
                if !full.is_dir() && !through_link {
                    project.put(path, content);
                }
            }
        };
        apply(&before);
        let find = || Entry::find(&project.namespace(), Path::new("config.nix"), &ConfigLimits::default());
        let Ok(Some(entry)) = find() else { return Ok(()) };
        let Ok(old) = Snapshot::take(&project.namespace(), &entry, &ConfigLimits::default()) else { return Ok(()) };
        apply(&after);
        let identity = (entry.name().to_owned(), entry.digest());
        let Ok(Some(entry)) = find() else { return Ok(()) };
        // Another name or content of the entry file is another selector: these inputs are not looked at.
        prop_assume!(identity == (entry.name().to_owned(), entry.digest()));
        let holds = old.inputs.check(&project.namespace(), &entry).is_ok();
        let same = Snapshot::take(&project.namespace(), &entry, &ConfigLimits::default())
            .is_ok_and(|new| new.inputs == old.inputs && new.digest == old.digest);
        prop_assert_eq!(holds, same);
    }
}
