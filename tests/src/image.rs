//! Minimal images, made here: one layer with a static busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use environment::digest::Digest;
use serde_json::json;

use crate::command::Outcome;

/// An image to be made.
#[derive(Debug)]
pub struct Image {
    name: String,
    environment: Vec<String>,
    root: PathBuf,
}

impl Image {
    /// Starts an image of this name with busybox, `/etc/passwd` and the usual `PATH`.
    ///
    /// # Panics
    /// When its files cannot be written.
    #[must_use]
    pub fn busybox(directory: &Path, name: &str) -> Self {
        let root = directory.join("images").join(name).join("root");
        for path in ["bin", "etc", "tmp"] {
            fs::create_dir_all(root.join(path)).expect("an image's directory can be made");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in Outcome::of(Command::new("/bin/busybox").arg("--list")).succeeds().lines() {
            if applet != "busybox" {
                symlink("busybox", root.join("bin").join(applet)).expect("a link can be made");
            }
        }
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Self { name: name.into(), environment: vec![path.into()], root }.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n",
        )
    }

    /// Adds a variable to the image's `Env`.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Adds a file.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(self, path: &str, content: &str) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory"))
            .expect("a directory can be made");
        fs::write(path, content).expect("a file can be written");
        self
    }

    /// Makes the image, as `docker save` writes it: <https://github.com/moby/docker-image-spec> v1.2.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn archive(self) -> PathBuf {
        let directory = self.root.parent().expect("made above");
        let tar = |output: &str, from: &Path, names: &[&str]| {
            Outcome::of(
                Command::new("tar").current_dir(directory).args(["-cf", output, "-C"]).arg(from).args(names),
            )
            .succeeds();
        };
        tar("layer.tar", &self.root, &["."]);
        let layer = fs::read(directory.join("layer.tar")).expect("just written");
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Env": self.environment, "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", Digest::of(&layer))] },
        })
        .to_string();
        let config_name = format!("{}.json", Digest::of(config.as_bytes()));
        fs::write(directory.join(&config_name), config).expect("a file can be written");
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [format!("{}:latest", self.name)],
            "Layers": ["layer.tar"],
        }]);
        fs::write(directory.join("manifest.json"), manifest.to_string()).expect("a file can be written");
        tar("image.tar", directory, &[&config_name, "manifest.json", "layer.tar"]);
        directory.join("image.tar")
    }
}
