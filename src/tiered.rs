//! L1 in front of L2: read-through, write-through, delete and bulk over a [`Cache`] and a [`Store`].
//!
//! This is the coherence protocol. Which engine is behind a trait cannot be seen from here; requests, status codes and
//! limits are `api`'s. The promise, per record: a write that was answered with `cached` is what every later read
//! returns, or something newer; what falls short of that is said in the answer (`degraded`, `cached = false`).
//!
//! - [`read`](Tiered::read): MGET, ACQUIRE, one L2 read, SETTLE; many callers of one key share a flight.
//! - [`upsert`](Tiered::upsert), [`delete`](Tiered::delete): MARK, commit, PUT, in a task that no cancelled call can drop.
//! - [`write_bulk`](Tiered::write_bulk): commit, then SETTLE.
//! - [`repair`](Tiered::repair): removes from L1 what changes of L2 made old, whoever made them.
//! - [`audit`](Tiered::audit): whether L1 tells the truth.
//! - `naming`: which L1 the epoch holds for, and how that changes.
//! - [`trust`]: whether L1 may be used at all; [`watch`](Tiered::watch) brings it back after a loss. [`breaker`]: whether a
//!   tier answers; [`pace`]: whether L1 is fast enough for reads; [`mode`]: all of that, as people are told.
//! - `parts`: a read that brings more than fits into memory at once, part by part.
//! - `patience`: how long a call waits for L1 in all; [`lane`]: how many may ask L2 at once, and who is shed.

pub mod audit;
mod board;
pub mod breaker;
mod bulk;
mod clock;
mod distinct;
mod fetch;
mod flight;
pub mod lane;
mod look;
pub mod meter;
pub mod mode;
mod naming;
pub mod outcomes;
pub mod pace;
mod parts;
mod patience;
mod read;
mod renewals;
pub mod repair;
pub(crate) mod seldom;
mod sizes;
mod told;
mod trouble;
pub mod trust;
mod watch;
mod write;

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::RngExt as _;
use tokio::{sync::watch::Sender, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    cache::{Cache, CacheError, CacheValue, Fill},
    in_flight::{ByteBudget, Holding},
    metrics::Counter,
    record::{Clock, FeatureView, Millis, State},
    store::{Severity, Store, StoreError},
    trace,
};
use audit::Audit;
use breaker::Breaker;
use clock::L2Clock;
use flight::Flights;
use lane::Lane;
use meter::{Meter, Operation};
use outcomes::Outcomes;
use pace::Pace;
use patience::{L1Patience, Load};
use renewals::Renewals;
use repair::{RepairSettings, Repairs};
use seldom::Seldom;
use sizes::Sizes;
use trouble::Trouble;
use trust::Trust;

pub use crate::cache::Problem;
pub use parts::{Keep, Refused, Whole};
pub use read::{Consistency, ReadAnswer, ReadRequest, Row, RowError, Tier};
pub use watch::Reach;
pub use write::{BulkAnswer, WriteAnswer, WriteError};

/// How long L1 keeps a record at most where L2 cannot tell of changes made behind our back.
const SILENT_L2_TTL: Duration = Duration::from_secs(5 * 60);

/// How many reads of L2 may wait for each that is made: with a quarter of their deadline, a herd is shed soon.
const WAITING_READS: usize = 16;
/// Which part of a read's time it may wait for such a place, or for room.
const PATIENCE_PART: u32 = 4;
/// Between two words of the log about what each call meets anew.
const WORDS: Duration = Duration::from_secs(1);

/// What an operator can turn.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long L1 keeps a record at most, before jitter.
    pub l1_ttl: Duration,
    /// How long a call waits for L1 over all its steps, and 50 us more for each key; then it goes on without it.
    pub l1_timeout: Duration,
    /// Reads leave L1 alone while more than one in a hundred of its commands takes longer.
    pub l1_slow: Duration,
    /// What becomes of writes that L1 does not confirm.
    pub on_l1_loss: OnL1Loss,
    /// How long L2 keeps tombstones.
    pub tombstone_ttl: Duration,
    /// How long a read of L2 on behalf of many callers may take.
    pub read_deadline: Duration,
    /// How long a write may take after its call, if any, has gone.
    pub write_deadline: Duration,
    /// Reads of L2 at once; some more wait, and the rest is shed.
    pub max_l2_reads: usize,
    /// Writes at once, those included whose calls have gone; more are refused.
    pub max_writes: usize,
    /// How the repairer works.
    pub repair: RepairSettings,
}

/// What becomes of writes that L1 does not confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnL1Loss {
    /// They are answered OK, `cached = false`.
    Accept,
    /// They are refused.
    Reject,
}

