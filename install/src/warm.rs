//! `nixenv warm`: resolves ahead of the first start.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use environment::protocol::Progress;
use environment::resolve;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::config_argument::ConfigArgument;

/// Resolve a config ahead, so that the first start is a warm one.
#[derive(Args)]
pub struct Warm {
    #[command(flatten)]
    config: ConfigArgument,
}

impl Warm {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let config = self.config.load()?;
        let start = Instant::now();
        let mut reporter = Reporter::new();
        let outcome = resolve::resolve(
            &config.layout,
            &config.settings,
            &config.request,
            &config.places,
            None,
            |progress| reporter.report(&progress),
        );
        reporter.finish();
        let resolved = outcome?;
        for warning in &resolved.warnings {
            eprintln!("warning: {warning}");
        }
        let how = match (resolved.hit, resolved.evaluated) {
            (true, _) => format!("hit: {}", resolved.reason),
            (false, true) => format!("evaluated in {}: {}", seconds(start.elapsed()), resolved.reason),
            (false, false) => format!("known to the daemon: {}", resolved.reason),
        };
        say!("{} {how}", resolved.manifest.key);
        Ok(ExitCode::SUCCESS)
    }
}

fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        HumanDuration(duration).to_string()
    }
}

/// Shows how far the daemon is: a bar on a terminal, else one line for each phase.
enum Reporter {
    Bar(ProgressBar),
    Lines { phase: String },
}

impl Reporter {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { phase: String::new() };
        }
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Bar(bar)
    }

    fn report(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar) => {
                let template = match progress.total {
                    0 => "{spinner} {prefix} {wide_msg}",
                    _ => "{spinner} {prefix} {bar:30} {pos}/{len} {wide_msg}",
                };
                bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
                bar.set_prefix(progress.phase.clone());
                bar.set_message(progress.detail.clone());
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
            Self::Lines { phase } if *phase != progress.phase => {
                phase.clone_from(&progress.phase);
                eprintln!("{}", format!("{phase} {}", progress.detail).trim_end());
            }
            Self::Lines { .. } => {}
        }
    }

    fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
