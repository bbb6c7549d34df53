//! Standard output, which may be closed at any time.

/// Prints a line; that its reader went away (`nixenv install | head -1`) is no reason to stop half-way.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
