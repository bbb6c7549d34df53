//! Injection of an environment into the OCI spec, and into the processes of later execs.
