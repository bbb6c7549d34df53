//! What the daemon counts and measures, for Prometheus.
//!
//! | name | what |
//! | --- | --- |
//! | `nixenv_snapshot_operations_total{operation,code}` | requests of containerd, by gRPC's code |
//! | `nixenv_snapshot_operation_duration_seconds{operation}` | how long they took |
//! | `nixenv_snapshots{kind}` | snapshots |
//! | `nixenv_store_layers` | layers that show store paths instead of holding them |
//! | `nixenv_store_layer_paths`, `nixenv_store_layer_bytes` | what they show, counted for each layer: what unpacking them would take |
//! | `nixenv_store_layer_distinct_paths`, `nixenv_store_layer_distinct_bytes` | the same, each store path counted once |
//! | `nixenv_environments`, `nixenv_environment_bytes` | cached environments, and the sum of their closures |
//! | `nixenv_environment_hits_total` | starts that the cache had the environment for, since boot |
//! | `nixenv_environment_misses_total` | requests to resolve |
//! | `nixenv_evaluation_duration_seconds{outcome}` | evaluations |
//! | `nixenv_build_duration_seconds{outcome}` | builds and substitutions |
//! | `nixenv_resolves_in_flight`, `nixenv_resolves_waiting` | environments in the making, and who waits for them |
//! | `nixenv_build_info{version,nix}` | 1 |
//!
//! Sizes in bytes are those of Nix's archives. A hit is counted by the runtime wrapper, which asks no daemon: see
//! [`environment::hits`].

pub mod listener;

use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use environment::protocol::Status;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// What is measured as it happens; everything else is looked up when somebody asks.
static MEASURED: LazyLock<Measured> = LazyLock::new(Measured::default);

/// The operations of containerd's snapshots service.
const OPERATIONS: [&str; 10] =
    ["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup"];

/// From 0.5 ms to 16 s.
const REQUEST_BUCKETS: (f64, f64, u16) = (0.0005, 2.0, 16);
/// From 50 ms to 27 minutes.
const BUILD_BUCKETS: (f64, f64, u16) = (0.05, 2.0, 16);

struct Measured {
    operations: Family<Operation, Counter>,
    durations: Family<Timed, Histogram>,
    evaluations: Family<Outcome, Histogram>,
    builds: Family<Outcome, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Default for Measured {
    fn default() -> Self {
        let requests: fn() -> Histogram = || histogram(REQUEST_BUCKETS);
        let builds: fn() -> Histogram = || histogram(BUILD_BUCKETS);
        Self {
            operations: Family::default(),
            durations: Family::new_with_constructor(requests),
            evaluations: Family::new_with_constructor(builds),
            builds: Family::new_with_constructor(builds),
        }
    }
}

fn histogram((start, factor, count): (f64, f64, u16)) -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(start, factor, count))
}

/// A request of containerd's was answered, with this code of gRPC's.
pub fn observe(operation: &str, code: impl std::fmt::Debug, elapsed: Duration) {
    // A client may call what there is not.
    let operation = OPERATIONS.into_iter().find(|known| *known == operation).unwrap_or("other");
    let label = Operation { operation, code: format!("{code:?}") };
    MEASURED.operations.get_or_create(&label).inc();
    MEASURED.durations.get_or_create(&Timed { operation }).observe(elapsed.as_secs_f64());
}

/// An evaluation has ended.
pub fn evaluated(succeeded: bool, elapsed: Duration) {
    MEASURED.evaluations.get_or_create(&outcome(succeeded)).observe(elapsed.as_secs_f64());
}

/// A build has ended, or what was there was found.
pub fn built(succeeded: bool, elapsed: Duration) {
    MEASURED.builds.get_or_create(&outcome(succeeded)).observe(elapsed.as_secs_f64());
}

fn outcome(succeeded: bool) -> Outcome {
    Outcome { outcome: if succeeded { "success" } else { "failure" } }
}

/// All metrics, in the form that [`CONTENT_TYPE`] names.
///
/// [`CONTENT_TYPE`]: listener::CONTENT_TYPE
#[must_use]
pub fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("nixenv");
    let measured = &*MEASURED;
    let seconds = Unit::Seconds;
    registry.register("snapshot_operations", "Requests of containerd", measured.operations.clone());
    registry.register_with_unit(
        "snapshot_operation_duration",
        "How long requests of containerd took",
        seconds.clone(),
        measured.durations.clone(),
    );
    registry.register_with_unit(
        "evaluation_duration",
        "How long evaluations took",
        seconds.clone(),
        measured.evaluations.clone(),
    );
    registry.register_with_unit(
        "build_duration",
        "How long builds and substitutions took",
        seconds,
        measured.builds.clone(),
    );
    register_state(&mut registry, status);
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a string can always be written to");
    text
}

