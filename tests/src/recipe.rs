//! Images of several layers, of Debian packages and of what scripts make; made once and kept in the target directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use environment::digest::{Digest, FieldHasher};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::artifacts;
use crate::command::Outcome;

/// How an image is made.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    content: Content,
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
enum Content {
    Package(String),
    Script(String),
}

/// A root with the applets of a static busybox.
const BUSYBOX: &str = r#"
mkdir bin dev etc proc root sys tmp
chmod 1777 tmp
chmod 700 root
cp /bin/busybox bin/busybox
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "bin/$applet"
done
echo root:x:0:0:root:/root:/bin/sh > etc/passwd
echo root:x:0: > etc/group
"#;

impl Recipe {
    /// Starts the recipe of an image that runs: its first layer is busybox.
    #[must_use]
    pub fn busybox(name: &str) -> Self {
        Self::empty(name).script(BUSYBOX)
    }

    /// Starts the recipe of an image without layers.
    #[must_use]
    pub fn empty(name: &str) -> Self {
        Self { name: name.into(), layers: Vec::new() }
    }

    /// Adds a layer with the content of a Debian package, one of those that the test package set is made of.
    #[must_use]
    pub fn package(self, name: &str) -> Self {
        self.layer(Content::Package(name.into()))
    }

    /// Adds a layer with what a bash script makes in an empty directory: everything that OCI's image specification
    /// says of layers, so `.wh.NAME` is a whiteout. When the script makes nothing, the layer is empty.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.layer(Content::Script(script.into()))
    }

    /// Annotates the last layer.
    ///
    /// # Panics
    /// When there is no layer yet.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        let layer = self.layers.last_mut().expect("a layer is annotated");
        layer.annotations.insert(name.into(), value.into());
        self
    }

    fn layer(mut self, content: Content) -> Self {
        self.layers.push(Layer { content, annotations: BTreeMap::new() });
        self
    }

    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The OCI layout of the image, whose one tag is `latest`; made if it is not there yet.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn layout(&self) -> PathBuf {
        let images = artifacts::target().join("images");
        fs::create_dir_all(&images).expect("the target directory can be written");
        let lock = File::create(images.join("lock")).expect("the target directory can be written");
        flock(&lock, FlockOperation::LockExclusive).expect("a file can be locked");
        let layout = images.join(format!("{}-{}", self.name, self.digest()));
        if !layout.exists() {
            let new = images.join(format!("new-{}", process::id()));
            // What a test left that was cut short.
            let _ = fs::remove_dir_all(&new);
            self.make(&new);
            fs::rename(new, &layout).expect("it is a new name");
        }
        layout
    }

    fn digest(&self) -> Digest {
        let hasher = FieldHasher::new("recipe").field(include_str!("recipe.rs"));
        let hasher = self.layers.iter().fold(hasher, |hasher, layer| {
            let hasher = match &layer.content {
                Content::Package(name) => {
                    hasher.field("package").field(package(name).as_os_str().as_encoded_bytes())
                }
                Content::Script(script) => hasher.field("script").field(script),
            };
            hasher.field(format!("{:?}", layer.annotations))
        });
        hasher.finish()
    }

    fn make(&self, layout: &Path) {
        let work = layout.join("work");
        fs::create_dir_all(layout.join("blobs/sha256")).expect("the target directory can be written");
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            fs::create_dir(&work).expect("the target directory can be written");
            layer.content.make(&work);
            diff_ids.push(format!("sha256:{}", Digest::of(&read(&work.join("layer.tar")))));
            Outcome::of(Command::new("gzip").args(["--no-name", "--fast"]).arg(work.join("layer.tar")))
                .succeeds();
            let mut descriptor = add(layout, "layer.v1.tar+gzip", &read(&work.join("layer.tar.gz")));
            if !layer.annotations.is_empty() {
                descriptor["annotations"] = json!(layer.annotations);
            }
            layers.push(descriptor);
            fs::remove_dir_all(&work).expect("it is ours");
        }
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = add(layout, "config.v1+json", config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut manifest = add(layout, "manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        write(&layout.join("index.json"), index.to_string().as_bytes());
        write(&layout.join("oci-layout"), br#"{ "imageLayoutVersion": "1.0.0" }"#);
    }
}

impl Content {
    /// Writes `layer.tar` in a directory that is empty.
    fn make(&self, work: &Path) {
        let tar = work.join("layer.tar");
        let mut command = Command::new("bash");
        let script = match self {
            Self::Package(name) => {
                command.env("PACKAGE", package(name));
                r#"dpkg-deb --fsys-tarfile "$PACKAGE" > layer.tar"#
            }
            Self::Script(script) => {
                command.env("SCRIPT", script);
                r#"mkdir root && cd root && bash -euc "$SCRIPT" && cd ..
                names=. && [ -n "$(ls -A root)" ] || names=--files-from=/dev/null
                tar --create --file=layer.tar --format=posix --pax-option=delete=atime,delete=ctime --sort=name \
                    --numeric-owner --sparse --xattrs --xattrs-include='*' --directory=root "$names""#
            }
        };
        Outcome::of(command.args(["-euc", &format!("umask 022\n{script}")]).current_dir(work)).succeeds();
        assert!(tar.exists(), "{} was not written", tar.display());
    }
}

/// The file of a Debian package that `tests/packages/build` has downloaded.
fn package(name: &str) -> PathBuf {
    let debs = artifacts::packages().join("debs");
    let entries =
        fs::read_dir(&debs).unwrap_or_else(|error| panic!("cannot read {}: {error}", debs.display()));
    let found = entries.map(|entry| entry.expect("it is listed").path()).find(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('_')) && file.ends_with(".deb")
    });
    found.unwrap_or_else(|| panic!("there is no {name} in {}; see tests/packages/debs", debs.display()))
}

/// Adds a blob, and returns its descriptor.
fn add(layout: &Path, media_type: &str, content: &[u8]) -> Value {
    let digest = Digest::of(content);
    write(&layout.join("blobs/sha256").join(digest.to_string()), content);
    json!({
        "mediaType": format!("application/vnd.oci.image.{media_type}"),
        "digest": format!("sha256:{digest}"),
        "size": content.len(),
    })
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
