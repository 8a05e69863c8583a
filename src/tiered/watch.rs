//! The watchers of both tiers: they keep the view of the epoch fresh, probe tiers that were given up, and bring L1 back
//! into trust once nothing stale can be in it. Probes and health never cost a call anything.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::watch::Receiver, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Tiered, breaker::Mode, trouble::Trouble};
use crate::{
    cache::{CacheError, CacheKey, Probe},
    record::RecordKey,
    store::{EpochState, StoreError},
};

/// Between two looks at L2; well below the life of a view of the epoch.
const L2_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at L1.
const L1_INTERVAL: Duration = Duration::from_millis(500);
/// How long one question of a watcher may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long the first one may take, and each that asks a lost L1: longer than a driver looks for its server.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// Keys removed from L1 at once, and how often in one look.
const REMOVE_BATCH: usize = 1000;
const REMOVE_BATCHES: usize = 20;

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
        // L1 needs the epoch, so L2 comes first; afterwards neither waits for the other.
        let mut trouble = Trouble::default();
        self.look_at_l2(&mut trouble).await;
        let l2 = async {
            loop {
                tokio::time::sleep(L2_INTERVAL).await;
                self.look_at_l2(&mut trouble).await;
            }
        };
        let l1 = async {
            loop {
                self.look_at_l1().await;
                tokio::select! {
                    // Failures come in swarms; one look answers them all.
                    () = self.trust.woken() => tokio::time::sleep(L1_INTERVAL / 10).await,
                    () = tokio::time::sleep(L1_INTERVAL) => {}
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = l1 => {}
            () = self.keep_pace() => {}
            () = l2 => {}
        }
    }

    /// Asks L2 for the epoch, which shows at the same time whether L2 answers. `trouble` is what was told of it.
    async fn look_at_l2(&self, trouble: &mut Trouble) {
        let asked = self.trust.now();
        let tripped = self.l2_breaker.mode() == Mode::Tripped;
        if tripped {
            self.l2_breaker.probing();
        }
        // Before the first answer there is time to learn why there is none.
        let patience = if self.reach.borrow().ready { PATIENCE } else { FIRST_PATIENCE };
        let mut answer = self.ask_epoch(asked.0 + patience).await;
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
        let answers = answer.is_ok();
        match answer {
            Ok(state) => {
                self.silent_l2.store(self.store.info().silent, Relaxed);
                self.trust.see(state, asked);
                self.clock.see(self.store.time());
                trouble.is_over();
            }
            Err(error) => {
                let text = error.to_string();
                if trouble.is_news(&text) {
                    let address = self.store.info().address;
                    match error {
                        StoreError::Unusable(_) => tracing::error!(address, "{text}"),
                        _ => tracing::warn!(error = text, address, "L2 cannot be reached; it is tried again and again"),
                    }
                }
                // One that must not be used answers, and says so to each call.
                if !tripped && !matches!(error, StoreError::Unusable(_)) {
                    self.l2_breaker.failed();
                }
            }
        }
        self.tell_reach(|reach| {
            if reach.l2 != answers {
                tracing::info!("L2 {}", if answers { "answers" } else { "does not answer" });
            }
            reach.l2 = answers;
            reach.ready |= answers;
        });
    }

    /// Probes L1, and brings it back into trust where it lost it.
    pub async fn look_at_l1(&self) {
        // Without an epoch no key of ours can be told from others.
        let Some(seen) = self.trust.epoch() else { return };
        let answers = self.probe_l1(&seen).await;
        self.tell_reach(|reach| {
            if reach.l1 != answers {
                tracing::info!("L1 {}", if answers { "answers" } else { "does not answer" });
            }
            reach.l1 = answers;
        });
        if answers && !self.trust.is_trusted() {
            self.recover().await;
        }
    }

    fn tell_reach(&self, change: impl FnOnce(&mut Reach)) {
        self.reach.send_if_modified(|reach| {
            let before = *reach;
            change(reach);
            *reach != before
        });
    }

    async fn probe_l1(&self, seen: &EpochState) -> bool {
        let breaker = &self.trust.breaker;
        breaker.probing();
        // One that is given up is waited for longer: a connection takes several trips, nobody waits for it, and a server
        // under load must not give up each time before it has connected.
        let patience = if self.reach.borrow().l1 { PATIENCE } else { FIRST_PATIENCE };
        let mut answer = self.probe_named(seen, Instant::now() + patience).await;
        if answer == Ok(Probe::Restored) {
            self.trust.lost();
            // Only a probe of the new epoch makes it usable again.
            if let Some(renewed) = self.renew_epoch_within_bounds().await {
                tracing::warn!(
                    epoch = %renewed.epoch,
                    "L1 holds entries of an earlier time (Redis restarted with them, or a replica that was behind took over): \
                     it starts cold, in a new epoch"
                );
                answer = self.cache.probe(renewed.epoch, renewed.l1.as_ref(), Instant::now() + PATIENCE).await;
            }
        }
        self.note_another(matches!(answer, Ok(Probe::Another { .. })));
        match answer {
            Ok(Probe::Intact) => {
                if breaker.mode() == Mode::Probing {
                    // It was lost: what happened meanwhile is remembered, and must be removed first.
                    self.trust.lost();
                    breaker.probed(true);
                }
                self.l1_trouble.lock().unwrap_or_else(PoisonError::into_inner).is_over();
                if let Some(mine) = self.cache.name() {
                    self.trust.found(&mine);
                }
                // Who begins to use L1 says so in L2 first.
                self.freshen_epoch().await;
                true
            }
            Ok(Probe::Restored) => self.give_up_l1(),
            Ok(Probe::Another { found, .. }) => {
                self.tell_another(seen, &found);
                self.give_up_l1()
            }
            Err(error) => {
                self.report_l1(&error);
                self.give_up_l1()
            }
        }
    }

    /// Logs why L1 is not used.
    fn report_l1(&self, error: &CacheError) {
        let text = error.to_string();
        if !self.l1_trouble.lock().unwrap_or_else(PoisonError::into_inner).is_news(&text) {
            return;
        }
        let address = self.cache.info().address;
        if matches!(error, CacheError::Unsuitable(_)) {
            tracing::warn!(error = text, address, "L1 cannot be used: reads go to L2; it is checked every few seconds");
        } else {
            tracing::warn!(error = text, address, "L1 cannot be reached: reads go to L2; it is tried again and again");
        }
    }

    fn give_up_l1(&self) -> bool {
        self.trust.breaker.trip();
        self.trust.breaker.probed(false);
        self.trust.lost();
        false
    }

    /// Removes from L1 what it may hold stale values of, and trusts it again when nothing is left. What is still left
    /// after some batches waits for the next look.
    async fn recover(&self) {
        for _ in 0..REMOVE_BATCHES {
            // In an epoch that may be gone, removing would be worth nothing.
            let Some((epoch, life)) = self.trust.ours() else { return };
            let removing = self.trust.to_remove(REMOVE_BATCH);
            if removing.is_empty() {
                break;
            }
            let keys: Vec<RecordKey> = removing.iter().map(|(key, _)| key.clone()).collect();
            let answers = self.cache.remove(&CacheKey::all(epoch, &keys), Instant::now() + PATIENCE).await;
            if self.note_failed(&answers) {
                return;
            }
            if !self.trust.is_ours(epoch, life) {
                return; // it was not the L1 that the epoch holds for all the time
            }
            self.trust.removed(&removing);
        }
        if self.trust.needs_new_epoch() && self.renew_epoch_within_bounds().await.is_none() {
            return;
        }
        if self.trust.restore() {
            tracing::info!("L1 is trusted");
        }
    }

    /// A new epoch, unless there were many lately: whatever asks for them again and again does not end with another one.
    async fn renew_epoch_within_bounds(&self) -> Option<EpochState> {
        if let Err(wait) = self.renewals.next() {
            if self.renewals.is_to_be_logged() {
                tracing::error!(
                    ?wait,
                    "L1 has needed many new epochs within a short time, so it is bypassed until the next one: what it \
                     holds is not what this server left there. Do several Redis servers answer at the same address, or \
                     does something else change keys that begin with {{}}fs:? Is l1.timeout too short for this Redis?"
                );
            }
            return None;
        }
        let renewed = self.renew_epoch().await;
        if renewed.is_some() {
            self.renewals.made();
        }
        renewed
    }

    pub(super) async fn renew_epoch(&self) -> Option<EpochState> {
        let seen = self.trust.fresh_epoch()?;
        let asked = self.trust.now();
        match self.store.renew_epoch(seen.epoch, asked.0 + PATIENCE).await {
            Ok(state) => {
                self.trust.see(state.clone(), asked);
                self.trust.renewed(asked.0);
                Some(state)
            }
            Err(error) => {
                tracing::warn!(%error, "no new epoch, so L1 stays bypassed");
                None
            }
        }
    }
}
