//! What Nix is doing while it realises: its log in the form that is made for programs.
//!
//! `--log-format internal-json` writes a line `@nix {...}` for each event (`JSONLogger` in Nix's `libutil/logging.cc`,
//! the same from 2.8 to 2.36). The text that a person would have seen is put together again from them.

use std::collections::{BTreeMap, VecDeque};

use environment::protocol::Progress;
use serde::Deserialize;
use serde_json::Value;

/// Lines of text that are kept: of a failed build, the end of its log.
const MAX_LINES: usize = 200;
/// The most verbose messages that are kept: errors, warnings and notices (`Verbosity` in `libutil/error.hh`).
const MAX_LEVEL: u64 = 2;

/// `ActivityType` in `libutil/logging.hh`.
const COPY_PATHS: u64 = 103;
const BUILDS: u64 = 104;
const BUILD: u64 = 105;
/// `ResultType` in `libutil/logging.hh`.
const BUILD_LOG_LINE: u64 = 101;
const PROGRESS: u64 = 105;

/// The state of a running Nix, from the lines of its log.
#[derive(Debug, Default)]
pub struct Activities {
    /// The names of derivations that are built, by activity.
    builds: BTreeMap<u64, String>,
    /// How many of how many, by activity: of builds, and of paths that are copied here.
    counts: BTreeMap<u64, (u64, u64)>,
    detail: String,
    lines: VecDeque<String>,
}

#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Event {
    Msg {
        #[serde(default)]
        level: u64,
        msg: String,
    },
    Start {
        id: u64,
        r#type: u64,
        #[serde(default)]
        text: String,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Result {
        id: u64,
        r#type: u64,
        #[serde(default)]
        fields: Vec<Value>,
    },
    Stop {
        id: u64,
    },
}

impl Activities {
    /// Takes note of a line of the log, and says how far Nix is.
    pub fn note(&mut self, line: &str) -> Progress {
        match line.strip_prefix("@nix ").map(serde_json::from_str) {
            Some(Ok(event)) => self.note_event(event),
            Some(Err(_)) => {}
            // Not everything in Nix' process knows of its logger.
            None => self.keep(line.to_owned()),
        }
        let (done, total) =
            self.counts.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        Progress { phase: "realise".to_owned(), done, total, detail: self.detail.clone() }
    }

    /// What a person would have seen.
    pub fn messages(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn note_event(&mut self, event: Event) {
        match event {
            Event::Msg { level, msg } if level <= MAX_LEVEL => self.keep(msg),
            Event::Start { id, r#type, text, fields } => {
                match r#type {
                    COPY_PATHS | BUILDS => drop(self.counts.insert(id, (0, 0))),
                    BUILD => {
                        let path = fields.first().and_then(Value::as_str).unwrap_or_default();
                        // `/nix/store/HASH-NAME.drv`
                        let name = path.split_once('-').map_or(path, |(_, name)| name);
                        self.builds.insert(id, name.trim_end_matches(".drv").to_owned());
                    }
                    _ => {}
                }
                if !text.is_empty() {
                    self.detail = text;
                }
            }
            Event::Result { id, r#type: BUILD_LOG_LINE, fields } => {
                let line = fields.first().and_then(Value::as_str).unwrap_or_default();
                let name = self.builds.get(&id).map_or("build", String::as_str);
                self.keep(format!("{name}> {line}"));
            }
            Event::Result { id, r#type: PROGRESS, fields } => {
                let number = |index: usize| fields.get(index).and_then(Value::as_u64).unwrap_or_default();
                if let Some(count) = self.counts.get_mut(&id) {
                    *count = (number(0), number(1));
                }
            }
            Event::Stop { id } => drop(self.builds.remove(&id)),
            Event::Msg { .. } | Event::Result { .. } => {}
        }
    }

    fn keep(&mut self, line: String) {
        self.detail.clone_from(&line);
        self.lines.push_back(line);
        if self.lines.len() > MAX_LINES {
            self.lines.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As Nix 2.8 wrote it.
    const LOG: &str = r#"@nix {"action":"start","id":1,"level":5,"parent":0,"text":"","type":102}
@nix {"action":"start","id":2,"level":5,"parent":0,"text":"","type":104}
@nix {"action":"start","id":3,"level":5,"parent":0,"text":"","type":103}
@nix {"action":"result","fields":[0,2,0,0],"id":2,"type":105}
@nix {"action":"result","fields":[1,3,1,0],"id":3,"type":105}
@nix {"action":"start","fields":["/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-broken.drv","",1,1],"id":4,"level":3,"parent":0,"text":"building '/nix/store/r2dydhgyxl38xw69v81pl4rpk9ndj241-broken.drv'","type":105}
@nix {"action":"result","fields":["a line of its log"],"id":4,"type":101}
@nix {"action":"stop","id":4}
@nix {"action":"msg","level":5,"msg":"chatter"}
GC Warning: of the collector
@nix {"action":"msg","column":null,"file":null,"level":0,"line":null,"msg":"error: builder failed","raw_msg":"builder failed"}
@nix not json
"#;

    #[test]
    fn a_log_is_progress_and_text() {
        let mut activities = Activities::default();
        let progress: Vec<Progress> = LOG.lines().map(|line| activities.note(line)).collect();
        assert_eq!((progress[4].done, progress[4].total), (1, 5));
        assert!(progress[5].detail.starts_with("building '/nix/store/"));
        assert_eq!(progress[6].detail, "broken> a line of its log");
        assert_eq!(
            activities.messages(),
            "broken> a line of its log\nGC Warning: of the collector\nerror: builder failed\n"
        );
    }

    #[test]
    fn the_end_of_a_long_log_is_kept() {
        let mut activities = Activities::default();
        for line in 0..1000 {
            activities.note(&format!("line {line}"));
        }
        assert_eq!(activities.messages().lines().count(), MAX_LINES);
        assert!(activities.messages().ends_with("line 999\n"));
    }
}
