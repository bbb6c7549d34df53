//! The end-to-end tests.

mod concurrency;
mod crashes;
mod dependencies;
mod errors;
mod example;
mod lifecycle;
mod passthrough;
mod plain;
mod staleness;
mod variables;
mod view;
mod warm;
