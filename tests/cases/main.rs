//! The end-to-end tests.

mod annotations;
mod concurrency;
mod crashes;
mod dependencies;
mod differential;
mod errors;
mod example;
mod lifecycle;
mod nerdctl;
mod nix_layers;
mod operator;
mod passthrough;
mod plain;
mod registration;
mod restart;
mod staleness;
mod variables;
mod view;
mod warm;
