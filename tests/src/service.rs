//! A process in the background.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// No service may take longer to start.
const START: Duration = Duration::from_secs(30);

/// A running service; killed when it is dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts `command`; what it says goes to a log of the service's name, which a failed test shows.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(directory: &Path, name: &str, command: &mut Command) -> Self {
        let log = directory.join("log").join(name);
        let output = File::options().create(true).append(true).open(log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Self { name: name.into(), child }
    }

    /// Starts `command` under a log of its own, and waits until that says that it is `ready`.
    ///
    /// # Panics
    /// When it cannot be started, or is not ready in time.
    #[must_use]
    pub fn start_until(
        directory: &Path,
        name: &str,
        command: &mut Command,
        ready: impl Fn(&str) -> bool,
    ) -> Self {
        let log = directory.join("log").join(name);
        let _ = std::fs::remove_file(&log);
        let mut service = Self::start(directory, name, command);
        service.wait_until(|| ready(&std::fs::read_to_string(&log).unwrap_or_default()));
        service
    }

    /// Waits until it is `ready`.
    ///
    /// # Panics
    /// When it ends before, or takes too long.
    pub fn wait_until(&mut self, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + START;
        while !ready() {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                panic!("{} ended with {status}", self.name);
            }
            assert!(Instant::now() < deadline, "{} is not ready after {START:?}", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Sends it a signal that ends it, and waits until it is gone.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn end_by(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
        let deadline = Instant::now() + START;
        while self.child.try_wait().expect("it is our child").is_none() {
            assert!(Instant::now() < deadline, "{} has not ended {START:?} after {signal:?}", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}
