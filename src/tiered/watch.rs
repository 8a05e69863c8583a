//! The watcher of both tiers: it keeps the view of the epoch fresh, probes tiers that were given up, and brings L1 back
//! into trust once nothing stale can be in it. Probes and health never cost a call anything.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::watch::Receiver, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Tiered, breaker::Mode, cache_keys};
use crate::{cache::Probe, record::RecordKey, store::EpochState};

/// Between two looks; well below the life of a view of the epoch.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two probes of a healthy L1.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long one question of the watcher may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Keys removed from L1 at once.
const REMOVE_BATCH: usize = 1000;

/// Which tiers answer, as health tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// L1 answers now.
    pub l1: bool,
    /// L2 answers now.
    pub l2: bool,
    /// L2 has answered since start.
    pub ready: bool,
}

impl Tiered {
    /// Tells which tiers answer, now and whenever that changes.
    pub fn reach(&self) -> Receiver<Reach> {
        self.reach.subscribe()
    }

    /// Looks after both tiers until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut last_probe = None;
        loop {
            self.look_after(&mut last_probe).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.trust.woken() => {
                    // Failures come in swarms; one look answers them all.
                    tokio::time::sleep(INTERVAL / 10).await;
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// One look at both tiers.
    pub async fn look_after(&self, last_probe: &mut Option<Instant>) {
        let l2 = self.ask_epoch().await;
        let due = last_probe.is_none_or(|at: Instant| at.elapsed() >= PROBE_INTERVAL);
        let mut l1 = self.trust.breaker.is_healthy() && self.reach.borrow().l1;
        if due || !l1 {
            l1 = self.probe_l1().await;
            *last_probe = Some(Instant::now());
        }
        if l1 && !self.trust.is_trusted() {
            self.recover().await;
        }
        self.reach.send_if_modified(|reach| {
            let now = Reach { l1, l2, ready: reach.ready || l2 };
            let changed = *reach != now;
            if reach.l1 != now.l1 {
                tracing::info!(l1 = now.l1, "L1 {}", if now.l1 { "answers" } else { "does not answer" });
            }
            if reach.l2 != now.l2 {
                tracing::info!(l2 = now.l2, "L2 {}", if now.l2 { "answers" } else { "does not answer" });
            }
            *reach = now;
            changed
        });
    }

    /// Asks L2 for the epoch, which shows at the same time whether L2 answers.
    async fn ask_epoch(&self) -> bool {
        let asked = Instant::now();
        let tripped = self.l2_breaker.mode() == Mode::Tripped;
        if tripped {
            self.l2_breaker.probing();
        }
        let mut answer = self.store.epoch(asked + PATIENCE).await;
        if tripped && answer.is_ok() {
            // A read of one document may succeed where writes do not.
            answer = match self.store.ping(Instant::now() + PATIENCE).await {
                Ok(()) => answer,
                Err(error) => Err(error),
            };
        }
        if tripped {
            self.l2_breaker.probed(answer.is_ok());
        }
        match answer {
            Ok(state) => {
                self.silent_l2.store(self.store.info().silent, Relaxed);
                self.trust.see(state, asked);
                true
            }
            Err(error) => {
                if self.reach.borrow().l2 || !self.reach.borrow().ready {
                    tracing::warn!(%error, "L2 cannot be reached");
                }
                if self.l2_breaker.is_healthy() {
                    self.l2_breaker.failed();
                }
                false
            }
        }
    }

    async fn probe_l1(&self) -> bool {
        // Without an epoch no key of ours can be told from others.
        let Some(EpochState { epoch, .. }) = self.trust.epoch() else { return false };
        let breaker = &self.trust.breaker;
        breaker.probing();
        let answer = self.cache.probe(epoch, Instant::now() + PATIENCE).await;
        match answer {
            Ok(Probe::Intact) => {}
            Ok(Probe::Restored) => {
                tracing::warn!("L1 came back with what it held at an earlier time: it starts cold, in a new epoch");
                self.trust.lost();
                if self.renew_epoch().await.is_none() {
                    breaker.trip();
                    breaker.probed(false);
                    return false;
                }
            }
            Err(error) => {
                if self.reach.borrow().l1 || breaker.is_healthy() {
                    tracing::warn!(%error, "L1 cannot be reached: reads go to L2");
                }
                breaker.trip();
                breaker.probed(false);
                self.trust.lost();
                return false;
            }
        }
        if breaker.mode() == Mode::Probing {
            // It was lost: what happened meanwhile is remembered, and must be removed first.
            self.trust.lost();
            breaker.probed(true);
        }
        true
    }

    /// Removes from L1 what it may hold stale values of, and trusts it again when nothing is left.
    async fn recover(&self) {
        loop {
            let Some(EpochState { epoch, .. }) = self.trust.epoch() else { return };
            let removing = self.trust.to_remove(REMOVE_BATCH);
            if removing.is_empty() {
                break;
            }
            let keys: Vec<RecordKey> = removing.iter().map(|(key, _)| key.clone()).collect();
            let answers = self.cache.remove(&cache_keys(epoch, &keys), Instant::now() + PATIENCE).await;
            if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
                self.note_l1(error);
                return;
            }
            self.trust.removed(&removing);
        }
        if self.trust.needs_new_epoch() && self.renew_epoch().await.is_none() {
            return;
        }
        if self.trust.restore() {
            tracing::info!("L1 is trusted");
        }
    }

    async fn renew_epoch(&self) -> Option<EpochState> {
        let seen = self.trust.fresh_epoch()?;
        let asked = Instant::now();
        match self.store.renew_epoch(seen.epoch, asked + PATIENCE).await {
            Ok(state) => {
                self.trust.see(state, asked);
                self.trust.renewed();
                Some(state)
            }
            Err(error) => {
                tracing::warn!(%error, "no new epoch, so L1 stays bypassed");
                None
            }
        }
    }
}
