//! The end of a write: L1 gets what now stands in L2. A write is `cached` only if L1 confirmed it
//! in an epoch that still holds for all servers; keys that L1 did not confirm are remembered.

use super::{
    OnL1Loss, Tiered, WriteError,
    meter::Operation,
    outcomes::Step,
    patience::{L1Patience, Load, value_bytes},
    trust::L1Use,
    watch::PATIENCE,
    write::Prepared,
};
use crate::{
    cache::{CacheKey, Epoch, PermitId, Put, Settle},
    record::{RecordKey, Revision, State},
    store::StoreError,
};

/// What L1 confirmed of a committed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It holds nothing older, and the epoch holds for all servers.
    Cached,
    /// It holds nothing older, but does not hold for all servers: for a moment others may use the
    /// epoch before, or another L1.
    ThisL1,
    /// Nothing.
    Nothing,
}

/// In how many epochs, one after the other, a write sends its SETTLE.
const EPOCHS: usize = 5;

impl Tiered {
    /// How a write that begins now may use L1, and the `life` of the view that says so. A view that
    /// is too old is refreshed first, because a bypassed write may cost all servers a new epoch.
    pub(super) async fn l1_for_write(&self) -> (L1Use, u64) {
        if self.trust.breaker.is_healthy() {
            self.freshen_epoch().await;
        }
        self.trust.l1_now()
    }

    pub(super) async fn freshen_epoch(&self) {
        if self.trust.is_fresh() {
            return;
        }
        let asked = self.trust.now();
        if let Ok(state) = self.ask_epoch(asked.0 + PATIENCE).await {
            self.trust.see(state, asked);
        }
    }

    /// Whether `epoch` has held for all servers since its view had this `life`. A view that is too
    /// old is refreshed first.
    async fn holds(&self, epoch: Epoch, life: u64) -> bool {
        self.freshen_epoch().await;
        self.trust.holds(epoch, life)
    }

    /// PUT of what now stands in L2; or, if nothing was marked, SETTLE of its revision.
    pub(super) async fn conclude(
        &self,
        prepared: &Prepared<'_>,
        keys: &[RecordKey],
        states: &[State],
        patience: &mut L1Patience<'_>,
    ) -> Vec<Told> {
        if keys.is_empty() {
            return Vec::new();
        }
        if let Prepared::Marked(epoch, life, permits) = prepared {
            let confirmed = self.put(*epoch, permits, keys, states, patience).await;
            let all = |told| confirmed.iter().map(|yes| if *yes { told } else { Told::Nothing }).collect();
            if self.holds(*epoch, *life).await {
                return all(Told::Cached);
            }
            if self.trust.is_ours(*epoch, *life) && !self.trust.is_everybodys() {
                return all(Told::ThisL1);
            }
        }
        // Nothing was marked, or the epoch has changed: now this may only remove.
        let revisions: Vec<Revision> = states.iter().map(State::revision).collect();
        self.remove_older(keys, &revisions, patience).await
    }

    /// SETTLE without a lease: L1 removes what is older.
    pub(super) async fn remove_older(
        &self,
        keys: &[RecordKey],
        revisions: &[Revision],
        patience: &mut L1Patience<'_>,
    ) -> Vec<Told> {
        let mut told = vec![Told::Nothing; keys.len()];
        for _ in 0..EPOCHS {
            let (l1, life) = self.l1_for_write().await;
            let (L1Use::Trusted(epoch) | L1Use::Untrusted(epoch) | L1Use::Paused(epoch)) = l1 else { return told };
            let settle = |(key, revision): (&RecordKey, &Revision)| Settle {
                key: CacheKey::new(epoch, key),
                revision: *revision,
                fill: None,
            };
            let settles: Vec<_> = keys.iter().zip(revisions).map(settle).collect();
            let (load, step) = (Load::of(settles.len()), |by| self.cache.settle(&settles, by));
            let Some(answers) = patience.waiting_step(Operation::Settle, load, step).await else {
                self.go_on_alone(load, |cache, by| async move { cache.settle(&settles, by).await });
                return told;
            };
            self.outcomes.effects(Step::Settle, &answers);
            let failed = self.note_failed(&answers);
            let holds = self.holds(epoch, life).await;
            let stands = self.trust.is_ours(epoch, life);
            let known = |confirmed: bool| match (confirmed && stands, holds) {
                (true, true) => Told::Cached,
                (true, false) => Told::ThisL1,
                (false, _) => Told::Nothing,
            };
            told = answers.into_iter().map(|answer| known(answer.is_ok())).collect();
            if failed || stands {
                return told;
            }
            // The epoch has changed, so the confirmation does not count, and the SETTLE is sent
            // again in the new epoch. To give up here would set the dirty flag, which causes the
            // next new epoch; with many writes that would not end.
        }
        told
    }

