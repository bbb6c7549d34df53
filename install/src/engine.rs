//! Starts containers as users do, with nerdctl or ctr.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

/// An engine that is in front of containerd. Each reads `CONTAINERD_ADDRESS` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// nerdctl.
    Nerdctl,
    /// containerd's own ctr.
    Ctr,
}

/// One container to start.
pub struct Start<'a> {
    /// The image.
    pub image: &'a str,
    /// The config to annotate it with.
    pub config: Option<&'a Path>,
    /// The OCI runtime to use instead of the default.
    pub runtime: Option<&'a Path>,
    /// A number that no other start of this run has.
    pub number: usize,
}

/// Where ctr, which hands no working directory to the runtime, shows the config's directory.
const MOUNT_POINT: &str = "/nixenv";

impl Engine {
    /// nerdctl if it is there, else ctr.
    pub fn find() -> Result<Self> {
        let answers = |engine: &Self| {
            let mut version = Command::new(engine.program());
            version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            version.status().is_ok_and(|status| status.success())
        };
        [Self::Nerdctl, Self::Ctr].into_iter().find(answers).context("neither nerdctl nor ctr is on PATH")
    }

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Nerdctl => "nerdctl",
            Self::Ctr => "ctr",
        }
    }

    /// Starts a container that runs `true`, and returns how long that took until it was gone again.
    pub fn time(self, start: &Start<'_>) -> Result<Duration> {
        let mut command = self.command(start)?;
        let begin = Instant::now();
        let output = command.output().with_context(|| format!("cannot run {}", self.program()))?;
        let elapsed = begin.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} failed with {}: {}", output.status, said.trim());
        }
        Ok(elapsed)
    }

    fn command(self, start: &Start<'_>) -> Result<Command> {
        let mut command = Command::new(self.program());
        command.stdin(Stdio::null()).args(["run", "--rm"]);
        let config = start.config.map(split).transpose()?;
        match self {
            Self::Nerdctl => {
                command.args(["--net", "none"]);
                if let Some((directory, name)) = config {
                    // As a shell does it: nerdctl tells its runtime the variable, not where it is.
                    command
                        .env("PWD", &directory)
                        .current_dir(directory)
                        .arg("--annotation")
                        .arg(format!("nixenv={name}"));
                }
                start.runtime.inspect(|runtime| _ = command.arg("--runtime").arg(runtime));
                command.args([start.image, "true"]);
            }
            Self::Ctr => {
                if let Some((directory, name)) = config {
                    let mount =
                        format!("type=bind,src={},dst={MOUNT_POINT},options=rbind:ro", directory.display());
                    command.args([
                        "--mount",
                        &mount,
                        "--annotation",
                        &format!("nixenv={MOUNT_POINT}/{name}"),
                    ]);
                }
                start.runtime.inspect(|runtime| _ = command.arg("--runc-binary").arg(runtime));
                let container = format!("nixenv-bench-{}-{}", std::process::id(), start.number);
                command.args([&full_name(start.image), &container, "true"]);
            }
        }
        Ok(command)
    }
}

/// A config's directory and its name there.
fn split(config: &Path) -> Result<(PathBuf, &str)> {
    let (directory, name) = (config.parent(), config.file_name().and_then(|name| name.to_str()));
    let (Some(directory), Some(name)) = (directory, name) else {
        bail!("{} is not the path of a config", config.display());
    };
    Ok((Path::new(".").join(directory).canonicalize()?, name))
}

/// An image's full name, which ctr asks for: `busybox` is `docker.io/library/busybox:latest`.
fn full_name(image: &str) -> String {
    let tagged = match image.rsplit('/').next() {
        Some(last) if last.contains([':', '@']) => image.to_owned(),
        _ => format!("{image}:latest"),
    };
    match tagged.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tagged,
        Some(_) => format!("docker.io/{tagged}"),
        None => format!("docker.io/library/{tagged}"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::bare("busybox", "docker.io/library/busybox:latest")]
    #[case::tagged("busybox:1", "docker.io/library/busybox:1")]
    #[case::of_a_user("me/app", "docker.io/me/app:latest")]
    #[case::of_a_registry("localhost:5000/app", "localhost:5000/app:latest")]
    #[case::full("docker.io/library/busybox:latest", "docker.io/library/busybox:latest")]
    fn full_names(#[case] image: &str, #[case] expected: &str) {
        assert_eq!(full_name(image), expected);
    }

    #[rstest]
    #[case::nerdctl(
        Engine::Nerdctl,
        "run --rm --net none --annotation nixenv=passwd --runtime /r busybox true"
    )]
    #[case::ctr(
        Engine::Ctr,
        "run --rm --mount type=bind,src=/etc,dst=/nixenv,options=rbind:ro --annotation nixenv=/nixenv/passwd \
         --runc-binary /r docker.io/library/busybox:latest nixenv-bench-PID-3 true"
    )]
    fn command_lines(#[case] engine: Engine, #[case] expected: &str) {
        let (config, runtime) = (Some(Path::new("/etc/passwd")), Some(Path::new("/r")));
        let command = engine.command(&Start { image: "busybox", config, runtime, number: 3 }).unwrap();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(arguments.join(" "), expected.replace("PID", &std::process::id().to_string()));
    }
}
