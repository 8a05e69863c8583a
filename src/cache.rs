//! L1: the trait that every cache implements. Its documentation is a contract, and one suite
//! (`tests/it/cache_contract.rs`) tests every implementation against it.
//!
//! > A value enters L1 only under a permit (a read lease or a write permit) which L1 itself issued
//! > in that entry's present life, and only at a revision >= the entry's floor. Whatever holds no
//! > permit may only remove.
//!
//! Not here: the order of the operations (`tiered`), and L2.

pub mod entry;
pub mod memory;
mod name;
#[cfg(feature = "redis")]
pub mod redis;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

pub use name::L1Name;

use crate::{
    metrics::PoolReading,
    record::{FeatureView, Millis, RecordKey, Revision, SharedText, State, encoding::StoredRecord},
};

/// How long a read lease lasts.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a write permit lasts.
pub const PERMIT: Duration = Duration::from_secs(5);
/// The longest life of a pending entry.
pub const PENDING: Duration = Duration::from_secs(60);
/// How many bytes of values one `get` returns at most, beside its first value.
pub const BATCH_BYTES: usize = 4 << 20;
/// The most permits on one entry, including those that have ended. One more removes the entry.
pub const MAX_PERMITS: usize = 64;

/// How long it may take to transfer `bytes`: 10 ns for each, as over a network of 1 Gbit/s.
pub fn time_to_move(bytes: usize) -> Duration {
    const NANOS_A_BYTE: u64 = 10;
    Duration::from_nanos((bytes as u64).saturating_mul(NANOS_A_BYTE))
}

/// The generation of the cache: a random id that is kept in L2 and is part of every key. So a new
/// epoch starts with an empty cache, and two deployments can share one Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The key of an entry: `{}fs:<epoch>:<view length>:<view>:<entity id>`. The leading `{}` makes
/// Redis Cluster hash the whole key, so entity ids cannot choose a slot.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CacheKey(SharedText);

impl CacheKey {
    /// The key of a record in an epoch.
    pub fn new(epoch: Epoch, key: &RecordKey) -> Self {
        let id = key.entity_id.as_str();
        let mut text = prefix(epoch, &key.view, id.len());
        text.push_str(id);
        Self(text.as_str().into())
    }

    /// The keys of many records in an epoch. They share one buffer.
    pub fn all(epoch: Epoch, keys: &[RecordKey]) -> Vec<Self> {
        let first = match keys {
            [] => return Vec::new(),
            [one] => return vec![Self::new(epoch, one)],
            [first, ..] => first,
        };
        let (mut view, mut common) = (&first.view, prefix(epoch, &first.view, 0));
        let ids = keys.iter().map(|key| key.entity_id.as_bytes().len()).sum::<usize>();
        let mut text = String::with_capacity(keys.len() * common.len() + ids);
        let mut ends = Vec::with_capacity(keys.len());
        for RecordKey { view: of, entity_id } in keys {
            if of != view {
                (view, common) = (of, prefix(epoch, of, 0));
            }
            text.push_str(&common);
            text.push_str(entity_id.as_str());
            ends.push(text.len() as u32);
        }
        SharedText::pieces(&text, &ends).map(Self).collect()
    }

