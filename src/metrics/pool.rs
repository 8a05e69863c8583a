//! The connections to a backend at one moment.

use super::Distribution;

/// The use of a pool of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolReading {
    /// The most connections.
    pub max: usize,
    /// Connections in use.
    pub used: usize,
    /// Operations that wait for a connection or, if connections are shared, for their answer.
    pub pending: usize,
    /// How long operations waited for a connection. None: connections are shared, and no operation
    /// waits for one.
    pub waits: Option<Distribution>,
}
