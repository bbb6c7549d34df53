//! The fixture of the end-to-end tests: a private node with real engines and a real Nix.
//!
//! ```text
//! isolation     runs a test again in namespaces, mounts and cgroups of its own, which end with it
//! node          a node: everything below, started in order
//! containerd    containerd, of the pinned release or Debian's
//! image         minimal images, made here
//! command       a command of an engine, and what it said
//! service       a process in the background
//! artifacts     what `tests/run` has built
//! ```
//!
//! Nothing here is mocked, and nothing outlives a test: see [`isolation`].

pub mod artifacts;
pub mod command;
pub mod containerd;
pub mod image;
pub mod isolation;
pub mod node;
pub mod service;
