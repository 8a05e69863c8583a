//! The changes of L2 in order, which the repairer follows so that L1 holds nothing that other
//! writers made old.
//!
//! Not here: what is done about a change (`tiered::repair`).

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::StoreError;
use crate::record::{Millis, RecordKey, Revision};

/// A position between two changes. Only the store that returned it can read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Position(pub Bytes);

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({} bytes)", self.0.len())
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A server wrote the record: it has this revision now, and every earlier revision is old.
    Written {
        /// The record.
        key: RecordKey,
        /// Its revision after this change.
        revision: Revision,
    },
    /// Something other than a server changed the record, so its revision proves nothing.
    Edited {
        /// The record.
        key: RecordKey,
    },
    /// All records were dropped, renamed or replaced.
    Everything,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub event: Event,
    /// Never falls along the changes, and is the same for every follower.
    pub order: u64,
    /// When it happened, by L2's clock.
    pub at: Millis,
}

/// Some changes in order; none at quiet times.
#[derive(Clone, Debug)]
pub struct Batch {
    /// At most `MAX_BATCH`.
    pub changes: Vec<Change>,
    /// The position after the last change. It also advances at quiet times.
    pub position: Position,
}

/// The most changes in one batch.
pub const MAX_BATCH: usize = 500;

/// Why the changes cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The changes after that position are no longer available, so anything may have changed.
    #[error("the history of changes is lost: {0}")]
    HistoryLost(std::sync::Arc<str>),
    /// An outage. Try again from the last position.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stream of changes. Dropping it ends it.
#[async_trait]
pub trait Changes: Send {
    /// Returns the next changes as soon as there are some, an empty batch after a while without,
    /// and `Timeout` if L2 did not answer by `deadline`. Dropping the future loses nothing. An
    /// error ends the stream.
    async fn next(&mut self, deadline: Instant) -> Result<Batch, FollowError>;

    /// The position after the last batch, or at first the beginning.
    fn position(&self) -> &Position;
}

/// The answer to a server that asks for the lease of the repairer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Whether the server holds the lease.
    pub held: bool,
    /// The stored position: all changes before it were applied to L1. None: none was ever stored.
    pub position: Option<Position>,
    /// How long ago it was stored, by L2's clock. The repairer stores it every second. None: never.
    pub stored: Option<Duration>,
}