    /// A copy in its own buffer, for keys that are kept.
    pub fn detached(&self) -> Self {
        Self(self.0.detached())
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What the keys of a view's records begin with, in a buffer with `room` for as many bytes more.
fn prefix(epoch: Epoch, view: &FeatureView, room: usize) -> String {
    let view = view.as_str();
    let mut text = String::with_capacity(25 + view.len() + room);
    text.push_str("{}fs:");
    let digit = |at: usize| b"0123456789abcdef"[(epoch.0 >> (60 - 4 * at)) as usize & 15];
    text.push_str(str::from_utf8(&std::array::from_fn::<u8, 16, _>(digit)).expect("digits"));
    text.push(':');
    // A view has at most 63 bytes, so its length has one or two digits.
    let digit = |number: usize| char::from(b'0' + number as u8);
    if view.len() >= 10 {
        text.push(digit(view.len() / 10));
    }
    text.push(digit(view.len() % 10));
    text.push(':');
    text.push_str(view);
    text.push(':');
    text
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// The id of a lease or a permit. A new one for each sending, so that a late or repeated command
/// has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PermitId(pub [u8; 8]);

impl PermitId {
    /// A new id.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What a clean entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheValue {
    /// The record, live or expired.
    Record(StoredRecord),
    /// A negative entry: there is no record. With the revision of the tombstone, or 0.
    Absent(Revision),
}

impl CacheValue {
    /// The revision of the record or tombstone.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Record(record) => record.revision(),
            Self::Absent(revision) => *revision,
        }
    }

    /// The expire time. None: the record never expires, or there is none.
    pub fn expire_at(&self) -> Option<Millis> {
        match self {
            Self::Record(record) => record.expire_at(),
            Self::Absent(_) => None,
        }
    }
}

impl From<State> for CacheValue {
    fn from(state: State) -> Self {
        match state {
            State::Absent => Self::Absent(Revision::NONE),
            State::Tombstone(revision) => Self::Absent(revision),
            State::Record(record) => Self::Record(record),
        }
    }
}

impl From<CacheValue> for State {
    fn from(value: CacheValue) -> Self {
        match value {
            CacheValue::Record(record) => Self::Record(record),
            CacheValue::Absent(Revision::NONE) => Self::Absent,
            CacheValue::Absent(revision) => Self::Tombstone(revision),
        }
    }
}

/// The answer to `acquire`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired<V = CacheValue> {
    /// The entry is clean.
    Hit(V),
    /// The caller holds the lease and may fill the entry.
    Lease {
        /// The value from before the last write, returned only if it is newer than L2's answer.
        suspect: Option<V>,
    },
    /// Another lease or a write permit is alive: the caller reads L2 and fills nothing.
    NoFill {
        /// As for `Lease`.
        suspect: Option<V>,
    },
}

/// The answer to `mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The writer holds the permit.
    Granted,
    /// There were too many permits, so the entry was removed with all of them.
    Overflow,
}

/// What `settle`, `put` and `unmark` did. Each confirms that L1 holds nothing older than the given
/// revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The value was installed.
    Installed,
    /// An older value was removed.
    Dropped,
    /// L1 held nothing older.
    Kept,
    /// There is no such entry.
    NoEntry,
}

/// A value and how long L1 may keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The value to install.
    pub value: CacheValue,
    /// Counted from now; at least 1 ms.
    pub ttl: Duration,
}

/// One `settle`: what a read of L2 found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The entry.
    pub key: CacheKey,
    /// The revision in L2, which is also that of the fill's value.
    pub revision: Revision,
    /// The lease and what to install under it. None: only remove what is older.
    pub fill: Option<(PermitId, Fill)>,
}

/// One `put`: what a write left in L2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The entry.
    pub key: CacheKey,
    /// The permit that `mark` granted.
    pub permit: PermitId,
    /// What L2 now holds.
    pub fill: Fill,
}

/// Why an operation of L1 failed. No such error fails a request by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// No reply came by the deadline. The operation may have happened.
    #[error("L1 did not answer in time")]
    Timeout,
    /// No connection, or none that is verified. The operation may have happened.
    #[error("L1 is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// L1 answered with an error, and the entry could not be removed either.
    #[error("L1 refused the command: {0}")]
    Refused(Arc<str>),
    /// L1 answers, but lacks something that it needs. The text says what, and what to do.
    #[error("{0}")]
    Unsuitable(Arc<str>),
    /// The `get` has reached its limit: ask for this key again. Nothing is wrong with L1.
    #[error("this value was left out, because the batch was full")]
    LeftOut,
    /// The reply had to wait for the large reply of another caller. Nothing is wrong with L1.
    #[error("L1 was still sending a large reply to another call")]
    Behind,
}

impl CacheError {
    /// Whether the error means that something is wrong with L1.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::LeftOut | Self::Behind)
    }
}

/// What probes can find wrong with the engine of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It lacks a command or a right that L1 needs, so it is not used.
    Unsuitable,
    /// It saves its data, so it may come back with an earlier state.
    Persistent,
    /// It has a memory limit and evicts nothing, so it refuses writes when the limit is reached.
    NoEviction,
    /// Its memory is full and nothing can be evicted: hits are served, and nothing new is cached.
    Full,
    /// It is older than the oldest supported version.
    OldVersion,
    /// It does not show whether it was restarted, so old data in it cannot be noticed.
    RestartsUnseen,
}

impl Problem {
    /// Every problem.
    pub const ALL: [Self; 6] =
        [Self::Unsuitable, Self::Persistent, Self::NoEviction, Self::Full, Self::OldVersion, Self::RestartsUnseen];

