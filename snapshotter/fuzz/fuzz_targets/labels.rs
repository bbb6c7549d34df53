//! The labels of a layer that names store paths.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nixenv_fuzz::snapshots::layer;
use nixenv_fuzz::{assert_is_short, labels};

fuzz_target!(|text: &str| {
    match layer::labels::parse(&labels(text)) {
        Ok(named) => {
            for path in named.map(layer::paths).unwrap_or_default() {
                let name = path.as_str().strip_prefix("/nix/store/").expect("it lies in the store");
                assert!(!name.contains(['/', '\0', '\n', ':', ',']), "{path:?}");
                assert!(name.len() > 33 && !name.ends_with(".drv"), "{path:?}");
            }
        }
        Err(error) => assert_is_short(&error),
    }
});
