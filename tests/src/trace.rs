//! Which programs a service and its children start, by strace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The traces of a test.
#[derive(Clone, Debug)]
pub struct Trace {
    directory: PathBuf,
}

/// The start of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Its process.
    pub process: u32,
    /// Its file.
    pub program: PathBuf,
    /// Its arguments, quoted as in C.
    pub arguments: String,
}

/// What a trace tells, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Exec(Exec),
    End(u32),
}

impl Exec {
    /// Whether it is one of Nix's programs.
    #[must_use]
    pub fn is_nix(&self) -> bool {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        name == "nix" || name.starts_with("nix-")
    }

    /// Whether it evaluates a config. (Nix's evaluator is also asked for the node's system, without a root.)
    #[must_use]
    pub fn is_evaluation(&self) -> bool {
        self.is_nix() && (self.arguments.starts_with("[\"nix-instantiate\", \"--add-root\""))
    }
}

impl Trace {
    /// The traces of the test that owns this directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.join("trace") }
    }

    /// The program, with each exec of it and its children noted. strace detaches itself, so that the program stays
    /// its caller's own child.
    ///
    /// # Panics
    /// When the directory of traces cannot be made.
    #[must_use]
    pub fn of(&self, program: &Path) -> Command {
        fs::create_dir_all(&self.directory).expect("a directory can be made");
        let mut command = Command::new("strace");
        command
            .args(["--daemonize", "--follow-forks", "--seccomp-bpf", "--successful-only", "--trace=execve"])
            .args(["--signal=none", "--string-limit=4096", "--output-append-mode", "--output"])
            .arg(self.directory.join(program.file_name().expect("a program is a file")))
            .arg(program);
        command
    }

    /// Every program that the traced service `name` and its children have started.
    #[must_use]
    pub fn execs(&self, name: &str) -> Vec<Exec> {
        let events = self.events(name).into_iter();
        events.filter_map(|event| if let Event::Exec(exec) = event { Some(exec) } else { None }).collect()
    }

    /// The greatest number of evaluations that ran at one time.
    #[must_use]
    pub fn evaluations_at_once(&self, name: &str) -> usize {
        let mut running = Vec::new();
        let mut most = 0;
        for event in self.events(name) {
            match event {
                Event::Exec(exec) if exec.is_evaluation() => running.push(exec.process),
                Event::Exec(_) => {}
                Event::End(process) => running.retain(|evaluation| *evaluation != process),
            }
            most = most.max(running.len());
        }
        most
    }

    fn events(&self, name: &str) -> Vec<Event> {
        let trace = fs::read(self.directory.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&trace).lines().filter_map(parse_event).collect()
    }
}

/// Reads a line of strace's: `12 execve("/usr/bin/ls", ["ls"], 0x7ff /* 36 vars */) = 0` or `12 +++ exited with 0 +++`.
fn parse_event(line: &str) -> Option<Event> {
    let (process, rest) = line.split_once(' ')?;
    let process = process.parse().ok()?;
    let rest = rest.trim_start();
    if rest.starts_with("+++") {
        return Some(Event::End(process));
    }
    let (program, arguments) = rest.strip_prefix("execve(\"")?.split_once("\", ")?;
    let arguments = arguments.rsplit_once(", 0x")?.0;
    Some(Event::Exec(Exec { process, program: program.into(), arguments: arguments.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_is_understood() {
        let exec = Exec {
            process: 12,
            program: "/usr/bin/nix".into(),
            arguments: "[\"nix-instantiate\", \"--add-root\"]".into(),
        };
        assert!(exec.is_evaluation());
        let line =
            "12    execve(\"/usr/bin/nix\", [\"nix-instantiate\", \"--add-root\"], 0x7ffd /* 36 vars */) = 0";
        assert_eq!(parse_event(line), Some(Event::Exec(exec)));
        assert_eq!(parse_event("12    +++ killed by SIGKILL +++"), Some(Event::End(12)));
        assert_eq!(parse_event("strace: Process 12 attached"), None);
    }
}
