//! The filters of a list, one a line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nixenv_fuzz::snapshots::filter;
use nixenv_fuzz::{assert_is_short, labels, snapshot};

fuzz_target!(|text: &str| {
    let filters: Vec<String> = text.split('\n').map(str::to_owned).collect();
    match filter::parse_all(&filters) {
        Ok(filter) => {
            let _ = filter.matches(&snapshot(labels("foo=bar\nempty=")));
            let _ = filter.matches(&snapshot(labels("")));
        }
        Err(error) => assert_is_short(&error),
    }
});
