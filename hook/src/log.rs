//! How errors reach whoever started the container.
//!
//! Engines give the runtime a file (`--log`) and show its last error: containerd's shim reads entries
//! `{"level":"error","msg":...}` (go-runc's JSON log), and `nerdctl run` and the kubelet print that message. Standard
//! output and error are the container's own and stay clean. Only without `--log`, when somebody calls the runtime by
//! hand, standard error is where the runtime itself would complain, and so do we.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use rustix::fs::OFlags;
use serde_json::json;

use crate::command_line::CommandLine;

/// Where the runtime logs.
pub struct Log {
    target: Target,
    json: bool,
}

enum Target {
    File(PathBuf),
    /// Only errors: a warning is none of an interactive user's business.
    StandardError,
    /// The system's log, to which crun writes (`--log=journald:NAME`).
    Nowhere,
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The container starts, but somebody should know.
    Warning,
    /// The container does not start.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Log {
    /// The log that a command line names.
    pub fn of(line: &CommandLine) -> Self {
        let target = line.log.as_ref().map_or(Target::StandardError, |log| {
            let bytes = log.as_os_str().as_bytes();
            if let Some(path) = bytes.strip_prefix(b"file:") {
                Target::File(std::ffi::OsStr::from_bytes(path).into())
            } else if bytes.starts_with(b"journald:") || bytes.starts_with(b"syslog:") {
                Target::Nowhere
            } else {
                Target::File(log.clone())
            }
        });
        Self { target, json: line.log_is_json }
    }

    /// Appends one entry. A log that cannot be written is no reason to fail.
    pub fn write(&self, level: Level, message: &str) {
        let entry = self.entry(level, message, &jiff::Timestamp::now().to_string());
        let _ = match &self.target {
            Target::File(path) => open(path).and_then(|mut file| file.write_all(entry.as_bytes())),
            Target::StandardError if level == Level::Error => std::io::stderr().write_all(entry.as_bytes()),
            Target::StandardError | Target::Nowhere => Ok(()),
        };
    }

    /// One line, as logrus would write it.
    fn entry(&self, level: Level, message: &str, time: &str) -> String {
        let level = level.name();
        if self.json {
            format!("{}\n", json!({ "level": level, "msg": message, "time": time }))
        } else {
            format!("time=\"{time}\" level={level} msg={}\n", json!(message))
        }
    }
}

/// Opens the log as runc does, but never waits: it may be a FIFO that nobody reads.
fn open(path: &std::path::Path) -> std::io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags.bits() as i32).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(json: bool) -> Log {
        Log { target: Target::Nowhere, json }
    }

    #[test]
    fn a_json_entry_is_one_line_that_go_runc_understands() {
        let entry = log(true).entry(Level::Error, "first\n\"second\" ü", "2024-01-02T03:04:05Z");
        assert_eq!(entry.lines().count(), 1);
        let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
        assert_eq!(entry["level"], "error");
        assert_eq!(entry["msg"], "first\n\"second\" ü");
        assert_eq!(entry["time"], "2024-01-02T03:04:05Z");
    }

    #[test]
    fn a_text_entry_is_logrus_own() {
        assert_eq!(log(false).entry(Level::Warning, "a\nb", "T"), "time=\"T\" level=warning msg=\"a\\nb\"\n");
    }
}
