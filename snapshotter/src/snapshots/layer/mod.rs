//! Layers that name store paths.