/// Both tiers and what is known of them.
pub struct Tiered {
    cache: Arc<dyn Cache>,
    /// L1 is in another process, so what it answers takes memory of this one.
    brings: bool,
    store: Arc<dyn Store>,
    settings: Settings,
    clock: L2Clock,
    /// Of records, as reads brought them.
    sizes: Sizes,
    /// What counts the bytes that calls, and the work for them, hold.
    bytes: OnceLock<Arc<ByteBudget>>,
    trust: Trust,
    pace: Pace,
    l2_breaker: Breaker,
    flights: Flights,
    l2_reads: Lane,
    writes: Lane,
    tasks: TaskTracker,
    reach: Sender<Reach>,
    /// The new epochs that this server made for L1.
    renewals: Renewals,
    /// What was told of L1.
    l1_trouble: Mutex<Trouble>,
    /// The epoch holds for another L1 than ours, and since when.
    l1_is_another: AtomicBool,
    another_since: Mutex<Option<Instant>>,
    /// L2 cannot tell of changes, so L1 must not keep what it holds for long.
    silent_l2: AtomicBool,
    repairs: Repairs,
    audit: Audit,
    /// What L1 did since start.
    pub l1_meter: Meter,
    /// What L2 did since start.
    pub l2_meter: Meter,
    /// What became of the entries that L1 was told of.
    pub outcomes: Outcomes,
    /// Reads that were answered `degraded`.
    pub degraded_reads: Counter,
    /// Records that are durable, but that L1 did not confirm.
    pub writes_not_cached: Counter,
    l1_words: Seldom,
    l2_words: Seldom,
}

impl Tiered {
    /// Puts `cache` in front of `store`. Nothing is trusted before [`watch`](Self::watch) has looked at both.
    pub fn new(cache: Arc<dyn Cache>, store: Arc<dyn Store>, settings: Settings, clock: Clock) -> Arc<Self> {
        let exclusive = store.info().exclusive;
        let l2_reads = Lane::new(
            settings.max_l2_reads,
            settings.max_l2_reads * WAITING_READS,
            settings.read_deadline / PATIENCE_PART,
        );
        let pace = Pace::new(settings.l1_slow);
        let writes = Lane::new(settings.max_writes, 0, Duration::ZERO);
        let trust = Trust::new(exclusive, clock.clone());
        let brings = cache.info().shared;
        // What others write is seen in an L1 of this process only by following L2.
        if !exclusive && !brings {
            trust.lost_track();
        }
        Arc::new(Self {
            cache,
            brings,
            store,
            settings,
            clock: L2Clock::new(clock),
            sizes: Sizes::default(),
            bytes: OnceLock::new(),
            trust,
            pace,
            l2_breaker: Breaker::new(5),
            flights: Flights::default(),
            l2_reads,
            writes,
            tasks: TaskTracker::new(),
            reach: Sender::new(Reach::default()),
            renewals: Renewals::default(),
            l1_trouble: Mutex::default(),
            l1_is_another: AtomicBool::new(false),
            another_since: Mutex::default(),
            silent_l2: AtomicBool::new(false),
            repairs: Repairs::default(),
            audit: Audit::default(),
            l1_meter: Meter::new(Operation::L1),
            l2_meter: Meter::new(Operation::L2),
            outcomes: Outcomes::default(),
            degraded_reads: Counter::default(),
            writes_not_cached: Counter::default(),
            l1_words: Seldom::every(WORDS),
            l2_words: Seldom::every(WORDS),
        })
    }

    /// The cache, for its description.
    pub fn cache(&self) -> &dyn Cache {
        self.cache.as_ref()
    }

    /// The store, for its description.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Now by L2's clock, as far as it is known: what expiry is judged by.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// How many bytes the answer to one write takes that needs the stored record, by how large records of its feature view were
    /// lately. Small ones are not counted.
    pub fn expected_answer(&self, view: &FeatureView) -> usize {
        // MongoDB's answer, its BSON as the driver has it, the record made of it, and L1's copy.
        const COPIES: usize = 4;
        const UNCOUNTED: usize = 16 << 10;
        // What is larger is still let in one by one.
        const MOST: usize = 16 << 20;
        let bytes = self.sizes.of(view).get();
        if bytes > UNCOUNTED { (COPIES * bytes).min(MOST) } else { 0 }
    }

    /// How far this server's clock is ahead of L2's, in seconds; behind it where negative.
    pub fn clock_skew(&self) -> f64 {
        self.clock.skew()
    }

