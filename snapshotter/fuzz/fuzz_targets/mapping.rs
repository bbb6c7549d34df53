//! The labels that map owners into a user namespace.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nixenv_fuzz::labels;
use nixenv_fuzz::snapshots::id_mapping;

fuzz_target!(|text: &str| {
    match id_mapping::root_of(&labels(text)) {
        Ok(None) => {}
        Ok(Some((user, group))) => assert!(user != u32::MAX && group != u32::MAX),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
