//! The end of a write: L1 is told what now stands in L2, and what it did not confirm is owned up to. What is answered
//! with `cached` is what L1 confirmed in an epoch that still holds for everybody.

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

/// What L1 knows of a committed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It confirmed that it holds this write, or nothing older, and everybody uses this epoch.
    Cached,
    /// It confirmed, but it is not everybody's: others may still use the epoch before, for a moment, or each its own L1.
    ThisL1,
    /// It did not confirm.
    Nothing,
}

/// How many epochs a write follows with its SETTLE.
const EPOCHS: usize = 5;

impl Tiered {
    /// How a write that begins now may use L1. A view of the epoch that is too old is refreshed first: leaving L1 alone
    /// would cost everybody a new epoch.
    ///
    /// With the life of the view that says so.
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

    /// Whether `epoch` has held for everybody since its view had this life; a view that is too old is refreshed first.
    async fn holds(&self, epoch: Epoch, life: u64) -> bool {
        self.freshen_epoch().await;
        self.trust.holds(epoch, life)
    }

    /// PUT of what now stands in L2, or where nothing was marked SETTLE of its revision.
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
        // Nothing was marked, or the epoch changed meanwhile: only removing is allowed.
        let revisions: Vec<Revision> = states.iter().map(State::revision).collect();
        self.remove_older(keys, &revisions, patience).await
    }

    /// SETTLE without a lease: L1 drops what is older.
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
            let tell = |confirmed: bool| match (confirmed && stands, holds) {
                (true, true) => Told::Cached,
                (true, false) => Told::ThisL1,
                (false, _) => Told::Nothing,
            };
            told = answers.into_iter().map(|answer| tell(answer.is_ok())).collect();
            if failed || stands {
                return told;
            }
            // The epoch changed on the way, and what was told is worth nothing: L1 is told again in the new one. To give up
            // here would mark that one dirty, which brings the next, and with many writes each change meets such a write.
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
        // Where nothing stands in L2 nothing is known of a revision either: removing is what is always safe.
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

    /// Remembers what L1 does not know, so that L1 is not trusted before it is removed, and says for each committed write
    /// whether it is `cached`.
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
                // The writes are durable and answered as not cached; only a crash before L1 is back could hide them.
                tracing::warn!(%error, "L2 could not be told that L1 may be stale");
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

    /// Tells L2 that L1 may hold stale values of this epoch, so that who lost sight of L1 trusts it again only under a new
    /// one, even after a crash of this server.
    pub(super) async fn make_dirty(&self) -> Result<(), StoreError> {
        if self.is_repaired() {
            return Ok(()); // whatever this server remembers, the repairer makes good
        }
        // An old view may be of an epoch that is gone, and the present one not dirty.
        if self.trust.fresh_epoch().is_some_and(|state| state.dirty) {
            return Ok(());
        }
        if !self.l2_breaker.is_healthy() {
            return Err(StoreError::Unavailable("its breaker is open".into()));
        }
        let asked = self.trust.now();
        let state = self.store.mark_dirty(asked.0 + self.settings.write_deadline).await;
        self.note_l2(&state, self.settings.write_deadline);
        // Whether the mark was set is not the client's question: its own write surely did not happen.
        let state = state.map_err(|error| StoreError::Unavailable(error.to_string().into()))?;
        self.trust.see(state, asked);
        Ok(())
    }
}
