//! L2: the trait that every store implements. Its documentation is a contract, and one suite
//! (`tests/it/store_contract.rs`) holds every implementation to it.
//!
//! Not here: caching (`cache`, `tiered`), and what a request may hold (`api`).

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

/// How many bytes of records one read brings at most, beside its last record.
pub const READ_BYTES: usize = 4 << 20;
/// How many of its latest writes a record remembers by their request ids.
pub const REMEMBERED_REQUESTS: usize = 8;

/// What holds for every write.
#[derive(Clone, Debug)]
pub struct WriteRules {
    /// For records that give no lifetime.
    pub default_ttl: Duration,
    /// How long a tombstone, and a record past its expire time, is kept.
    pub tombstone_ttl: Duration,
    /// Features of a record, after a merge.
    pub max_features: usize,
    /// Bytes of a record's features in their stored form (`record::encoding`), after a merge, whatever form a store gives them.
    pub max_record_bytes: usize,
}

/// Names one write, the client's id or one of ours, so that it applies once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub Arc<str>);

/// What to do to one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Which record.
    pub key: RecordKey,
    /// Names this write.
    pub request_id: RequestId,
    /// Only if the live record has this revision; 0: only if there is no live record.
    pub if_revision: Option<Revision>,
    /// What to do.
    pub change: Change,
}

impl Write {
    /// Whether what is stored has to be looked at, so that it may come back with the answer.
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
    /// Leaves a tombstone in its place.
    Delete,
}

/// What became of a write.
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
    /// `if_revision` differs; nothing changed. `stored` is 0 where there is no live record.
    RevisionMismatch {
        /// The live record's.
        stored: Revision,
    },
    /// The request id stands for another operation on this record; nothing changed.
    RequestIdReused,
    /// The merged record would have more features than allowed; nothing changed.
    TooManyFeatures {
        /// How many it would have.
        count: usize,
    },
    /// The merged record would be larger than allowed; nothing changed.
    RecordTooLarge {
        /// How large it would be.
        bytes: usize,
    },
    /// The merged record would not be larger than allowed, but larger than this store can hold it in its own form; nothing
    /// changed.
    DocumentTooLarge {
        /// How large it would be as every store counts it.
        bytes: usize,
        /// How large it would be in the store's own form.
        document: usize,
        /// How large that may be.
        maximum: usize,
    },
}

/// The answer to one write: what became of it, and what now stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Of a repeated request id: the first outcome, if the request is the first one too.
    pub outcome: Outcome,
    /// Of the record or tombstone as it now stands; 0: neither.
    pub revision: Revision,
    /// What now stands is a tombstone. (A repeated delete may find a record that was written since.)
    pub tombstone: bool,
}

/// What is known of L2's clock: it read `time` at some moment between two of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSeen {
    /// What it read.
    pub time: Millis,
    /// Not before this.
    pub after: Instant,
    /// Not after this.
    pub before: Instant,
}

/// Something about how L2 is set up that this server did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub severity: Severity,
    /// What it is, and what to do about it.
    pub text: String,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Answers would be wrong: the store refuses all work meanwhile.
    Wrong,
    /// The store works, and may refuse or lose some records.
    Odd,
    /// It cannot be told, for want of a right.
    Unchecked,
    /// It costs something and does no harm.
    Extra,
}

impl Severity {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Wrong, Self::Odd, Self::Unchecked, Self::Extra];

    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Odd => "odd",
            Self::Unchecked => "unchecked",
            Self::Extra => "extra",
        }
    }
}

/// How a read is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadConcern {
    /// What a majority acknowledged, from the primary.
    Majority,
    /// As of now, even against a deposed primary.
    Linearizable,
}

/// How a tier describes itself; the address is without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// embedded or mongodb.
    pub kind: &'static str,
    /// Where it is.
    pub address: String,
    /// No other process can write to it.
    pub exclusive: bool,
    /// Others may write to it, and it cannot tell of their changes, or was not reached yet: there is no repairer, and what
    /// L1 holds must not live long.
    pub silent: bool,
}

