//! L1: the trait that every cache implements. Its documentation is a contract, and one suite
//! (`tests/it/cache_contract.rs`) holds every implementation to it.
//!
//! > A value enters L1 only under a permit (a read lease or a write permit) which L1 itself issued in that entry's
//! > present life, and only at a revision >= the entry's floor. Whatever holds no permit may only remove.
//!
//! Not here: who calls what in which order (`tiered`), and any word about L2.

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

/// How long a read lease lives.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long a write permit lives.
pub const PERMIT: Duration = Duration::from_secs(5);
/// The longest life of a pending entry.
pub const PENDING: Duration = Duration::from_secs(60);
/// How many bytes of values one `get` brings at most, beside its first value.
pub const BATCH_BYTES: usize = 4 << 20;
/// The most permits listed on one entry, those whose time is over included; one more and the entry is removed instead.
pub const MAX_PERMITS: usize = 64;

/// What moving so many bytes may take: 10 ns each, as a network of 1 Gbit/s has it.
pub fn time_to_move(bytes: usize) -> Duration {
    const NANOS_A_BYTE: u64 = 10;
    Duration::from_nanos((bytes as u64).saturating_mul(NANOS_A_BYTE))
}

/// The generation of the cache: a random id kept in L2 and part of every key, so a new epoch is a cold, correct cache
/// and two deployments on one Redis never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where an entry lives: `{}fs:<epoch>:<view length>:<view>:<entity id>`. The leading `{}` makes Redis Cluster hash the
/// whole key, so entity ids cannot force a slot.
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

    /// The keys of many records in an epoch; they share one text, which the last of them frees.
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

    /// The same in a buffer of its own, for keeping.
    pub fn detached(&self) -> Self {
        Self(self.0.detached())
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What the keys of a view's records begin with; there is room for so much more.
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

/// Names a lease or a permit: random, and a new one for each sending, so that a late or repeated command never counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PermitId(pub [u8; 8]);

impl PermitId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What a clean entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheValue {
    /// The record, live or expired.
    Record(StoredRecord),
    /// A negative entry: there is no record; with the tombstone's revision, or 0.
    Absent(Revision),
}

impl CacheValue {
    /// Its revision.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Record(record) => record.revision(),
            Self::Absent(revision) => *revision,
        }
    }

    /// Its expire time; None: never, or no record.
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
    /// Clean after all.
    Hit(V),
    /// The caller holds the lease and may fill; the value that was there before the last write began, if any.
    Lease {
        /// May be newer than what L2 answers; never to be answered unless it is.
        suspect: Option<V>,
    },
    /// Another lease or a write permit is alive: read L2, fill nothing.
    NoFill {
        /// As for `Lease`.
        suspect: Option<V>,
    },
}

/// The answer to `mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The permit is held.
    Granted,
    /// Too many permits: the entry was removed, and with it all of them.
    Overflow,
}

/// What `settle`, `put` and `unmark` left behind. Each of them confirms that L1 holds nothing older than the revision
/// that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The value was installed.
    Installed,
    /// An older value was removed.
    Dropped,
    /// Nothing older was there.
    Kept,
    /// There is no such entry.
    NoEntry,
}

/// A value and how long L1 may keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// What to install.
    pub value: CacheValue,
    /// From now on; at least 1 ms.
    pub ttl: Duration,
}

/// One `settle`: what L2 was seen to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Where.
    pub key: CacheKey,
    /// At which revision; a fill's value has this one.
    pub revision: Revision,
    /// The lease and what to install under it; None: only remove what is older.
    pub fill: Option<(PermitId, Fill)>,
}

/// One `put`: what a write left in L2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where.
    pub key: CacheKey,
    /// The permit that `mark` granted.
    pub permit: PermitId,
    /// What L2 now holds.
    pub fill: Fill,
}

/// Why L1 did not do as told. None of these fails a request by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// No answer within the deadline; it may have happened.
    #[error("L1 did not answer in time")]
    Timeout,
    /// Cannot be reached, or not verified since the connection was lost; it may have happened.
    #[error("L1 is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// It answered with an error, and the entry could not be removed either.
    #[error("L1 refused: {0}")]
    Refused(Arc<str>),
    /// It answers, but lacks something that L1 needs until somebody changes that. The text says what, and what to do.
    #[error("{0}")]
    Unsuitable(Arc<str>),
    /// A `get` brings no more at once: ask for this key again. Nothing is wrong with L1.
    #[error("not brought: the batch was full")]
    LeftOut,
    /// The answer stood behind another caller's, which is large and still on its way. Nothing is wrong with L1.
    #[error("L1 was still sending a large answer to somebody else")]
    Behind,
}

impl CacheError {
    /// Whether L1 did not do what it should.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::LeftOut | Self::Behind)
    }
}

