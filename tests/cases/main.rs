//! The end-to-end tests.

mod plain;
