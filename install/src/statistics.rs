//! The statistics of a series of durations.

use std::time::Duration;

use serde::Serialize;

/// What a series of starts took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The 95th percentile (nearest rank), in milliseconds.
    pub p95_ms: f64,
    /// How many there were.
    pub runs: usize,
}

impl Summary {
    /// Summarises durations; there must be at least one.
    pub fn of(durations: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = durations.iter().map(|duration| duration.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
        let p95 = sorted[(count * 95).div_ceil(100) - 1];
        Self { median_ms: rounded(median, 100.0), p95_ms: rounded(p95, 100.0), runs: count }
    }
}

/// A number with as many decimals as `scale` has zeros.
pub fn rounded(number: f64, scale: f64) -> f64 {
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one(&[7], 7.0, 7.0)]
    #[case::an_even_number_has_its_median_between_two(&[4, 1, 3, 2], 2.5, 4.0)]
    #[case::an_odd_number_in_any_order(&[9, 1, 5], 5.0, 9.0)]
    #[case::twenty_leave_out_the_highest(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], 10.5, 19.0)]
    fn summaries(#[case] milliseconds: &[u64], #[case] median_ms: f64, #[case] p95_ms: f64) {
        let durations: Vec<_> = milliseconds.iter().copied().map(Duration::from_millis).collect();
        assert_eq!(Summary::of(&durations), Summary { median_ms, p95_ms, runs: durations.len() });
    }

    #[test]
    fn milliseconds_have_two_decimals() {
        assert_eq!(Summary::of(&[Duration::from_nanos(1_234_567)]).median_ms, 1.23);
    }
}
