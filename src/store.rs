//! L2: the trait that every store implements. Its documentation is a contract, and one suite
//! (`tests/it/store_contract.rs`) tests every implementation against it.
//!
//! Not here: caching (`cache`, `tiered`), and what a request may contain (`api`).

pub mod apply;
pub mod changes;
pub mod embedded;
mod epoch;
mod error;
#[cfg(feature = "mongodb")]
pub mod mongodb;
mod request;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use changes::{Changes, FollowError, Leadership, Position};
pub use epoch::{Claim, EpochState, LEASE, LEASE_LOW};
pub use error::StoreError;
pub use request::{Operation, repeated};

use crate::{
    cache::{Epoch, L1Name},
    metrics::PoolReading,
    record::{Millis, Record, RecordKey, Revision, State, WriteMode},
};

/// How many bytes of records one read returns at most, beside its last record.
pub const READ_BYTES: usize = 4 << 20;
/// How many of its latest writes a record remembers by their request ids.
pub const REMEMBERED_REQUESTS: usize = 8;

/// The rules for every write.
#[derive(Clone, Debug)]
pub struct WriteRules {
    /// For records without a lifetime of their own.
    pub default_ttl: Duration,
    /// How long a tombstone, and a record past its expire time, is kept.
    pub tombstone_ttl: Duration,
    /// The most features of a record, after a merge.
    pub max_features: usize,
    /// The most bytes of a record's features as stored (`record::encoding`), after a merge, in
    /// every store.
    pub max_record_bytes: usize,
}

/// Identifies one write, so that it applies once. The client gives the id, or the server makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub Arc<str>);

/// A write to one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The record.
    pub key: RecordKey,
    /// Identifies this write.
    pub request_id: RequestId,
    /// Write only if the live record has this revision; 0: only if there is no live record.
    pub if_revision: Option<Revision>,
    /// What to do.
    pub change: Change,
}

impl Write {
    /// Whether the stored record must be read, so that it may be in the answer.
    pub fn needs_stored(&self) -> bool {
        let is_merge = matches!(&self.change, Change::Upsert(record) if record.mode == WriteMode::Merge);
        is_merge || self.if_revision.is_some()
    }
}

/// What a write does to its record.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Writes it.
    Upsert(Record),
    /// Replaces it by a tombstone.
    Delete,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The record was written.
    Written,
    /// The stored event time is newer; nothing changed.
    SkippedStale,
    /// The record was deleted.
    Deleted,
    /// There was no live record to delete; nothing changed.
    NotFound,
    /// `if_revision` differs; nothing changed. `stored` is 0 if there is no live record.
    RevisionMismatch {
        /// The revision of the live record.
        stored: Revision,
    },
    /// The request id belongs to another operation on this record; nothing changed.
    RequestIdReused,
    /// The merged record would have more features than allowed; nothing changed.
    TooManyFeatures {
        /// How many it would have.
        count: usize,
    },
    /// The merged record would be larger than allowed; nothing changed.
    RecordTooLarge {
        /// How large it would be, in bytes.
        bytes: usize,
    },
    /// The merged record would be within the limit, but too large for this store in its own form;
    /// nothing changed.
    DocumentTooLarge {
        /// Its size in bytes as every store counts it.
        bytes: usize,
        /// Its size in bytes in the form of this store.
        document: usize,
        /// The limit of this store.
        maximum: usize,
    },
}

/// The answer to one write: its outcome, and what L2 now holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// For a repeated request id: the first outcome, if the request is the same.
    pub outcome: Outcome,
    /// The present revision of the record or tombstone; 0: there is neither.
    pub revision: Revision,
    /// Whether L2 now holds a tombstone. (A repeated delete may find a later record.)
    pub tombstone: bool,
}

/// A reading of L2's clock: it showed `time` at some moment between `after` and `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSeen {
    /// The reading.
    pub time: Millis,
    /// The earliest moment of the reading.
    pub after: Instant,
    /// The latest moment of the reading.
    pub before: Instant,
}

/// A fact about the configuration of L2 that this server did not cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its severity.
    pub severity: Severity,
    /// What it is, and what to do.
    pub text: String,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Answers would be wrong, so the store refuses all work.
    Wrong,
    /// The store works, but may refuse or lose some records.
    Odd,
    /// It cannot be checked, because a right is missing.
    Unchecked,
    /// It costs something, but does no harm.
    Extra,
}

impl Severity {
    /// Every severity.
    pub const ALL: [Self; 4] = [Self::Wrong, Self::Odd, Self::Unchecked, Self::Extra];

    /// The label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Odd => "odd",
            Self::Unchecked => "unchecked",
            Self::Extra => "extra",
        }
    }
}

/// The guarantee of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadConcern {
    /// What a majority has acknowledged, from the primary.
    Majority,
    /// The present state, even against a deposed primary.
    Linearizable,
}

/// How a tier describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// embedded or mongodb.
    pub kind: &'static str,
    /// Its address, without credentials.
    pub address: String,
    /// Whether no other process can write to it.
    pub exclusive: bool,
    /// Other processes may write to it, and it has no change stream, or was not reached yet. So
    /// there is no repairer, and L1 must not keep records for long.
    pub silent: bool,
}