/// What is wrong with the engine of a cache, as its probes found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It lacks a command or a right that L1 needs, so it is not used.
    Unsuitable,
    /// It saves its data, so it may come back with an earlier state.
    Persistent,
    /// It has a limit of memory and evicts nothing, so it refuses writes once that is reached.
    NoEviction,
    /// Its memory is full and nothing can be evicted: hits go on, and nothing new is cached.
    Full,
    /// It is older than what is supported.
    OldVersion,
    /// It does not say whether it was restarted, so old data in it cannot be noticed.
    RestartsUnseen,
}

impl Problem {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unsuitable, Self::Persistent, Self::NoEviction, Self::Full, Self::OldVersion, Self::RestartsUnseen];

    /// Its name in metrics.
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
    /// It is the L1 that was named, and it holds what it held, or came back without the keys of this epoch.
    Intact,
    /// It is the L1 that was named, but it holds keys of this epoch from an earlier time: a new epoch is needed. Until a
    /// probe with one the cache stays unusable, as after a lost connection.
    Restored,
    /// It is another L1 than the one that was named, and stays unusable.
    Another {
        /// Which one it is.
        found: L1Name,
        /// Whether its data goes on from what was verified in this epoch until shortly ago, as that of a replica does that
        /// was promoted. What the last seconds before brought may be lost.
        goes_on: bool,
    },
}

/// How a tier describes itself; the address is without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// memory, redis, redis-cluster or redis-sentinel.
    pub kind: &'static str,
    /// Where it is.
    pub address: String,
    /// Other processes may use it too.
    pub shared: bool,
}

/// The operations on L1. Every batch answers in its own order, one result an item.
///
/// The implementer's duties:
///
/// 1. An operation on one entry is atomic, and does exactly what `entry::Entry` does.
/// 2. Every future ends by `deadline`, with `Timeout` for what was not answered; dropping a future is allowed.
/// 3. An item that was answered `Ok` has happened. After an `Err` it may have happened, or may still happen.
/// 4. What cannot be read (a bad checksum, a foreign type) is removed and counts as a miss. An operation that the engine
///    refuses (memory full) is answered by removing the entry, which is always safe: then it is `Ok`, `Effect::Dropped`,
///    or for `acquire` `NoFill`, for `mark` `Overflow`.
/// 5. A batch of `get` is one command, or a few one after the other where it may bring much; of any other operation one
///    pipeline; in an engine of several servers one pipeline for each. Nothing is retried but what a server says it has not
///    done. An engine outside of this process brings at most `BATCH_BYTES` for one `get`, and always its first value: the
///    other keys are answered `LeftOut`, and what comes for them is dropped as it comes.
/// 6. After a connection was lost every operation (on what that server holds) fails with `Unavailable` until `probe` has
///    succeeded, so that nobody reads from an engine that came back with old data, or from another one at the same address.
/// 7. Eviction may remove any entry at any time. Nothing else removes one before its time, and nothing keeps one beyond.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Clean entries only; a pending one is a miss. Never changes an entry.
    async fn get(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<CacheValue>, CacheError>>;

    /// Asks for the lease to fill an entry, one new id each.
    async fn acquire(&self, asks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Acquired, CacheError>>;

    /// Tells what L2 was seen to hold: installs it where the lease still holds and the revision is not below the floor,
    /// else removes what is older and raises the floor.
    async fn settle(&self, settles: &[Settle], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Announces writes, one new id each: from now on the entries' values are suspect and their leases void.
    async fn mark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Marked, CacheError>>;

    /// Ends writes: installs what L2 now holds where the permit is alive, the revision is not below the floor and is above
    /// the value's, else removes what is older. The permit is gone afterwards.
    async fn put(&self, puts: &[Put], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Takes a write back that L2 surely never saw: with no permit left the suspect value is clean again.
    async fn unmark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Effect, CacheError>>;

    /// Removes entries, as an eviction would.
    async fn remove(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<(), CacheError>>;

    /// Removes everything, as an eviction would, from a cache that this process alone uses. What others use too is left
    /// alone: there a new epoch does the same.
    fn clear(&self);

    /// Connects if need be, finds out which L1 it is, over every connection that operations use, and verifies what it holds
    /// against `epoch`. `Intact` makes the cache usable, the first time and again after a lost connection; anything else
    /// leaves it, or makes it, unusable. `named`: the L1 that the epoch holds for; None: no L1 will do, and what is asked
    /// for is only which one it is.
    async fn probe(&self, epoch: Epoch, named: Option<&L1Name>, deadline: Instant) -> Result<Probe, CacheError>;

    /// Which L1 the last probe that was answered `Intact` found it to be.
    fn name(&self) -> Option<L1Name>;

    /// What and where it is.
    fn info(&self) -> CacheInfo;

    /// What is wrong with its engine, as the last probes found it. Only `Unsuitable` keeps it from being used.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// How its connections are used; None: it has none.
    fn pool(&self) -> Option<PoolReading> {
        None
    }
}
