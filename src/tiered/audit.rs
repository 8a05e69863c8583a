//! The auditor. It compares samples of L1 with L2: a few of the hits and of the latest changes. If
//! L1 is still older after a second, it counts a disagreement and removes the entry.
//!
//! A sample costs a call almost nothing: a place in a bounded queue, if one is free.

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

/// One hit in this many is a sample.
const HITS: u64 = 10_000;
/// The least time from one sample of the changes to the next.
const CHANGES: Duration = Duration::from_millis(250);
const WAITING: usize = 64;
/// How long L1 may be older than L2.
const GRACE: Duration = Duration::from_secs(1);

/// The samples that wait for the auditor, and its counts since start.
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

    /// Entries that were older than L2, and still were a second later.
    pub fn disagreements(&self) -> u64 {
        self.disagreements.load(Relaxed)
    }

    /// Makes a record a sample; it is dropped if too many wait.
    pub fn sample(&self, key: &RecordKey) {
        let _ = self.samples.try_send(key.detached());
    }

    /// Counts hits, `before` of them since start. Each ten thousandth is a sample.
    pub(super) fn hits<'a>(&self, before: u64, count: u64, key: impl FnOnce() -> Option<&'a RecordKey>) {
        if before / HITS != (before + count) / HITS
            && let Some(key) = key()
        {
            self.sample(key);
        }
    }

    /// The repairer has applied a change of this record.
    pub(super) fn changed(&self, key: &RecordKey) {
        let mut last = self.last_change.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= CHANGES) {
            *last = Some(Instant::now());
            self.sample(key);
        }
    }
}

impl Tiered {
    /// The counts of the auditor.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Checks samples until `shutdown`. Only the first caller gets them.
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
        // Compared with L2 a second ago, so a record that is always written does not disagree.
        let Some(behind) = self.behind(behind).await else { return };
        let L1Use::Trusted(epoch) = self.trust.l1() else { return };
        for (key, state) in &behind {
            let (feature_view, entity_id, revision) = (key.view.as_str(), key.entity_id.as_str(), state.revision().0);
            tracing::warn!(feature_view, entity_id, revision, "L1 is older than L2: the entry is removed");
        }
        let keys: Vec<RecordKey> = behind.into_iter().map(|(key, _)| key).collect();
        self.audit.disagreements.fetch_add(keys.len() as u64, Relaxed);
        if !keys.is_empty() {
            let removed = self.cache.remove(&CacheKey::all(epoch, &keys), Instant::now() + PATIENCE).await;
            self.note_failed(&removed);
        }
    }

    /// What L2 holds, of those records that it could read. None: it could read none.
    async fn in_l2(&self, keys: &[RecordKey]) -> Option<Vec<(RecordKey, State)>> {
        let states = self.store.read(keys, ReadConcern::Majority, Instant::now() + PATIENCE).await;
        let known: Vec<_> =
            keys.iter().cloned().zip(states).filter_map(|(key, state)| Some((key, state.ok()?))).collect();
        (!known.is_empty()).then_some(known)
    }

    /// Those records of which L1 holds something else than `known`, and nothing newer. None: L1
    /// failed, or is not used.
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
        // What the reply left out is not compared this time.
        let pairs = known.into_iter().zip(held.into_iter().map(Result::unwrap_or_default));
        Some(pairs.filter(|((_, state), held)| disagrees(held, state)).map(|(known, _)| known).collect())
    }
}
