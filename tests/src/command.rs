//! A command of an engine, and what it said.

use std::process::{Command, ExitStatus};

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            command: format!("{command:?}"),
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Expects exit status 0, and returns its standard output.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert!(
            self.status.success(),
            "{} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// Expects success and exactly these lines.
    ///
    /// # Panics
    /// When it failed or printed something else.
    #[track_caller]
    pub fn prints(self, expected: &str) {
        let stderr = self.stderr.clone();
        let stdout = self.succeeds();
        assert_eq!(stdout.trim_end(), expected.trim_end(), "\n--- stderr\n{stderr}");
    }

    /// Expects another exit status than 0, and returns its standard error.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(
            !self.status.success(),
            "{} succeeded\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self.stderr
    }

    /// Expects failure with every one of these texts on standard error.
    ///
    /// # Panics
    /// When it succeeded, or said something else.
    #[track_caller]
    pub fn fails_saying(self, expected: &[&str]) {
        let stderr = self.fails();
        for text in expected {
            assert!(stderr.contains(text), "'{text}' is missing in:\n{stderr}");
        }
    }
}
