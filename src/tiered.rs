//! L1 in front of L2: read-through, write-through, delete and bulk over a [`Cache`] and [`Store`].
//!
//! This is the coherence protocol. It does not know which engine is behind a trait; requests,
//! status codes and limits belong to `api`. The promise for each record: after a write was answered
//! with `cached`, each later read returns that write or something newer. If less is true, the
//! answer says so (`degraded`, `cached = false`).
//!
//! - [`read`](Tiered::read): MGET, ACQUIRE, one L2 read, SETTLE; callers of one key share a flight.
//! - [`upsert`](Tiered::upsert), [`delete`](Tiered::delete): MARK, commit, PUT, in a task that
//!   continues if the call is cancelled.
//! - [`write_bulk`](Tiered::write_bulk): commit, then SETTLE.
//! - [`repair`](Tiered::repair): removes from L1 what changes of L2 made old.
//! - [`audit`](Tiered::audit): compares samples of L1 with L2.
//! - `naming`: which L1 the epoch names, and how that changes.
//! - [`trust`]: whether L1 may be used; [`watch`](Tiered::watch) restores it after a loss.
//!   [`breaker`]: whether a tier answers. [`pace`]: whether L1 is fast enough for reads. [`mode`]:
//!   the mode of each tier.
//! - `parts`: a read that brings more than fits into memory at once, part by part.
//! - `patience`: how long a call waits for L1 in all. [`lane`]: how many read L2 at the same time,
//!   and what is shed.

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

/// How long L1 keeps a record at most if L2 has no change stream to show changes by others.
const SILENT_L2_TTL: Duration = Duration::from_secs(5 * 60);

/// How many reads of L2 may wait for each one that runs. As they wait for a quarter of their
/// deadline, a herd is shed soon.
const WAITING_READS: usize = 16;
/// A read may wait for its turn in L2, or for memory, for a fourth of `read_deadline`.
const PATIENCE_PART: u32 = 4;
/// The least time between two log lines about a failure that each call may meet.
const WORDS: Duration = Duration::from_secs(1);

/// The settings that this part uses; docs/configuration.md explains them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long L1 keeps a record at most, before jitter.
    pub l1_ttl: Duration,
    /// How long a call waits for L1 over all its steps, apart from 50 us more for each key.
    pub l1_timeout: Duration,
    /// Reads bypass L1 while more than one in a hundred of its commands takes longer.
    pub l1_slow: Duration,
    /// How writes are answered that L1 does not confirm.
    pub on_l1_loss: OnL1Loss,
    /// How long L2 keeps tombstones.
    pub tombstone_ttl: Duration,
    /// How long a read of L2 on behalf of many callers may take.
    pub read_deadline: Duration,
    /// How long a write may take, also after its call has ended.
    pub write_deadline: Duration,
    /// The most reads of L2 at the same time; 16 times as many wait, and the rest is shed.
    pub max_l2_reads: usize,
    /// The most writes at the same time, also of calls that have ended; more are refused.
    pub max_writes: usize,
    /// How the repairer works.
    pub repair: RepairSettings,
}

/// How writes are answered that L1 does not confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnL1Loss {
    /// OK with `cached = false`.
    Accept,
    /// With an error. If L1 is known to be lost, nothing is written.
    Reject,
}

/// Both tiers, and what this server knows of them.
pub struct Tiered {
    cache: Arc<dyn Cache>,
    /// L1 is in another process, so its replies take memory of this one.
    brings: bool,
    store: Arc<dyn Store>,
    settings: Settings,
    clock: L2Clock,
    sizes: Sizes,
    /// Counts the bytes that calls hold.
    bytes: OnceLock<Arc<ByteBudget>>,
    trust: Trust,
    pace: Pace,
    l2_breaker: Breaker,
    flights: Flights,
    l2_reads: Lane,
    writes: Lane,
    tasks: TaskTracker,
    reach: Sender<Reach>,
    renewals: Renewals,
    l1_trouble: Mutex<Trouble>,
    /// Whether the epoch names another L1 than ours, and since when.
    l1_is_another: AtomicBool,
    another_since: Mutex<Option<Instant>>,
    /// L2 has no change stream, so L1 must not keep entries for long.
    silent_l2: AtomicBool,
    repairs: Repairs,
    audit: Audit,
    /// Counts and times of L1 since start.
    pub l1_meter: Meter,
    /// Counts and times of L2 since start.
    pub l2_meter: Meter,
    /// The results of operations on L1 entries.
    pub outcomes: Outcomes,
    /// Reads that were answered `degraded`.
    pub degraded_reads: Counter,
    /// Records that are durable, but that L1 did not confirm.
    pub writes_not_cached: Counter,
    l1_words: Seldom,
    l2_words: Seldom,
}

