//! The auditor: whether L1 tells the truth. It looks again at a few of the hits and of the fresh changes, compares L1 with
//! L2, and where L1 is still behind after a second counts a disagreement and removes the entry.
//!
//! A sample costs a call next to nothing: a number in a bounded queue, or nothing where that is full.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Tiered, trust::L1Use, watch::PATIENCE};
use crate::{
    cache::{CacheKey, CacheValue},
    record::{RecordKey, Revision, State},
    store::ReadConcern,
};

/// One hit in so many is looked at again.
const HITS: u64 = 10_000;
/// Between two fresh changes that are looked at again.
const CHANGES: Duration = Duration::from_millis(250);
/// Samples that wait; more are dropped.
const WAITING: usize = 64;
/// How long L1 may be behind.
const GRACE: Duration = Duration::from_secs(1);

/// What the auditor found since start, and what waits for it.
#[derive(Debug)]
pub struct Audit {
    samples: mpsc::Sender<RecordKey>,
    waiting: Mutex<Option<mpsc::Receiver<RecordKey>>>,
    last_change: Mutex<Option<Instant>>,
    checks: AtomicU64,
    disagreements: AtomicU64,
}

impl Default for Audit {
    fn default() -> Self {
        let (samples, waiting) = mpsc::channel(WAITING);
        Self {
            samples,
            waiting: Mutex::new(Some(waiting)),
            last_change: Mutex::default(),
            checks: AtomicU64::new(0),
            disagreements: AtomicU64::new(0),
        }
    }
}

impl Audit {
    /// Entries that were compared with L2.
    pub fn checks(&self) -> u64 {
        self.checks.load(Relaxed)
    }

    /// Those that were older than L2, and still were a second later.
    pub fn disagreements(&self) -> u64 {
        self.disagreements.load(Relaxed)
    }

    /// Takes a record to be looked at soon; dropped where too many wait.
    pub fn sample(&self, key: &RecordKey) {
        let _ = self.samples.try_send(key.detached());
    }

    /// Hits happened: `before` of them since start, and `count` now.
    pub(super) fn hits<'a>(&self, before: u64, count: u64, key: impl FnOnce() -> Option<&'a RecordKey>) {
        if before / HITS != (before + count) / HITS
            && let Some(key) = key()
        {
            self.sample(key);
        }
    }

    /// A change was made good.
    pub(super) fn changed(&self, key: &RecordKey) {
        let mut last = self.last_change.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= CHANGES) {
            *last = Some(Instant::now());
            self.sample(key);
        }
    }
}

impl Tiered {
    /// What the auditor found.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Looks at samples until `shutdown`. The first one to call it gets them.
    pub async fn keep_auditing(self: Arc<Self>, shutdown: CancellationToken) {
        let waiting = self.audit.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = waiting else { return };
        let auditing = async {
            let mut keys = Vec::new();
            while waiting.recv_many(&mut keys, WAITING).await > 0 {
                self.look_again(&keys).await;
                keys.clear();
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = auditing => {}
        }
    }

    async fn look_again(&self, keys: &[RecordKey]) {
        let Some(known) = self.in_l2(keys).await else { return };
        let Some(behind) = self.behind(known).await else { return };
        self.audit.checks.fetch_add(keys.len() as u64, Relaxed);
        if behind.is_empty() {
            return;
        }
        tokio::time::sleep(GRACE).await;
        // Against what L2 held before that second: a record that is written all the time is no disagreement.
        let Some(behind) = self.behind(behind).await else { return };
        let L1Use::Trusted(epoch) = self.trust.l1() else { return };
        for (key, state) in &behind {
            let (feature_view, entity_id, revision) = (key.view.as_str(), key.entity_id.as_str(), state.revision().0);
            tracing::warn!(feature_view, entity_id, revision, "L1 is older than L2, and is mended");
        }
        let keys: Vec<RecordKey> = behind.into_iter().map(|(key, _)| key).collect();
        self.audit.disagreements.fetch_add(keys.len() as u64, Relaxed);
        if !keys.is_empty() {
            let removed = self.cache.remove(&CacheKey::all(epoch, &keys), Instant::now() + PATIENCE).await;
            self.note_failed(&removed);
        }
    }

    /// What L2 holds, of those that it can tell. None: it cannot tell any.
    async fn in_l2(&self, keys: &[RecordKey]) -> Option<Vec<(RecordKey, State)>> {
        let states = self.store.read(keys, ReadConcern::Majority, Instant::now() + PATIENCE).await;
        let known: Vec<_> =
            keys.iter().cloned().zip(states).filter_map(|(key, state)| Some((key, state.ok()?))).collect();
        (!known.is_empty()).then_some(known)
    }

    /// Those of which L1 holds something else, that is not newer, than what L2 was seen to hold before. None: L1 cannot be
    /// asked, or is not used.
    async fn behind(&self, known: Vec<(RecordKey, State)>) -> Option<Vec<(RecordKey, State)>> {
        let L1Use::Trusted(epoch) = self.trust.l1() else { return None };
        let keys: Vec<RecordKey> = known.iter().map(|(key, _)| key.clone()).collect();
        let held = self.cache.get(&CacheKey::all(epoch, &keys), Instant::now() + PATIENCE).await;
        if self.note_failed(&held) {
            return None;
        }
        let disagrees = |held: &Option<CacheValue>, state: &State| match held {
            None => false,
            Some(held) if held.revision() == state.revision() && held.revision() != Revision::NONE => {
                State::from(held.clone()) != *state
            }
            Some(held) => held.revision() < state.revision(),
        };
        // What was left out is not looked at this time.
        let pairs = known.into_iter().zip(held.into_iter().map(Result::unwrap_or_default));
        Some(pairs.filter(|((_, state), held)| disagrees(held, state)).map(|(known, _)| known).collect())
    }
}
