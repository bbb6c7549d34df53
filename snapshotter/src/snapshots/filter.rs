//! Filters of a list of snapshots.
