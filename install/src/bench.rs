//! `nixenv bench`: what starts cost, measured side by side.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use environment::key::Key;
use environment::layout::Layout;
use environment::reference::ConfigReference;
use environment::resolve;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::containerd::{self, Containerd};
use crate::engine::{Engine, Start};
use crate::statistics::{Summary, rounded};
use crate::{config_argument, list, service, table, wrapper_work};

/// Measure starts: without nixenv's annotation, warm and cold.
///
/// The series take turns, one start of each a round; the first round does not count. A start is everything from
/// calling the engine until the container, which runs `true`, is gone again. Before a cold start the environment's
/// manifest is removed, so that Nix evaluates again; its store paths and its view stay.
#[derive(Args)]
pub struct Bench {
    /// The path of a config.
    config: PathBuf,
    /// The image to start.
    #[arg(long, default_value = "busybox")]
    image: String,
    /// How many starts of each series count.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// The engine; default: nerdctl if it is there, else ctr.
    #[arg(long)]
    engine: Option<Engine>,
    /// Also start another config warm, to compare.
    #[arg(long, value_name = "CONFIG")]
    against: Option<PathBuf>,
    /// Also start with the OCI runtime itself, without nixenv in front of it, and measure what the wrapper adds to the
    /// runtime's calls of such a start.
    #[arg(long)]
    passthrough: bool,
    /// Also measure the wrapper's own work on a warm start, without a container.
    #[arg(long)]
    wrapper: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One kind of start.
struct Series<'a> {
    name: &'static str,
    config: Option<&'a Path>,
    runtime: Option<PathBuf>,
    /// The environment whose manifest is removed before each start.
    forget: Option<Key>,
    durations: Vec<Duration>,
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        let layout = Layout::node();
        let engine = self.engine.map_or_else(Engine::find, Ok)?;
        let key = warm(&self.config)?;
        ensure!(
            !list::users(&layout)?.contains_key(&key),
            "containers are in the environment of {}; stop them first, cold starts take it away for a moment",
            self.config.display()
        );
        let mut series = self.series(key)?;
        if let Some(against) = &self.against {
            warm(against)?;
        }
        let evaluations = service::daemon_status(&layout)?.evaluations;
        let bar = self.progress_bar(series.len());
        let mut number = 0;
        for round in 0..=usize::from(self.runs) {
            let first = round % series.len();
            series.rotate_left(first);
            for one in &mut series {
                let elapsed = one.start(&layout, engine, &self.image, number)?;
                number += 1;
                bar.inc(1);
                if round > 0 {
                    one.durations.push(elapsed);
                }
            }
            series.rotate_right(first);
        }
        bar.finish_and_clear();
        let evaluated = service::daemon_status(&layout)?.evaluations - evaluations;
        let cold = u64::from(self.runs) + 1;
        ensure!(
            evaluated == cold,
            "{cold} cold starts caused {evaluated} evaluations: the measurement is void; is anything else resolving?"
        );
        let mut results: Vec<_> = series.iter().map(|one| (one.name, Summary::of(&one.durations))).collect();
        if self.wrapper {
            results.push(("wrapper", wrapper_work::measure_warm(&self.config, self.runs)?));
        }
        if self.passthrough {
            results.push(("passthrough", wrapper_work::measure_passthrough(self.runs)?));
        }
        if self.json {
            print_json(&results)
        } else {
            print_table(&results, engine, &self.image)
        }
        Ok(ExitCode::SUCCESS)
    }

    fn series(&self, key: Key) -> Result<Vec<Series<'_>>> {
        let series = |name, config| Series { name, config, runtime: None, forget: None, durations: vec![] };
        let config = Some(self.config.as_path());
        let mut all = vec![
            series("plain", None),
            series("warm", config),
            Series { forget: Some(key), ..series("cold", config) },
        ];
        if let Some(against) = &self.against {
            all.push(series("against", Some(against)));
        }
        if self.passthrough {
            let containerd = Containerd::find()?;
            let environment = containerd.environment.as_deref().unwrap_or_default();
            let runtime = match containerd::variable(environment, "NIXENV_RUNTIME") {
                Some(runtime) => PathBuf::from(runtime),
                None => containerd.runtime()?,
            };
            all.push(Series { runtime: Some(runtime), ..series("runc", None) });
        }
        Ok(all)
    }

    fn progress_bar(&self, series: usize) -> ProgressBar {
        if !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{spinner} {bar:40} {pos}/{len} starts, {eta} left");
        ProgressBar::new((usize::from(self.runs) + 1) as u64 * series as u64)
            .with_style(style.expect("the template is constant"))
    }
}

impl Series<'_> {
    fn start(&self, layout: &Layout, engine: Engine, image: &str, number: usize) -> Result<Duration> {
        if let Some(key) = &self.forget {
            let manifest = layout.manifest(key);
            fs::remove_file(&manifest).with_context(|| format!("cannot remove {}", manifest.display()))?;
        }
        let elapsed =
            engine.time(&Start { image, config: self.config, runtime: self.runtime.as_deref(), number })?;
        if let Some(key) = &self.forget {
            ensure!(
                layout.manifest(key).exists(),
                "a cold start did not resolve its config: {} does not start containers through nixenv; \
                 see `nixenv doctor`",
                engine.program()
            );
        }
        Ok(elapsed)
    }
}

/// Resolves a config, so that its first start is a warm one.
fn warm(config: &Path) -> Result<Key> {
    let path = config.to_str().context("a config's path must be UTF-8")?;
    let config = config_argument::load(ConfigReference::Path(path.to_owned()), None)?;
    let resolved =
        resolve::resolve(&config.layout, &config.settings, &config.request, &config.places, None, |_| ())?;
    Ok(resolved.manifest.key)
}

fn ratio(one: &Summary, other: &Summary) -> f64 {
    rounded(one.median_ms / other.median_ms, 1000.0)
}

fn find<'a>(results: &'a [(&str, Summary)], name: &str) -> Option<&'a Summary> {
    results.iter().find_map(|(series, summary)| (*series == name).then_some(summary))
}

fn print_json(results: &[(&str, Summary)]) {
    let mut object: Map<String, Value> =
        results.iter().map(|(name, summary)| ((*name).to_owned(), json!(summary))).collect();
    if let (Some(warm), Some(plain)) = (find(results, "warm"), find(results, "plain")) {
        object.insert("warm_over_plain".to_owned(), json!(ratio(warm, plain)));
        if let Some(against) = find(results, "against") {
            object.insert("warm_over_against".to_owned(), json!(ratio(warm, against)));
        }
    }
    say!("{}", Value::Object(object));
}

fn print_table(results: &[(&str, Summary)], engine: Engine, image: &str) {
    let head = ["start", "median", "p95", "to plain", "starts"].map(str::to_owned);
    let plain = find(results, "plain");
    let rows = results.iter().map(|(name, summary)| {
        [
            (*name).to_owned(),
            format!("{:.1} ms", summary.median_ms),
            format!("{:.1} ms", summary.p95_ms),
            // What the wrapper does is no start.
            plain
                .filter(|_| !["wrapper", "passthrough"].contains(name))
                .map_or(String::new(), |plain| format!("{:.3}", ratio(summary, plain))),
            summary.runs.to_string(),
        ]
    });
    say!("{} run --rm {image} true", engine.program());
    say!("{}", table::aligned(std::iter::once(head).chain(rows)).trim_end());
}