impl Tiered {
    /// Puts `cache` in front of `store`. L1 is used once [`watch`](Self::watch) has probed both.
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
        // An L1 in this process learns of the writes of others only from the changes of L2.
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

    /// The cache, for Info and the metrics.
    pub fn cache(&self) -> &dyn Cache {
        self.cache.as_ref()
    }

    /// The store, for Info and the metrics.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// The time by L2's clock, as far as it is known. Records expire by it.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// How many bytes one write holds if its answer needs the stored record, from the sizes of the
    /// latest records of its view. Small ones count as 0.
    pub fn expected_answer(&self, view: &FeatureView) -> usize {
        // The reply of MongoDB, its BSON in the driver, the record, and the copy for L1.
        const COPIES: usize = 4;
        const UNCOUNTED: usize = 16 << 10;
        // Larger ones are still admitted one by one.
        const MOST: usize = 16 << 20;
        let bytes = self.sizes.of(view).get();
        if bytes > UNCOUNTED { (COPIES * bytes).min(MOST) } else { 0 }
    }

    /// By how many seconds this server's clock is ahead of L2's; negative if it is behind.
    pub fn clock_skew(&self) -> f64 {
        self.clock.skew()
    }

    /// How many findings of each severity the last check of the setup of L2 had.
    pub fn setup_findings(&self) -> [(&'static str, usize); Severity::ALL.len()] {
        let findings = self.store.findings();
        Severity::ALL
            .map(|severity| (severity.name(), findings.iter().filter(|finding| finding.severity == severity).count()))
    }

    /// Whether L1 may be used.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The circuit breaker of L2.
    pub fn l2_breaker(&self) -> &Breaker {
        &self.l2_breaker
    }

    /// The reads of L2 that run or wait.
    pub fn l2_reads(&self) -> &Lane {
        &self.l2_reads
    }

    /// The writes that run, also of calls that have ended.
    pub fn writes(&self) -> &Lane {
        &self.writes
    }

    /// Waits until every detached write and fill has ended. New ones may still begin meanwhile.
    pub async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Counts what the server itself holds in `bytes` from now on. Only the first call has an
    /// effect.
    pub fn count_bytes(&self, bytes: Arc<ByteBudget>) {
        let _ = self.bytes.set(bytes);
    }

    /// Counts the bytes that work for several calls holds.
    fn holding(&self) -> Holding {
        self.bytes.get().map_or_else(Holding::default, Holding::of_all)
    }

    /// Until when a read waits for memory: as long as for its turn in L2.
    pub fn room_by(&self) -> Instant {
        Instant::now() + self.settings.read_deadline / PATIENCE_PART
    }

    fn l1_patience(&self) -> L1Patience<'_> {
        L1Patience::new(self.settings.l1_timeout, &self.pace, &self.l1_meter)
    }

    /// Runs a step in the background, as its call has no time left: its keys were remembered,
    /// or its permits lapse. A failure is not counted, as the call has counted that of L1.
    fn go_on_alone<F>(&self, load: Load, step: impl FnOnce(Arc<dyn Cache>, Instant) -> F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let deadline = Instant::now() + self.settings.l1_timeout + load.time();
        self.tasks.spawn(trace::carried(step(self.cache.clone(), deadline)));
    }

    /// Counts a failed L1 command. After a refusal the breaker stays closed: the connection works.
    fn note_l1(&self, error: &CacheError) {
        if error.is_failure() {
            self.l1_meter.failed();
        }
        match error {
            // These are no failures of L1.
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

    /// Counts a batch as one failure if any command failed. False: none did.
    fn note_failed<T>(&self, answers: &[Result<T, CacheError>]) -> bool {
        let failure = answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_failure());
        failure.inspect(|error| self.note_l1(error)).is_some()
    }

    /// Counts a reply of L2. `budget` is the time it had: a client's short deadline is no outage.
    fn note_l2<T>(&self, answer: &Result<T, StoreError>, budget: Duration) {
        match answer {
            Ok(_) => self.l2_breaker.succeeded(),
            Err(error) => {
                self.l2_meter.failed();
                // The cause of a record that cannot be read is logged with the answer of its call.
                let is_told = matches!(error, StoreError::Corrupt(_) | StoreError::DoneUnreadable(_));
                if !is_told && let Some(unsaid) = self.l2_words.now() {
                    tracing::warn!(%error, unsaid, "a request to L2 failed");
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

    /// The entry for L1 and its TTL. The jitter keeps entries from expiring together.
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
        // Never longer than l1.ttl, which may be shorter than the range for negative entries.
        Fill { value: CacheValue::from(state), ttl: ttl.min(self.l1_ttl()).max(Duration::from_millis(1)) }
    }
}
