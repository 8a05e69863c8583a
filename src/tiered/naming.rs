//! Whose cache it is: the epoch holds for one L1, and this server's may be another.
//!
//! A server whose L1 is not the named one leaves it alone: reads and writes go to L2. It has the epoch hold for its own
//! L1 only once nobody says to use the named one any more, in a new epoch, so that nothing from before is read. Two kinds
//! of L1 differ: after a failover the same L1 has another history, and where the repairer makes good what was lost
//! the epoch stays; and an L1 in one process never keeps one that several servers can use from being named.
//!
//! Whoever has its L1 in its own process beside another one reads from it all the same, as it follows L2's changes; but
//! what it confirms is no one else's, so its writes are not `cached`.

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

/// How long another L1 is waited for that may just be about to lose its lease, before that is called an error.
const GRACE: Duration = LEASE.saturating_add(Duration::from_secs(3));

impl Tiered {
    /// The epoch as L2 has it; where L1 is in use L2 is told so.
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

    /// Whether L1 is left alone because the epoch holds for another one.
    pub fn l1_is_another(&self) -> bool {
        self.l1_is_another.load(Relaxed)
    }

    /// Probes L1, and has the epoch hold for it where that is possible.
    pub(super) async fn probe_named(&self, seen: &EpochState, deadline: Instant) -> Result<Probe, CacheError> {
        if self.is_private() {
            return self.probe_private(seen, deadline).await;
        }
        let answer = self.cache.probe(seen.epoch, seen.l1.as_ref(), deadline).await?;
        let Probe::Another { found, goes_on } = &answer else { return Ok(answer) };
        // From now on the view is not of an L1 in use, whose lease it would have to cover.
        self.trust.found(found);
        match self.take_over(seen, found, *goes_on).await {
            Some(state) => self.cache.probe(state.epoch, state.l1.as_ref(), Instant::now() + PATIENCE).await,
            None => Ok(answer),
        }
    }

    /// An L1 in this process can be used whichever the epoch holds for.
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

    /// Has the epoch hold for `found`, if nobody uses the named L1. Answers what then stands, if it does.
    async fn take_over(&self, seen: &EpochState, found: &L1Name, goes_on: bool) -> Option<EpochState> {
        let exclusive = self.store.info().exclusive;
        // Where several servers can use one L1 it is what they were set up for.
        let at_once = exclusive || (found.shared && seen.l1.as_ref().is_some_and(|named| !named.shared));
        let is_free = match &seen.l1 {
            Some(_) => at_once || seen.leased.is_zero(),
            // Servers that still use the epoch before, or do not know of names yet, see the new one and pause too.
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
                    tracing::warn!(l1 = %found, epoch = %state.epoch, "a replica of L1 was promoted: the epoch goes on with it");
                } else if is_named {
                    let before = seen.l1.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
                    tracing::info!(l1 = %found, before, epoch = %state.epoch, "this L1 is used from now on, in a new epoch");
                }
                let is_new = state.epoch != seen.epoch;
                self.trust.see(state.clone(), asked);
                if is_new {
                    self.trust.renewed(asked.0);
                }
                is_named.then_some(state)
            }
            Err(error) => {
                tracing::warn!(%error, "L2 could not be told which L1 is used, so it stays bypassed");
                None
            }
        }
    }

    /// Says that L1 is another one, and how that ends.
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
                "L1 of this server is another one than the L1 that other servers over the same L2 use: it is left alone, \
                 reads go to L2 and writes are not cached. Give all servers the same redis.url; this one is used as soon as \
                 no server uses the other one any more, or at once after `featurestore epoch new` with this configuration"
            );
        }
    }

    /// Remembers whether L1 is another one.
    pub(super) fn note_another(&self, is_another: bool) {
        self.l1_is_another.store(is_another, Relaxed);
        if !is_another {
            *self.another_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// After writes that the named L1 was not told of, by a server that cannot reach it, where no repairer tells it: makes all
    /// that it holds worthless. An epoch so young that nobody has filled L1 in it yet will do.
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
