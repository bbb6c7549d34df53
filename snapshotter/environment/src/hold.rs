//! What a running container has in use.
