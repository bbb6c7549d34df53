//! containerd's snapshots: what its own overlayfs snapshotter does, and layers that name store paths.
//!
//! ```text
//! service      the service that containerd calls; the one module that knows the protocol's types
//! metadata     what is known of each snapshot: a database
//! directories  the directory of each snapshot
//! contents     what lies in one: its size, and attributes that no image may bring
//! mounts       how one is mounted
//! id_mapping   owners in user namespaces
//! filter       the filters of a list
//! layer        layers that name store paths
//! info         a snapshot
//! ```

pub mod filter;
pub mod info;
pub mod layer;
