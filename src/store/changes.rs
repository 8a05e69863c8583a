//! L2's changes, one after the other, for those who keep an L1 true that others write behind: what the repairer follows.
//!
//! Not here: what is done about a change (`tiered::repair`).

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::StoreError;
use crate::record::{Millis, RecordKey, Revision};

/// A place between two changes. Only the store that gave it can read it.
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
    /// A write of a server: the record has this revision now, and every revision before it is old.
    Written {
        /// Which record.
        key: RecordKey,
        /// Since this change.
        revision: Revision,
    },
    /// Somebody or something else changed the record: its revision says nothing.
    Edited {
        /// Which record.
        key: RecordKey,
    },
    /// The records as a whole were dropped, renamed or replaced.
    Everything,
}

/// One change as it is met by who follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub event: Event,
    /// Never falls along the changes, and is the same for everybody who meets this one.
    pub order: u64,
    /// When it happened, by L2's clock.
    pub at: Millis,
}

/// Some changes, in their order; none at quiet times.
#[derive(Clone, Debug)]
pub struct Batch {
    /// At most `MAX_BATCH`.
    pub changes: Vec<Change>,
    /// After the last of them; it moves on at quiet times too.
    pub position: Position,
}

/// Changes in one batch at most.
pub const MAX_BATCH: usize = 500;

/// Why the changes cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// What happened after that position can no longer be told: anything may have changed.
    #[error("the history of changes is lost: {0}")]
    HistoryLost(std::sync::Arc<str>),
    /// An outage. Try again from the last position.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes as they come. Dropping it ends it.
#[async_trait]
pub trait Changes: Send {
    /// The next ones as soon as there are some, an empty batch after a while without; `Timeout` where by `deadline` there
    /// was no word at all. Dropping the future loses nothing. After an error there is nothing more to come.
    async fn next(&mut self, deadline: Instant) -> Result<Batch, FollowError>;

    /// After the last batch; at first where it began.
    fn position(&self) -> &Position;
}

/// Who repairs, as far as the one who asked is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The one who asked does, until the lease is over.
    pub held: bool,
    /// What is stored: every change before it was made good in L1. None: nobody has followed the changes yet.
    pub position: Option<Position>,
    /// How long ago it was stored, by L2's clock; who leads stores it every second. None: never.
    pub stored: Option<Duration>,
}
