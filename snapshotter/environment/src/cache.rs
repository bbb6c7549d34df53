//! Manifests and input lists on disk; the two-step look-up of a warm start.
