//! Which L1 the epoch names, and what a server does whose L1 is another one.
//!
//! A server whose L1 is not the named one does not use it: reads and writes go to L2. It names its
//! own L1 only when no server uses the named one any more, and in a new epoch, so that nothing from
//! before is read. There are two exceptions. After a failover the same L1 has another history; if a
//! repairer removes what became stale, the epoch stays. And an L1 in one process never keeps an L1
//! that several servers can use from being named.
//!
//! A server with an L1 in its own process, beside a named one, reads from it all the same, as it
//! follows the changes of L2. But what that L1 confirms does not hold for other servers, so its
//! writes are not `cached`.

use std::{
    sync::{PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{Tiered, breaker::Mode, watch::PATIENCE};
use crate::{
    cache::{CacheError, L1Name, Probe},
    store::{Claim, EpochState, LEASE, StoreError},
};

/// How long another L1 may be named before this is an error: its lease may be about to end.
const GRACE: Duration = LEASE.saturating_add(Duration::from_secs(3));

impl Tiered {
    /// The epoch as L2 has it. If L1 is in use, this also renews the lease on it.
    pub(super) async fn ask_epoch(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        let in_use = self.trust.mine().filter(|_| self.trust.breaker.mode() == Mode::Healthy);
        match in_use {
            Some(mine) => self.store.use_l1(&mine, deadline).await,
            None => self.store.epoch(deadline).await,
        }
    }

    /// Whether L1 is in this process, over a store that other servers may use.
    pub(super) fn is_private(&self) -> bool {
        !self.cache.info().shared && !self.store.info().exclusive
    }

    /// Whether L1 is not used because the epoch names another one.
    pub fn l1_is_another(&self) -> bool {
        self.l1_is_another.load(Relaxed)
    }

    /// Probes L1, and names it in the epoch if that is possible.
    pub(super) async fn probe_named(&self, seen: &EpochState, deadline: Instant) -> Result<Probe, CacheError> {
        if self.is_private() {
            return self.probe_private(seen, deadline).await;
        }
        let answer = self.cache.probe(seen.epoch, seen.l1.as_ref(), deadline).await?;
        let Probe::Another { found, goes_on } = &answer else { return Ok(answer) };
        // From now on the view does not depend on the lease of an L1 in use.
        self.trust.found(found);
        match self.take_over(seen, found, *goes_on).await {
            Some(state) => self.cache.probe(state.epoch, state.l1.as_ref(), Instant::now() + PATIENCE).await,
            None => Ok(answer),
        }
    }

    /// The same for an L1 in this process, which can be used whichever L1 the epoch names.
    async fn probe_private(&self, seen: &EpochState, deadline: Instant) -> Result<Probe, CacheError> {
        let mine = match self.trust.mine() {
            Some(mine) => mine,
            None => match self.cache.probe(seen.epoch, None, deadline).await? {
                Probe::Another { found, .. } => found,
                found => return Ok(found),
            },
        };
        self.trust.found(&mine);
        if !seen.names(&mine) {
            self.take_over(seen, &mine, false).await;
        }
        self.cache.probe(seen.epoch, Some(&mine), deadline).await
    }

    /// Names `found` in the epoch if no server uses the named L1. Returns the state if it did.
    async fn take_over(&self, seen: &EpochState, found: &L1Name, goes_on: bool) -> Option<EpochState> {
        let exclusive = self.store.info().exclusive;
        // An L1 that several servers can use replaces a private one: they were set up to share it.
        let at_once = exclusive || (found.shared && seen.l1.as_ref().is_some_and(|named| !named.shared));
        let is_free = match &seen.l1 {
            Some(_) => at_once || seen.leased.is_zero(),
            // Servers that use the epoch before, or know no names yet, see the new one and pause.
            None => true,
        };
        if !is_free || !self.trust.is_fresh() {
            return None;
        }
        let is_covered = !exclusive && self.is_repaired() && !seen.dirty;
        let keep_epoch = goes_on && is_covered && seen.l1.as_ref().is_some_and(|named| named.id == found.id);
        let claim = Claim { seen: seen.clone(), l1: found.clone(), keep_epoch, at_once };
        let asked = self.trust.now();
        match self.store.name_l1(claim, asked.0 + PATIENCE).await {
            Ok(state) => {
                let is_named = state.names(found);
                if is_named && state.epoch == seen.epoch {
                    tracing::warn!(
                        l1 = %found,
                        epoch = %state.epoch,
                        "a replica of L1 was promoted: the epoch continues with it, and what L1 holds is kept"
                    );
                } else if is_named {
                    let before = seen.l1.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
                    tracing::info!(l1 = %found, before, epoch = %state.epoch, "L2 now names this L1, in a new epoch");
                }
                let is_new = state.epoch != seen.epoch;
                self.trust.see(state.clone(), asked);
                if is_new {
                    self.trust.renewed(asked.0);
                }
                is_named.then_some(state)
            }
            Err(error) => {
                tracing::warn!(%error, "L2 did not name this L1, so it stays bypassed; the server keeps trying");
                None
            }
        }
    }

    /// Logs that the epoch names another L1, and what to do.
    pub(super) fn tell_another(&self, seen: &EpochState, found: &L1Name) {
        let mut since = self.another_since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = since.get_or_insert_with(Instant::now);
        if since.elapsed() < GRACE {
            return;
        }
        let named = seen.l1.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let mut trouble = self.l1_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_news(&format!("{named} {found}")) {
            tracing::error!(
                ours = %found, named, epoch = %seen.epoch,
                "the L1 of this server is not the one that other servers over the same L2 use. This server does not \
                 use it: reads go to L2, and writes are answered cached = false. Give all servers the same redis.url. \
                 This L1 is used when no server uses the other one any more, or at once after `featurestore epoch \
                 new` with this configuration"
            );
        }
    }

    /// Notes whether the epoch names another L1.
    pub(super) fn note_another(&self, is_another: bool) {
        self.l1_is_another.store(is_another, Relaxed);
        if !is_another {
            *self.another_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Makes a new epoch after writes that the named L1 did not confirm, if this server cannot
    /// reach that L1 and no repairer is at work. An epoch so young that no server has filled L1 in
    /// it is kept.
    pub(super) async fn outdate_named(&self) -> Result<(), StoreError> {
        const UNUSED_AGE: Duration = Duration::from_millis(2500);
        let deadline = Instant::now() + self.settings.write_deadline;
        let state = self.store.epoch(deadline).await?;
        if state.age >= UNUSED_AGE {
            let asked = self.trust.now();
            let renewed = self.store.renew_epoch(state.epoch, deadline).await?;
            self.trust.see(renewed, asked);
        }
        Ok(())
    }
}
