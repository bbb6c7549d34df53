//! Which config an OCI spec's annotations name.