    /// What others made of L2, as it was last looked at: how many findings of each severity.
    pub fn setup_findings(&self) -> [(&'static str, usize); Severity::ALL.len()] {
        let findings = self.store.findings();
        Severity::ALL
            .map(|severity| (severity.name(), findings.iter().filter(|finding| finding.severity == severity).count()))
    }

    /// Whether L1 may be used.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether L2 is being asked.
    pub fn l2_breaker(&self) -> &Breaker {
        &self.l2_breaker
    }

    /// Who reads L2, for misses and otherwise.
    pub fn l2_reads(&self) -> &Lane {
        &self.l2_reads
    }

    /// Who writes, those included whose calls have gone.
    pub fn writes(&self) -> &Lane {
        &self.writes
    }

    /// Waits until every detached write and fill has ended. New ones are still taken meanwhile.
    pub async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// From now on what the server's own work holds is counted here too. Once only.
    pub fn count_bytes(&self, bytes: Arc<ByteBudget>) {
        let _ = self.bytes.set(bytes);
    }

    /// Counts what work for several calls holds.
    fn holding(&self) -> Holding {
        self.bytes.get().map_or_else(Holding::default, Holding::of_all)
    }

    /// Until when a read waits for room, if it finds none now: as long as for a place among the reads of L2.
    pub fn room_by(&self) -> Instant {
        Instant::now() + self.settings.read_deadline / PATIENCE_PART
    }

    /// A call's time for L1.
    fn l1_patience(&self) -> L1Patience<'_> {
        L1Patience::new(self.settings.l1_timeout, &self.pace, &self.l1_meter)
    }

    /// Does a step for which its call has no time left, so that nobody waits for it: what it is for was remembered, or
    /// lapses by itself. Nothing is counted, as the call has already told of L1's failure.
    fn go_on_alone<F>(&self, load: Load, step: impl FnOnce(Arc<dyn Cache>, Instant) -> F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let deadline = Instant::now() + self.settings.l1_timeout + load.time();
        self.tasks.spawn(trace::carried(step(self.cache.clone(), deadline)));
    }

    /// Counts a failed L1 command. A refusal says nothing about the connection, so it does not trip the breaker.
    fn note_l1(&self, error: &CacheError) {
        if error.is_failure() {
            self.l1_meter.failed();
        }
        match error {
            // Nothing is wrong with it.
            CacheError::LeftOut | CacheError::Behind => return,
            CacheError::Timeout => self.trust.breaker.failed(),
            CacheError::Unavailable(_) | CacheError::Unsuitable(_) => self.trust.breaker.trip(),
            CacheError::Refused(reason) => {
                if let Some(unsaid) = self.l1_words.now() {
                    tracing::warn!(%reason, unsaid, "L1 refused a command");
                }
                return;
            }
        }
        self.trust.wake();
    }

    /// Counts a batch of which a command failed, once; false: none did.
    fn note_failed<T>(&self, answers: &[Result<T, CacheError>]) -> bool {
        let failure = answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_failure());
        failure.inspect(|error| self.note_l1(error)).is_some()
    }

    /// Counts an answer of L2; `budget` is how long it was given, as a client's own short deadline is no outage.
    fn note_l2<T>(&self, answer: &Result<T, StoreError>, budget: Duration) {
        match answer {
            Ok(_) => self.l2_breaker.succeeded(),
            Err(error) => {
                self.l2_meter.failed();
                // Whoever answers for a record that cannot be read tells its cause.
                let is_told = matches!(error, StoreError::Corrupt(_) | StoreError::DoneUnreadable(_));
                if !is_told && let Some(unsaid) = self.l2_words.now() {
                    tracing::warn!(%error, unsaid, "L2 failed");
                }
                if error.is_outage() && budget >= Duration::from_millis(500) {
                    self.l2_breaker.failed();
                }
            }
        }
    }

    /// How long L1 keeps a record at most, before jitter.
    pub fn l1_ttl(&self) -> Duration {
        if self.silent_l2.load(Relaxed) { self.settings.l1_ttl.min(SILENT_L2_TTL) } else { self.settings.l1_ttl }
    }

    /// What goes into L1, for how long. Jitter keeps entries that were filled together from expiring together.
    fn fill(&self, state: State) -> Fill {
        const NEGATIVE: std::ops::Range<u64> = 5_000..30_000;
        let now = self.clock.now();
        let short = || Duration::from_millis(rand::rng().random_range(NEGATIVE));
        let ttl = match &state {
            State::Absent | State::Tombstone(_) => short(),
            State::Record(record) if record.is_expired(now) => short(),
            State::Record(record) => {
                let ttl = self.l1_ttl().mul_f64(rand::rng().random_range(0.85..=1.0));
                let left = record.expire_at().map(|at| Duration::from_millis(at.0.abs_diff(now.0)));
                left.map_or(ttl, |left| ttl.min(left))
            }
        };
        // Never beyond l1.ttl, which may be set shorter than the negative entries' range.
        Fill { value: CacheValue::from(state), ttl: ttl.min(self.l1_ttl()).max(Duration::from_millis(1)) }
    }
}