    /// The value of the label `problem` in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsuitable => "unsuitable",
            Self::Persistent => "persistence",
            Self::NoEviction => "no_eviction",
            Self::Full => "memory_full",
            Self::OldVersion => "old_version",
            Self::RestartsUnseen => "restarts_unseen",
        }
    }
}

/// What `probe` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is the named L1. It holds what it held, or came back without the keys of this epoch.
    Intact,
    /// It is the named L1, but it holds keys of this epoch from an earlier time, so a new epoch is
    /// needed. The cache stays unusable until a probe with a new epoch.
    Restored,
    /// It is not the named L1, and stays unusable.
    Another {
        /// Which L1 it is.
        found: L1Name,
        /// Whether its data continues what was verified in this epoch a short time ago, as the data
        /// of a promoted replica does. The last seconds may be lost.
        goes_on: bool,
    },
}

/// How a tier describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// memory, redis, redis-cluster or redis-sentinel.
    pub kind: &'static str,
    /// Its address, without credentials.
    pub address: String,
    /// Whether other processes may use it too.
    pub shared: bool,
}

/// The operations on L1. Every batch returns one result for each item, in the same order.
///
/// The implementer's duties:
///
/// 1. An operation on one entry is atomic, and does exactly what `entry::Entry` does.
/// 2. Every future ends by `deadline`, with `Timeout` for each item without a reply. It may be
///    dropped.
/// 3. An item that was answered `Ok` has happened. After an `Err` it may have, or may still.
/// 4. An entry that cannot be read (a bad checksum, a foreign type) is removed and counts as a
///    miss. If the engine refuses an operation (memory full), the entry is removed, which is safe,
///    and the answer is `Effect::Dropped`, `NoFill` (`acquire`) or `Overflow` (`mark`).
/// 5. A batch of `get` is one command, or a few in sequence if it may return much. A batch of any
///    other operation is one pipeline for each server. A command is repeated only if a server says
///    that it did not run it. An engine in another process returns at most `BATCH_BYTES` for one
///    `get`, but always the first value. Other keys are answered `LeftOut`, and their values are
///    dropped as they arrive.
/// 6. After a connection was lost, every operation on what that server holds fails with
///    `Unavailable` until `probe` has succeeded. So no call reads from an engine that came back
///    with old data, or from another engine at the same address.
/// 7. Eviction may remove any entry at any time. Otherwise an entry lives exactly as long as given.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Returns clean entries only; a pending one is a miss. Never changes an entry.
    async fn get(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<CacheValue>, CacheError>>;

    /// Asks for the leases to fill entries, each with a new id.
    async fn acquire(&self, asks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Acquired, CacheError>>;

    /// Passes on what a read of L2 found, to be installed if the lease is held and the revision not
    /// below the floor. Otherwise the floor is raised, which removes older values.
    async fn settle(&self, settles: &[Settle], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Announces writes, each with a new id. The values become suspect, and leases are void.
    async fn mark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Marked, CacheError>>;

    /// Ends writes. What L2 now holds is installed if the permit is still there, and the revision
    /// is above that of the value and not below the floor. Otherwise an older value is removed. The
    /// permit is used up.
    async fn put(&self, puts: &[Put], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Takes back writes that L2 never saw. Without other permits the suspect is clean again.
    async fn unmark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Removes entries, as an eviction would.
    async fn remove(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<(), CacheError>>;

    /// Removes everything, as an eviction would, from a cache that only this process uses. A shared
    /// cache is left alone: there a new epoch has the same effect.
    fn clear(&self);

    /// Connects if necessary, finds out which L1 it is (over every connection that operations use),
    /// and verifies its data against `epoch`. Only `Intact` makes the cache usable, the first time
    /// and after a lost connection; anything else makes it unusable. `named`: the L1 that the epoch
    /// holds for. None: no L1 is used, and the caller only asks which one this is.
    async fn probe(&self, epoch: Epoch, named: Option<&L1Name>, deadline: Instant) -> Result<Probe, CacheError>;

    /// The L1 that the last `Intact` probe found.
    fn name(&self) -> Option<L1Name>;

    /// Its kind and address.
    fn info(&self) -> CacheInfo;

    /// What the last probes found wrong with the engine. Only `Unsuitable` prevents its use.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// How its connections are used. None: it has none.
    fn pool(&self) -> Option<PoolReading> {
        None
    }
}
