//! What starts cost, by `nixenv bench`. The machine should do nothing else meanwhile; should it have done, the whole
//! measurement is repeated, the limits stay.

mod snapshotter_performance;

use e2e::node::{EXAMPLE, Node, on_a_node};
use serde_json::Value;

/// A warm start may cost this much more than a plain one, or than one with fewer store paths.
const MAX_RATIO: f64 = 1.05;

/// What the wrapper may add to a container without the annotation.
const MAX_PASSTHROUGH_MS: f64 = 2.0;

/// The wrapper's own work on a warm start.
const MAX_WRAPPER_MS: f64 = 3.0;

/// Starts of each kind, in the first attempt; each further one has as many more, for its medians to vary less.
const RUNS: u64 = 20;

const ATTEMPTS: u64 = 5;

/// A config with a closure of a little more than so many store paths.
fn chain(node: &Node, paths: usize) -> String {
    let name = format!("chain-{paths}.nix");
    let text =
        format!("{{ pkgs ? import <nixpkgs> {{}} }}: pkgs.mkShell {{ CHAIN = pkgs.chains.n{paths}; }}\n");
    node.write(&name, &text);
    name
}

/// Measures until every number is within its limit.
fn measure(node: &Node, arguments: &[&str], limits: &[(&str, f64)]) {
    for attempt in 1..=ATTEMPTS {
        let runs = (attempt * RUNS).to_string();
        let bench = ["bench", "--json", "--engine", "nerdctl", "--runs", &runs];
        let output = node.nixenv(bench.into_iter().chain(arguments.iter().copied())).succeeds();
        let measured: Value = serde_json::from_str(&output).expect("bench prints JSON");
        println!("bench {}: {}", arguments.join(" "), output.trim());
        for kind in ["plain", "warm", "cold"] {
            assert_eq!(measured[kind]["runs"], attempt * RUNS, "{kind}");
        }
        let over: Vec<String> = limits
            .iter()
            .filter_map(|(pointer, limit)| {
                let number = measured.pointer(pointer).and_then(Value::as_f64).expect("it is measured");
                (number > *limit).then(|| format!("{pointer} is {number}, the limit is {limit}"))
            })
            .collect();
        if over.is_empty() {
            return;
        }
        println!("attempt {attempt} of {ATTEMPTS}: {}", over.join("; "));
    }
    panic!("too slow in each of {ATTEMPTS} attempts");
}

#[test]
fn a_warm_start_costs_what_a_plain_one_does() {
    on_a_node(|node| {
        node.write("config.nix", EXAMPLE);
        measure(
            node,
            &["config.nix", "--passthrough", "--wrapper"],
            &[
                ("/warm_over_plain", MAX_RATIO),
                ("/passthrough/median_ms", MAX_PASSTHROUGH_MS),
                ("/wrapper/median_ms", MAX_WRAPPER_MS),
            ],
        );
    });
}

#[test]
fn five_thousand_store_paths_start_as_fast_as_ten() {
    on_a_node(|node| {
        let (many, few) = (chain(node, 5000), chain(node, 10));
        measure(
            node,
            &[&many, "--against", &few],
            &[("/warm_over_plain", MAX_RATIO), ("/warm_over_against", MAX_RATIO)],
        );
        let closure = node.boot(&many, "ls /nix/store | wc -l").succeeds();
        assert!(closure.trim().parse::<usize>().is_ok_and(|paths| paths >= 5000), "{closure}");
    });
}
