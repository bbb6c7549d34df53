//! A confined process, seen from outside.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::UnshareFlags;

use crate::sandbox::Sandbox;

/// The most that is kept of a process' standard output: the variables of an environment, the paths of a closure.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// The most that is kept of a process' standard error; of a longer one, the end.
const MAX_MESSAGES_BYTES: usize = 256 << 10;

/// How a confined process ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error, or the end of it.
    pub messages: String,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
}

/// Runs the sandbox's program to its end, at most for `time`, and reports each line of its standard error.
///
/// # Errors
/// When it cannot be started or writes without end.
pub fn run(sandbox: &Sandbox, time: Option<Duration>, mut line: impl FnMut(&str)) -> io::Result<Finished> {
    let deadline = time.map(|time| Instant::now() + time);
    let mut confined = Confined::start(sandbox)?;
    let mut output = confined.process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut errors = confined.process.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (mut written, mut messages) = (Vec::new(), Messages::default());
    let (mut output_open, mut errors_open, mut timed_out) = (true, true, false);
    // The process is the first of its PID namespace: when it has ended, so have all others that could hold the pipes.
    while output_open || errors_open {
        let mut polled = [PollFd::new(&output, PollFlags::IN), PollFd::new(&errors, PollFlags::IN)];
        let left = deadline
            .filter(|_| !timed_out)
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            timed_out = true;
            confined.kill();
            continue;
        }
        // Of a pipe at its end poll would return at once, again and again.
        let watched = match (output_open, errors_open) {
            (true, true) => &mut polled[..],
            (true, false) => &mut polled[..1],
            _ => &mut polled[1..],
        };
        match rustix::event::poll(watched, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        let ready = polled.each_ref().map(|polled| !polled.revents().is_empty());
        if output_open && ready[0] {
            output_open = read_some(&mut output, &mut written)?;
            if written.len() > MAX_OUTPUT_BYTES {
                return Err(io::Error::other(format!("Nix wrote more than {} MiB", MAX_OUTPUT_BYTES >> 20)));
            }
        }
        if errors_open && ready[1] {
            errors_open = read_some(&mut errors, &mut messages.unread)?;
            messages.report(&mut line);
        }
    }
    let status = confined.process.wait()?;
    Ok(Finished { status, output: written, messages: messages.finish(&mut line), timed_out })
}

fn read_some(pipe: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    let read = pipe.read(&mut buffer)?;
    into.extend(&buffer[..read]);
    Ok(read > 0)
}

/// Standard error, line by line.
#[derive(Default)]
struct Messages {
    unread: Vec<u8>,
    kept: Vec<u8>,
}

impl Messages {
    fn report(&mut self, line: &mut impl FnMut(&str)) {
        while let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
            let rest = self.unread.split_off(end + 1);
            self.keep(line);
            self.unread = rest;
        }
        if self.unread.len() > MAX_MESSAGES_BYTES {
            self.keep(line);
        }
    }

    fn keep(&mut self, line: &mut impl FnMut(&str)) {
        line(String::from_utf8_lossy(&self.unread).trim_end());
        self.kept.append(&mut self.unread);
        if self.kept.len() > 2 * MAX_MESSAGES_BYTES {
            self.kept.drain(..self.kept.len() - MAX_MESSAGES_BYTES);
        }
    }

    fn finish(mut self, line: &mut impl FnMut(&str)) -> String {
        if !self.unread.is_empty() {
            self.keep(line);
        }
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// A running process that is the first of its PID namespace; dropped, all of the namespace is killed.
struct Confined {
    process: Child,
    descriptor: OwnedFd,
    /// The thread that started the process: it must live as long, since its end is what the death signal reports.
    _launcher: mpsc::Sender<()>,
}

impl Confined {
    fn start(sandbox: &Sandbox) -> io::Result<Self> {
        let plan = serde_json::to_string(sandbox)?;
        // Not current_exe(): that file may have been replaced by an upgrade.
        let mut command = Command::new("/proc/self/exe");
        command.args(["sandbox", &plan]).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (started, start) = mpsc::channel();
        let (launcher, end) = mpsc::channel::<()>();
        thread::Builder::new().name("launcher".into()).spawn(move || {
            // The PID namespace of a thread's children can be set once: hence a thread for each process.
            // SAFETY: no file descriptor table is unshared.
            #[allow(unsafe_code)]
            let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) };
            let _ = started.send(unshared.map_err(io::Error::from).and_then(|()| command.spawn()));
            let _ = end.recv();
        })?;
        let process: Child = start.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        let pid = Pid::from_child(&process);
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { process, descriptor, _launcher: launcher })
    }

    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.descriptor.as_fd(), Signal::KILL);
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.kill();
        let _ = self.process.wait();
    }
}
