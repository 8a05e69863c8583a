//! The watchers of both tiers. They keep the view of the epoch fresh, probe tiers whose breaker is
//! open, and trust L1 again once it can hold nothing stale. No call ever waits for a probe.

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

/// How often a tier is probed: L2 well within the two seconds that a view of the epoch lives.
const L2_INTERVAL: Duration = Duration::from_millis(500);
const L1_INTERVAL: Duration = Duration::from_millis(500);
/// How long one request of a watcher may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long the first probe of a tier may take, and each probe of an L1 that was lost: longer than
/// the MongoDB driver searches for a server.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// How many keys one command removes from L1, and how many such commands one probe sends.
const REMOVE_BATCH: usize = 1000;
const REMOVE_BATCHES: usize = 20;

/// Which tiers answer; health reports it.
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
    /// Which tiers answer, and each change of that.
    pub fn reach(&self) -> Receiver<Reach> {
        self.reach.subscribe()
    }

    /// Watches both tiers until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        // L1 cannot be probed without the epoch, so L2 is first; then neither waits for the other.
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
                    // Failures come in groups, and one probe is enough for all of them.
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

    /// Reads the epoch from L2, which shows whether L2 answers. `trouble` limits the log lines.
    async fn look_at_l2(&self, trouble: &mut Trouble) {
        let asked = self.trust.now();
        let tripped = self.l2_breaker.mode() == Mode::Tripped;
        if tripped {
            self.l2_breaker.probing();
        }
        // The first answer gets more time, so that the driver can report why there is none.
        let patience = if self.reach.borrow().ready { PATIENCE } else { FIRST_PATIENCE };
        let mut answer = self.ask_epoch(asked.0 + patience).await;
        if tripped && answer.is_ok() {
            // A read of one document may succeed while writes fail.
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
                        _ => tracing::warn!(
                            error = text,
                            address,
                            "L2 cannot be reached: reads return only what L1 holds, and writes are rejected; the \
                             server keeps trying"
                        ),
                    }
                }
                // An L2 that must not be used does answer: it rejects each call with the reason.
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

    /// Probes L1, and starts to trust it again after a loss.
    pub async fn look_at_l1(&self) {
        // The keys of this server cannot be recognized without the epoch.
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
        // A lost L1 gets more time: connecting takes several round trips, no call waits for them,
        // and a server under load must not give up each time before it is connected.
        let patience = if self.reach.borrow().l1 { PATIENCE } else { FIRST_PATIENCE };
        let mut answer = self.probe_named(seen, Instant::now() + patience).await;
        if answer == Ok(Probe::Restored) {
            self.trust.lost();
            // L1 is usable again only after a probe of the new epoch.
            if let Some(renewed) = self.renew_epoch_within_bounds().await {
                tracing::warn!(
                    epoch = %renewed.epoch,
                    "L1 holds old entries (Redis restarted with data from its disk, or a replica that was behind was \
                     promoted): L1 starts cold, in a new epoch"
                );
                answer = self.cache.probe(renewed.epoch, renewed.l1.as_ref(), Instant::now() + PATIENCE).await;
            }
        }
        self.note_another(matches!(answer, Ok(Probe::Another { .. })));
        match answer {
            Ok(Probe::Intact) => {
                if breaker.mode() == Mode::Probing {
                    // L1 was lost: the keys that were remembered meanwhile must be removed first.
                    self.trust.lost();
                    breaker.probed(true);
                }
                self.l1_trouble.lock().unwrap_or_else(PoisonError::into_inner).is_over();
                if let Some(mine) = self.cache.name() {
                    self.trust.found(&mine);
                }
                // Before this server uses L1, it takes the lease on it in L2.
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

    fn report_l1(&self, error: &CacheError) {
        let text = error.to_string();
        if !self.l1_trouble.lock().unwrap_or_else(PoisonError::into_inner).is_news(&text) {
            return;
        }
        let address = self.cache.info().address;
        if matches!(error, CacheError::Unsuitable(_)) {
            tracing::warn!(
                error = text,
                address,
                "L1 cannot be used: reads go to L2. Correct what the error says; the server checks every few seconds"
            );
        } else {
            tracing::warn!(
                error = text,
                address,
                "L1 cannot be reached: reads go to L2, and the server keeps trying to connect"
            );
        }
    }

    fn give_up_l1(&self) -> bool {
        self.trust.breaker.trip();
        self.trust.breaker.probed(false);
        self.trust.lost();
        false
    }

    /// Removes the remembered keys from L1, and trusts it when none is left. What is left after
    /// `REMOVE_BATCHES` waits for the next probe.
    async fn recover(&self) {
        for _ in 0..REMOVE_BATCHES {
            // Removing entries of an epoch that may be gone would have no effect.
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
                return; // meanwhile the epoch changed, or held for another L1
            }
            self.trust.removed(&removing);
        }
        if self.trust.needs_new_epoch() && self.renew_epoch_within_bounds().await.is_none() {
            return;
        }
        if self.trust.restore() {
            tracing::info!("L1 is trusted: it holds no value that is known to be out of date");
        }
    }

    /// Makes a new epoch, unless there were many lately: then the next one would not help either.
    async fn renew_epoch_within_bounds(&self) -> Option<EpochState> {
        if let Err(wait) = self.renewals.next() {
            if self.renewals.is_to_be_logged() {
                tracing::error!(
                    ?wait,
                    "L1 has needed many new epochs within a short time, so it is bypassed until the next one: what it \
                     holds is not what this server wrote. Check whether several Redis servers answer at this address, \
                     whether something else changes keys that begin with {{}}fs:, and whether l1.timeout is too short \
                     for this Redis"
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
                tracing::warn!(%error, "L2 made no new epoch, so L1 stays bypassed; the server keeps trying");
                None
            }
        }
    }
}