    async fn put(
        &self,
        epoch: Epoch,
        permits: &[PermitId],
        keys: &[RecordKey],
        states: &[State],
        patience: &mut L1Patience<'_>,
    ) -> Vec<bool> {
        let put = |i: &usize| Put {
            key: CacheKey::new(epoch, &keys[*i]),
            permit: permits[*i],
            fill: self.fill(states[*i].clone()),
        };
        // If nothing stands in L2, no revision is known either, and only removing is safe.
        let (gone, stands): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(|i| states[*i] == State::Absent);
        let mut confirmed = vec![false; keys.len()];
        let mut failure = None;
        if !stands.is_empty() {
            let puts: Vec<_> = stands.iter().map(put).collect();
            let bytes = puts.iter().map(|put| value_bytes(&put.fill.value)).sum();
            let load = Load::of(puts.len()).with_bytes(bytes);
            match patience.step(Operation::Put, load, |by| self.cache.put(&puts, by)).await {
                Some(answers) => {
                    self.outcomes.effects(Step::Put, &answers);
                    for (i, answer) in stands.into_iter().zip(answers) {
                        confirmed[i] = answer.is_ok();
                        failure = failure.or(answer.err());
                    }
                }
                None => self.go_on_alone(load, |cache, by| async move { cache.put(&puts, by).await }),
            }
        }
        if !gone.is_empty() && failure.is_none() {
            let removes: Vec<_> = gone.iter().map(|i| CacheKey::new(epoch, &keys[*i])).collect();
            let (load, step) = (Load::of(removes.len()), |by| self.cache.remove(&removes, by));
            match patience.waiting_step(Operation::Remove, load, step).await {
                Some(answers) => {
                    for (i, answer) in gone.into_iter().zip(answers) {
                        confirmed[i] = answer.is_ok();
                        failure = failure.or(answer.err());
                    }
                }
                None => self.go_on_alone(load, |cache, by| async move { cache.remove(&removes, by).await }),
            }
        }
        if let Some(error) = failure {
            self.note_l1(&error);
        }
        confirmed
    }

    /// Remembers the keys of writes that L1 did not confirm, and returns for each write whether it
    /// is `cached`. L1 is not trusted before these keys are removed.
    pub(super) async fn own_up(&self, keys: &[RecordKey], told: &[Told]) -> Vec<Result<bool, WriteError>> {
        let unknown: Vec<&RecordKey> =
            keys.iter().zip(told).filter(|(_, told)| **told == Told::Nothing).map(|(key, _)| key).collect();
        if !unknown.is_empty() {
            self.trust.remember(unknown);
            let is_told = match self.l1_is_another() && !self.is_repaired() {
                true => self.outdate_named().await,
                false => self.make_dirty().await,
            };
            if let Err(error) = is_told {
                // These writes are durable and answered `cached = false`. Only if this server
                // crashes before L1 is repaired, reads may return older values.
                tracing::warn!(
                    %error,
                    "L1 did not confirm a write, and L2 could not note that L1 may hold older values: if this server \
                     crashes before L1 is trusted again, reads may return them until l1.ttl"
                );
            }
        }
        let not_cached = told.iter().filter(|told| **told != Told::Cached).count();
        if not_cached > 0 {
            self.writes_not_cached.add(not_cached);
        }
        let answer = |told: &Told| match (told, self.settings.on_l1_loss) {
            (Told::Cached, _) => Ok(true),
            (Told::ThisL1 | Told::Nothing, OnL1Loss::Accept) => Ok(false),
            (Told::ThisL1 | Told::Nothing, OnL1Loss::Reject) => Err(WriteError::CommittedNotCached),
        };
        told.iter().map(answer).collect()
    }

    /// Sets the dirty flag in L2: L1 may hold stale values of this epoch. A server that lost its
    /// connection to L1 must then start a new epoch before it uses L1 again, even if this server
    /// crashes.
    pub(super) async fn make_dirty(&self) -> Result<(), StoreError> {
        if self.is_repaired() {
            return Ok(()); // the repairer removes what this server remembers
        }
        // An old view may show an epoch that is gone, while the present one is not dirty.
        if self.trust.fresh_epoch().is_some_and(|state| state.dirty) {
            return Ok(());
        }
        if !self.l2_breaker.is_healthy() {
            return Err(StoreError::Unavailable("its circuit breaker is open".into()));
        }
        let asked = self.trust.now();
        let state = self.store.mark_dirty(asked.0 + self.settings.write_deadline).await;
        self.note_l2(&state, self.settings.write_deadline);
        // The client's own write certainly did not happen, whether the flag was set or not.
        let state = state.map_err(|error| StoreError::Unavailable(error.to_string().into()))?;
        self.trust.see(state, asked);
        Ok(())
    }
}
