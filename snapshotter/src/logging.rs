//! Where the daemon's own messages go: the journal when it listens, else standard error. The last of what went wrong
//! stays at hand, for `nixenv status`.

use std::collections::VecDeque;
use std::env;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use environment::protocol::Report;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// How many messages stay at hand.
const KEPT: usize = 5;

static LATEST: Mutex<VecDeque<Report>> = Mutex::new(VecDeque::new());

/// How messages are written to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// An object a line, with its spans.
    Json,
}

/// Starts logging.
pub fn start(level: LevelFilter, format: Format) {
    // Of libraries, what is wrong.
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level);
    let registry = tracing_subscriber::registry().with(targets).with(Latest);
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // systemd sets it when standard error is connected to the journal (systemd.exec(5)).
    match env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok()) {
        Some(journal) if format == Format::Text => registry.with(journal).init(),
        _ if format == Format::Json => registry.with(stderr.json()).init(),
        _ => registry.with(stderr.with_target(false)).init(),
    }
}

/// The last errors and warnings, oldest first.
pub fn latest_errors() -> Vec<Report> {
    LATEST.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Keeps errors and warnings.
struct Latest;

impl<S: Subscriber> Layer<S> for Latest {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let report =
            Report { unix_seconds: since.as_secs(), message: format!("{}{}", text.message, text.fields) };
        let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == KEPT {
            latest.pop_front();
        }
        latest.push_back(report);
    }
}

/// An event's message, and its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_warnings_and_errors_are_kept_with_their_fields() {
        let subscriber = tracing_subscriber::registry().with(Latest);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("all is well");
            for number in 0..KEPT {
                tracing::warn!(number, "first");
            }
            tracing::error!(path = %"/nix", "cannot remove it");
        });
        let latest = latest_errors();
        assert_eq!(latest.len(), KEPT);
        assert_eq!(latest[0].message, "first number=1");
        assert_eq!(latest[KEPT - 1].message, "cannot remove it path=/nix");
    }
}