/// The operations on L2. Every batch answers in its own order, one result an item.
///
/// The implementer's duties:
///
/// 1. A write that was answered `Ok` is durable (fsynced; MongoDB: `w: majority, j: true`), and reads see only what is.
/// 2. A write does exactly what `apply::apply` does, atomically: the checks run in the order request id, if_revision, event
///    time, limits; the clock is L2's own; every attempt on a stored document is remembered by its request id.
/// 3. `OutcomeUnknown` is answered for a write that may have happened or may still happen, `DoneUnreadable` for one that
///    has; any other error means that it surely did not.
/// 4. Absence is data: a key that was not found is `State::Absent`, and no error ever becomes that. One that cannot be
///    read is `Corrupt`, for that key alone.
/// 5. Every future ends by `deadline`, at the latest a moment after. It may be dropped at any await without harm: what
///    must not be dropped is spawned.
/// 6. Expired and deleted records stay readable (as expired, as tombstones) for `tombstone_ttl`; collecting them later is
///    only garbage collection.
/// 7. The store may be unreachable when it is made: each call connects, and prepares what it needs (indexes), if need be.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads records. Majority: one query for all keys. Once they have `READ_BYTES` together, the others are answered
    /// `LeftOut`: no more is held than that and what one reply of the engine brings. At least one key is answered otherwise.
    async fn read(&self, keys: &[RecordKey], concern: ReadConcern, deadline: Instant)
    -> Vec<Result<State, StoreError>>;

    /// Does one write and answers what now stands, whatever became of the write.
    async fn write(&self, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError>;

    /// Does many writes in as few round trips as possible. Writes of equal keys are done in their order. One may fail where
    /// the others succeed.
    async fn write_batch(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Receipt, StoreError>>;

    /// The epoch; the first call ever makes one, that names no L1. Where the records are others than those that it was made
    /// for (a copy, a restored backup, a collection that was dropped and made again) it is replaced first, or names no L1.
    async fn epoch(&self, deadline: Instant) -> Result<EpochState, StoreError>;

    /// The same for a server that uses this L1, and says so: prolongs the lease of the named L1 where it is this one, else of
    /// those beside where it is in a process.
    async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Lets the epoch hold for another L1, unless somebody still says to use the one that is named; answers what then stands.
    /// An exclusive store asks for no lease.
    async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Replaces the epoch by a new random one that is not dirty, if it is still `seen`; answers the one that then stands. It
    /// names the same L1.
    async fn renew_epoch(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Replaces the epoch whatever stands there, even what cannot be read, by a new random one that names this L1 or none.
    async fn new_epoch(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Marks the present epoch as dirty, durably, and answers it.
    async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError>;

    /// Follows the changes of all records after a position, by default from now on: every change that reads
    /// do not show yet when this is answered is among them. None: this store cannot tell (`StoreInfo::silent`), or need not, as nobody else
    /// can write to it. `HistoryLost` only for a position that was given.
    async fn changes(
        &self,
        after: Option<Position>,
        deadline: Instant,
    ) -> Result<Option<Box<dyn Changes>>, FollowError>;

    /// Asks to be the one who repairs, for `lease` from now on by L2's own clock, and tells what position is stored.
    /// Without a position: granted where nobody else holds a lease. With one: only prolongs what `me` holds, and stores the
    /// position with it; who was succeeded stores nothing. Only for stores that have changes to follow.
    async fn lead(
        &self,
        me: &str,
        lease: Duration,
        position: Option<Position>,
        deadline: Instant,
    ) -> Result<Leadership, StoreError>;

    /// Gives the lease up, if `me` holds it.
    async fn resign(&self, me: &str, deadline: Instant) -> Result<(), StoreError>;

    /// Whether it can serve now: reads and writes.
    async fn ping(&self, deadline: Instant) -> Result<(), StoreError>;

    /// How many bytes of memory these writes take here while they are done, where that is much more than the writes
    /// themselves. They are counted before anything is made.
    fn unfolds_to(&self, _writes: &[Write]) -> usize {
        0
    }

    /// Ends what runs in the background and flushes; nothing is called afterwards.
    async fn close(&self);

    /// What and where it is.
    fn info(&self) -> StoreInfo;

    /// What others made of it, as it was last looked at.
    fn findings(&self) -> Arc<Vec<Finding>> {
        Arc::default()
    }

    /// L2's clock as it was seen last, with the epoch; None: it is this machine's, or was not seen yet.
    fn time(&self) -> Option<TimeSeen> {
        None
    }

    /// How its connections are used; None: it has none.
    fn pool(&self) -> Option<PoolReading> {
        None
    }
}

/// When the document may be collected: an absent time means never.
pub fn collect_at(expire_at: Option<Millis>, deleted_at: Option<Millis>, rules: &WriteRules) -> Option<Millis> {
    match (expire_at, deleted_at) {
        (expire_at, Some(deleted_at)) => {
            Some(expire_at.map_or(deleted_at, |at| at.max(deleted_at)).after(rules.tombstone_ttl))
        }
        (Some(at), None) => Some(at.after(rules.tombstone_ttl)),
        (None, None) => None,
    }
}
