//! The environment of a container.
//!
//! A *config* (the user's `config.nix` and the files it reads) is *resolved* into an *environment*, which is
//! cached under its *key* as a *manifest* and shown to containers through a *view* of `/nix/store`:
//!
//! ```text
//! reference   which config an OCI spec's annotations name
//! lookup      where that config lies: inside the container, or in nerdctl's working directory
//! snapshot    the config and every file it can read, observed once (literals: the paths in its text)
//! archive     the snapshot as a Nix archive, for the evaluator
//! key         the content address of an environment
//! manifest    the cached record of an environment
//! cache       manifests and input lists on disk; the two-step look-up of a warm start
//! view        the mount that shows exactly one environment's closure
//! resolve     config to manifest: from the cache, else through the daemon
//! inject      manifest into the OCI spec, and into the processes of later execs
//! hits        how many starts found their environment in the cache
//! hold        what a container has in use, released after it stops
//! protocol    frames between the runtime wrapper and the daemon
//! layout      every path on the node; settings: the node's config.toml
//! ```
//!
//! Invariants: everything here is synchronous, links no async runtime and starts no process. Only the daemon
//! runs Nix.

pub mod archive;
pub mod cache;
pub mod digest;
pub mod hits;
pub mod hold;
pub mod inject;
pub mod key;
pub mod layout;
pub mod literals;
pub mod lookup;
pub mod manifest;
pub mod protocol;
pub mod reference;
pub mod resolve;
pub mod settings;
pub mod snapshot;
pub mod store_path;
pub mod view;