fn register_state(registry: &mut Registry, status: &Status) {
    let (environments, snapshots) = (&status.environments, &status.snapshots);
    let store = &snapshots.store;
    let version = vec![("version", status.version.clone()), ("nix", status.nix_version.clone())];
    // The encoder adds `_info`.
    registry.register("build", "What runs here", Info::new(version));

    let kinds = Family::<Kind, Gauge>::default();
    for (kind, count) in
        [("active", snapshots.active), ("view", snapshots.views), ("committed", snapshots.committed)]
    {
        kinds.get_or_create(&Kind { kind }).set(signed(count));
    }
    registry.register("snapshots", "Snapshots", kinds);

    for (name, help, count) in [
        ("store_layers", "Layers that show store paths instead of holding them", store.layers),
        ("store_layer_paths", "Store paths that layers show, for each layer", store.paths),
        ("store_layer_distinct_paths", "Store paths that layers show, each once", store.distinct_paths),
        ("environments", "Cached environments", environments.count),
        ("resolves_in_flight", "Environments in the making", status.in_flight),
        ("resolves_waiting", "Requests that wait for an environment", status.waiting),
    ] {
        registry.register(name, help, gauge(count));
    }
    for (name, help, bytes) in [
        ("store_layer", "What unpacking the layers that show store paths would take", store.bytes),
        ("store_layer_distinct", "The store paths that layers show, each once", store.distinct_bytes),
        ("environment", "The sum of the closures of cached environments", environments.bytes),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, gauge(bytes));
    }
    for (name, help, count) in [
        ("environment_hits", "Starts that the cache had the environment for, since boot", environments.hits),
        ("environment_misses", "Requests to resolve", environments.misses),
    ] {
        registry.register(name, help, counter(count));
    }
}

fn gauge(value: u64) -> impl Metric {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value));
    gauge
}

fn counter(value: u64) -> impl Metric {
    let counter = Counter::<u64>::default();
    counter.inner().store(value, Ordering::Relaxed);
    counter
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use environment::protocol::{Environments, Snapshots, StoreLayers};

    use super::*;

    #[test]
    fn everything_has_its_name_its_unit_and_its_value() {
        observe("Prepare", format_args!("AlreadyExists"), Duration::from_millis(3));
        observe("rm -rf", format_args!("Unimplemented"), Duration::ZERO);
        evaluated(false, Duration::from_secs(2));
        built(true, Duration::from_secs(3));
        let store = StoreLayers { layers: 2, paths: 30, bytes: 400, distinct_paths: 20, distinct_bytes: 300 };
        let status = Status {
            version: "1.2.3".into(),
            nix_version: "2.8".into(),
            in_flight: 5,
            waiting: 6,
            environments: Environments { count: 7, bytes: 8, hits: 9, misses: 10 },
            snapshots: Snapshots { active: 11, views: 12, committed: 13, store },
            ..Status::default()
        };
        let text = render(&status);
        for line in [
            "nixenv_snapshot_operations_total{operation=\"Prepare\",code=\"AlreadyExists\"} 1",
            "nixenv_snapshot_operations_total{operation=\"other\",code=\"Unimplemented\"} 1",
            "nixenv_snapshot_operation_duration_seconds_count{operation=\"Prepare\"} 1",
            "nixenv_snapshot_operation_duration_seconds_bucket{le=\"0.004\",operation=\"Prepare\"} 1",
            "nixenv_evaluation_duration_seconds_sum{outcome=\"failure\"} 2.0",
            "nixenv_build_duration_seconds_sum{outcome=\"success\"} 3.0",
            "nixenv_build_info{version=\"1.2.3\",nix=\"2.8\"} 1",
            "nixenv_snapshots{kind=\"active\"} 11",
            "nixenv_snapshots{kind=\"view\"} 12",
            "nixenv_snapshots{kind=\"committed\"} 13",
            "nixenv_store_layers 2",
            "nixenv_store_layer_paths 30",
            "nixenv_store_layer_distinct_paths 20",
            "nixenv_store_layer_bytes 400",
            "nixenv_store_layer_distinct_bytes 300",
            "nixenv_environments 7",
            "nixenv_environment_bytes 8",
            "nixenv_environment_hits_total 9",
            "nixenv_environment_misses_total 10",
            "nixenv_resolves_in_flight 5",
            "nixenv_resolves_waiting 6",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
