//! How many containers were started in an environment that the cache had.
//!
//! A warm start asks no daemon, so nobody is told of it. Instead the runtime wrapper appends one byte to
//! `/run/nixenv/hits`, whose length therefore is the count since the node was booted: no lock, no parsing, and
//! a write of one byte with `O_APPEND` is never lost or torn. The daemon makes the file; without it nothing is counted.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};

use crate::layout::Layout;

/// Lets starts be counted from now on, if they are not yet.
///
/// # Errors
/// When the file cannot be made.
pub fn begin(layout: &Layout) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(layout.hits()).map(drop)
}

/// Counts a start.
///
/// # Errors
/// When it is not counted: nobody has begun, or the disk of `/run` is full.
pub fn add(layout: &Layout) -> io::Result<()> {
    OpenOptions::new().append(true).open(layout.hits())?.write_all(b".")
}

/// The starts so far.
#[must_use]
pub fn count(layout: &Layout) -> u64 {
    fs::metadata(layout.hits()).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_once_somebody_has_begun_and_a_second_beginning_forgets_none() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        fs::create_dir_all(layout.run()).unwrap();
        assert!(add(&layout).is_err());
        begin(&layout).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| add(&layout).unwrap()));
            }
        });
        begin(&layout).unwrap();
        assert_eq!(count(&layout), 100);
    }
}
