//! The fixture of the end-to-end tests: a private node with real engines and a real Nix.
//!
//! ```text
//! isolation     runs a test again in namespaces, mounts and cgroups of its own, which end with it
//! node          a node: everything below, started in order
//! containerd    containerd, of the pinned release or Debian's
//! buildkit      BuildKit, for `nerdctl build`
//! cache_server  the binary cache of the test package set, over HTTP on loopback
//! nix           the node's store, and the Nix daemon
//! nixenv        the product: its daemon, and its runtime before containerd's
//! inventory     files, mounts and processes of a node
//! recorder      recorders of the specs that go through the runtime wrapper
//! trace         which programs a service starts
//! image         minimal images, made here
//! nix_image     images of store paths, made with nix-snapshotter's nix2container
//! nix_snapshotter  nix-snapshotter, which is measured beside the product
//! recipe        images of several layers, made once
//! registry      a registry on loopback, and what it was asked for
//! tree          what there is in a tree of files, for comparison
//! command       a command of an engine, and what it said
//! service       a process in the background
//! artifacts     what `tests/run` has built
//! ```
//!
//! Nothing here is mocked, and nothing outlives a test: see [`isolation`].

pub mod artifacts;
pub mod buildkit;
pub mod cache_server;
pub mod command;
pub mod containerd;
pub mod image;
pub mod inventory;
pub mod isolation;
pub mod nix;
pub mod nix_image;
pub mod nix_snapshotter;
pub mod nixenv;
pub mod node;
pub mod recipe;
pub mod recorder;
pub mod registry;
pub mod service;
pub mod trace;
pub mod tree;
