//! Connections to a backend, as they stand at one moment.

use super::Distribution;

/// How a pool is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolReading {
    /// Connections at most.
    pub max: usize,
    /// Connections in use.
    pub used: usize,
    /// What waits: for a connection, or on a shared one for its answer.
    pub pending: usize,
    /// How long operations waited for a connection. None: connections are shared, and nothing waits for one.
    pub waits: Option<Distribution>,
}