/// The operations on L2. Every batch returns one result for each item, in the same order.
///
/// The implementer's duties:
///
/// 1. A write that was answered `Ok` is durable (fsynced; MongoDB: `w: majority, j: true`), and
///    reads return only durable data.
/// 2. A write does exactly what `apply::apply` does, atomically: the checks run in the order
///    request id, if_revision, event time, limits; the clock is that of L2; every attempt on a
///    stored document is remembered by its request id.
/// 3. `OutcomeUnknown` means that the write may have happened or may still happen, `DoneUnreadable`
///    that it has. Any other error means that it certainly did not happen.
/// 4. Absence is data: a key that was not found is `State::Absent`, and no error becomes that. A
///    record that cannot be read is `Corrupt`, for that key alone.
/// 5. Every future ends by `deadline` or a moment later. It may be dropped at any await; work that
///    must not be dropped is spawned.
/// 6. Expired and deleted records stay readable (as expired, as tombstones) for `tombstone_ttl`.
///    Their later removal is only garbage collection.
/// 7. The store may be unreachable when it is created. Each call connects and creates indexes if
///    necessary.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads records. Majority: one query for all keys. After `READ_BYTES` of records the other
    /// keys are answered `LeftOut`, so no more than that and one reply of the engine is held. At
    /// least one key gets another answer.
    async fn read(&self, keys: &[RecordKey], concern: ReadConcern, deadline: Instant)
    -> Vec<Result<State, StoreError>>;

    /// Does one write, and returns what L2 holds afterwards, whatever the outcome.
    async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError>;

    /// Does many writes in as few round trips as possible. Writes of equal keys keep their order.
    /// Each may fail alone.
    async fn write_batch(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Receipt, StoreError>>;

    /// The epoch. The first call ever makes one, which names no L1. If the records are not those
    /// for which it was made (a copy, a restored backup, a new collection), it is replaced first,
    /// or names no L1.
    async fn epoch(&self, deadline: Instant) -> Result<EpochState, StoreError>;

    /// As `epoch`, for a server that uses this L1. Extends the lease of the named L1 if it is this
    /// one, or else the common lease of other L1s if this one is in a process.
    async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Makes the epoch name another L1, unless a server still has a lease on the named one. Returns
    /// the epoch afterwards. An exclusive store has no leases.
    async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Replaces the epoch by a new random one that is not dirty and names the same L1, if it is
    /// still `seen`. Returns the epoch afterwards.
    async fn renew_epoch(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Replaces any epoch, even an unreadable one, by a new random one that names `l1`.
    async fn new_epoch(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Marks the present epoch as dirty, durably, and returns it.
    async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Follows the changes of all records after a position, or from now on: then every change that
    /// reads do not yet show when this returns is included. None: this store cannot follow changes
    /// (`StoreInfo::silent`), or nobody else can write to it. `HistoryLost` is possible only with a
    /// position.
    async fn changes(
        &self,
        after: Option<Position>,
        deadline: Instant,
    ) -> Result<Option<Box<dyn Changes>>, FollowError>;

    /// Asks for the lease of the repairer, for `lease` from now by L2's clock, and returns the
    /// stored position. Without a position the lease is granted if nobody else holds it. With one
    /// it is only extended if `me` holds it, and the position is stored with it, so a former holder
    /// stores nothing. Only for stores with changes to follow.
    async fn lead(
        &self,
        me: &str,
        lease: Duration,
        position: Option<Position>,
        deadline: Instant,
    ) -> Result<Leadership, StoreError>;

    /// Gives up the lease of the repairer, if `me` holds it.
    async fn resign(&self, me: &str, deadline: Instant) -> Result<(), StoreError>;

    /// Whether it can serve reads and writes now.
    async fn ping(&self, deadline: Instant) -> Result<(), StoreError>;

    /// How many bytes of memory these writes take in this store, if that is much more than the
    /// writes themselves. They are counted before anything is allocated.
    fn unfolds_to(&self, _writes: &[Write]) -> usize {
        0
    }

    /// Ends background work and flushes. No call may follow.
    async fn close(&self);

    /// Its kind and address.
    fn info(&self) -> StoreInfo;

    /// The findings of the last check of its configuration.
    fn findings(&self) -> Arc<Vec<Finding>> {
        Arc::default()
    }

    /// The last reading of L2's clock, taken with the epoch. None: it is the clock of this machine,
    /// or was not read yet.
    fn time(&self) -> Option<TimeSeen> {
        None
    }

    /// How its connections are used. None: it has none.
    fn pool(&self) -> Option<PoolReading> {
        None
    }
}

/// When the document may be removed. None: never.
pub fn collect_at(expire_at: Option<Millis>, deleted_at: Option<Millis>, rules: &WriteRules) -> Option<Millis> {
    match (expire_at, deleted_at) {
        (expire_at, Some(deleted_at)) => {
            Some(expire_at.map_or(deleted_at, |at| at.max(deleted_at)).after(rules.tombstone_ttl))
        }
        (Some(at), None) => Some(at.after(rules.tombstone_ttl)),
        (None, None) => None,
    }
}
