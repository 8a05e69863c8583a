//! Writes and deletes: MARK, commit in L2, PUT. Each runs in a task of its own, as a cancelled call drops its handler's
//! future, and that would be a crash between the tiers.

use std::{future::Future, sync::Arc};

use tokio::time::Instant;

use super::{OnL1Loss, Tiered, trust::L1Use};
use crate::{
    cache::{CacheKey, Effect, Epoch, Marked, PermitId, Put, Settle},
    record::{RecordKey, Revision, State},
    store::{Receipt, StoreError, Write},
};

/// What became of a write.
#[derive(Clone, Debug)]
pub struct WriteAnswer {
    /// What L2 did, and what now stands.
    pub receipt: Receipt,
    /// What now stands.
    pub state: State,
    /// L1 confirmed that it holds this write, or nothing older.
    pub cached: bool,
}

/// What became of many writes.
#[derive(Clone, Debug)]
pub struct BulkAnswer {
    /// One a write, with whether L1 confirmed it.
    pub items: Vec<Result<(Receipt, bool), WriteError>>,
}

/// Why a write was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// L2 failed; `StoreError` tells whether it may have happened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// L1 is lost, and such writes are refused (`l1.on_loss`). Nothing happened.
    #[error("L1 cannot be told of this write")]
    L1Lost,
    /// L1 was lost on the way, and such writes are refused (`l1.on_loss`). It is durable in L2.
    #[error("committed, but L1 could not be told")]
    CommittedNotCached,
    /// A bug; it may have happened.
    #[error("the write was lost")]
    Internal,
}

/// How L1 was prepared for some writes.
pub(super) enum Prepared {
    /// Each with its permit.
    Marked(Epoch, Vec<PermitId>),
    /// Behind L1's back.
    Bypassed,
}

impl Tiered {
    /// Writes one record and answers what now stands. A call that is dropped meanwhile does not stop it.
    pub async fn upsert(self: &Arc<Self>, write: Write) -> Result<WriteAnswer, WriteError> {
        let tiered = self.clone();
        self.detached(async move { tiered.run_write(write).await }).await.unwrap_or(Err(WriteError::Internal))
    }

    /// Deletes records of distinct keys. A call that is dropped meanwhile does not stop it.
    pub async fn delete(self: &Arc<Self>, writes: Vec<Write>) -> BulkAnswer {
        let (tiered, count) = (self.clone(), writes.len());
        let items = self.detached(async move { tiered.run_deletes(writes).await }).await;
        BulkAnswer { items: items.unwrap_or_else(|| vec![Err(WriteError::Internal); count]) }
    }

    /// Runs to its end whatever becomes of the caller. None: it panicked.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.tasks.spawn(work).await.inspect_err(|error| tracing::error!(%error, "a detached write was lost")).ok()
    }

    async fn run_write(&self, write: Write) -> Result<WriteAnswer, WriteError> {
        self.l2_is_asked()?;
        let keys = vec![write.key.clone()];
        let prepared = self.prepare(&keys).await?;
        // Held until the answer: L1 is not trusted again before this write has ended.
        let bypassed = matches!(prepared, Prepared::Bypassed).then(|| self.trust.begin_bypassed(keys.clone()));
        if bypassed.is_some() {
            self.make_dirty().await?;
        }
        let started = Instant::now();
        let answer = self.store.write(write, started + self.settings.write_deadline).await;
        self.l2_meter.took(started.elapsed());
        self.note_l2(&answer, self.settings.write_deadline);
        let (receipt, state) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.take_back(prepared, &keys, std::slice::from_ref(&error)).await;
                return Err(error.into());
            }
        };
        let cached = self.conclude(prepared, &keys, std::slice::from_ref(&state)).await[0];
        self.accept(cached, &keys, || WriteAnswer { receipt, state, cached }).await
    }

    async fn run_deletes(&self, writes: Vec<Write>) -> Vec<Result<(Receipt, bool), WriteError>> {
        let keys: Vec<RecordKey> = writes.iter().map(|write| write.key.clone()).collect();
        let refused = |error: WriteError| vec![Err(error); keys.len()];
        if let Err(error) = self.l2_is_asked() {
            return refused(error.into());
        }
        let prepared = match self.prepare(&keys).await {
            Ok(prepared) => prepared,
            Err(error) => return refused(error),
        };
        let bypassed = matches!(prepared, Prepared::Bypassed).then(|| self.trust.begin_bypassed(keys.clone()));
        if bypassed.is_some()
            && let Err(error) = self.make_dirty().await
        {
            return refused(error.into());
        }
        let receipts = self.commit_batch(writes).await;
        let cached = self.conclude_deletes(prepared, &keys, &receipts).await;
        self.answers(&keys, receipts, cached).await
    }

    /// PUT of the tombstones that now stand, DEL where none does; the permits of what L2 surely never saw are given back.
    async fn conclude_deletes(
        &self,
        prepared: Prepared,
        keys: &[RecordKey],
        receipts: &[Result<Receipt, StoreError>],
    ) -> Vec<bool> {
        let (known, failed): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(|i| receipts[*i].is_ok());
        let split = |places: &[usize]| match &prepared {
            Prepared::Marked(epoch, permits) => Prepared::Marked(*epoch, places.iter().map(|i| permits[*i]).collect()),
            Prepared::Bypassed => Prepared::Bypassed,
        };
        let keys_at = |places: &[usize]| places.iter().map(|i| keys[*i].clone()).collect::<Vec<_>>();
        let states: Vec<State> = receipts
            .iter()
            .flatten()
            .map(|receipt| if receipt.tombstone { State::Tombstone(receipt.revision) } else { State::Absent })
            .collect();
        let errors: Vec<StoreError> = receipts.iter().filter_map(|receipt| receipt.as_ref().err().cloned()).collect();
        if !failed.is_empty() {
            self.take_back(split(&failed), &keys_at(&failed), &errors).await;
        }
        let mut cached = vec![false; keys.len()];
        let confirmed = self.conclude(split(&known), &keys_at(&known), &states).await;
        for (i, confirmed) in known.into_iter().zip(confirmed) {
            cached[i] = confirmed;
        }
        cached
    }

    /// One answer an item.
    pub(super) async fn answers(
        &self,
        keys: &[RecordKey],
        receipts: Vec<Result<Receipt, StoreError>>,
        cached: Vec<bool>,
    ) -> Vec<Result<(Receipt, bool), WriteError>> {
        let mut items = Vec::with_capacity(receipts.len());
        for ((receipt, key), cached) in receipts.into_iter().zip(keys).zip(cached) {
            items.push(match receipt {
                Ok(receipt) => self.accept(cached, std::slice::from_ref(key), || (receipt, cached)).await,
                Err(error) => Err(error.into()),
            });
        }
        items
    }

    /// Writes a batch to L2, counted.
    pub(super) async fn commit_batch(&self, writes: Vec<Write>) -> Vec<Result<Receipt, StoreError>> {
        let started = Instant::now();
        let deadline = started + self.settings.write_deadline;
        let receipts = match <[Write; 1]>::try_from(writes) {
            // A batch of one is cheaper as a single write.
            Ok([write]) => vec![self.store.write(write, deadline).await.map(|(receipt, _)| receipt)],
            Err(writes) => self.store.write_batch(writes, deadline).await,
        };
        self.l2_meter.took(started.elapsed());
        if let Some(receipt) = receipts.iter().find(|receipt| receipt.is_err()).or(receipts.first()) {
            self.note_l2(receipt, self.settings.write_deadline);
        }
        receipts
    }

    pub(super) fn l2_is_asked(&self) -> Result<(), StoreError> {
        if self.l2_breaker.is_healthy() { Ok(()) } else { Err(StoreError::Unavailable("its breaker is open".into())) }
    }

    /// MARK. A permit counts only if its reply came before the L2 write is sent, so no reply means a bypassed write.
    async fn prepare(&self, keys: &[RecordKey]) -> Result<Prepared, WriteError> {
        if let L1Use::Trusted(epoch) = self.trust.l1() {
            let marks: Vec<_> = keys.iter().map(|key| (CacheKey::new(epoch, key), PermitId::random())).collect();
            let answers = self.cache.mark(&marks, self.l1_deadline()).await;
            match answers.iter().find_map(|answer| answer.as_ref().err()) {
                None => {
                    if answers.contains(&Ok(Marked::Overflow)) {
                        tracing::debug!("too many writes of one key at once: its entry was removed");
                    }
                    return Ok(Prepared::Marked(epoch, marks.into_iter().map(|(_, permit)| permit).collect()));
                }
                Some(error) => self.note_l1(error),
            }
        }
        match self.settings.on_l1_loss {
            OnL1Loss::Accept => Ok(Prepared::Bypassed),
            OnL1Loss::Reject => Err(WriteError::L1Lost),
        }
    }

    /// Tells L2 that L1 may hold stale values of this epoch, so that L1 is trusted again only under a new one, even
    /// after a crash of this server.
    pub(super) async fn make_dirty(&self) -> Result<(), StoreError> {
        // An old view may be of an epoch that is gone, and the present one not dirty.
        if self.trust.fresh_epoch().is_some_and(|state| state.dirty) {
            return Ok(());
        }
        let asked = Instant::now();
        let state = self.store.mark_dirty(asked + self.settings.write_deadline).await;
        self.note_l2(&state, self.settings.write_deadline);
        // Whether the mark was set is not the client's question: its own write surely did not happen.
        let state = state.map_err(|error| StoreError::Unavailable(error.to_string().into()))?;
        self.trust.see(state, asked);
        Ok(())
    }

    /// After a failed write: the permits of what L2 surely never saw are given back, the others lapse.
    async fn take_back(&self, prepared: Prepared, keys: &[RecordKey], errors: &[StoreError]) {
        let Prepared::Marked(epoch, permits) = prepared else { return };
        let surely_not = |error: &StoreError| !matches!(error, StoreError::OutcomeUnknown(_));
        let unmarks: Vec<_> = keys
            .iter()
            .zip(permits)
            .zip(errors)
            .filter(|(_, error)| surely_not(error))
            .map(|((key, permit), _)| (CacheKey::new(epoch, key), permit))
            .collect();
        if unmarks.is_empty() {
            return;
        }
        let answers = self.cache.unmark(&unmarks, self.l1_deadline()).await;
        if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
            self.note_l1(error);
        }
    }

    /// PUT of what now stands in L2, or SETTLE for writes behind L1's back. For each: whether L1 confirmed it, in an
    /// epoch that still holds.
    pub(super) async fn conclude(&self, prepared: Prepared, keys: &[RecordKey], states: &[State]) -> Vec<bool> {
        if keys.is_empty() {
            return Vec::new();
        }
        if let Prepared::Marked(epoch, permits) = &prepared {
            let confirmed = self.put(*epoch, permits, keys, states).await;
            if self.trust.holds(*epoch) {
                return confirmed;
            }
        }
        // Behind L1's back, or the epoch changed meanwhile: only removing is allowed.
        let revisions: Vec<Revision> = states.iter().map(State::revision).collect();
        self.remove_older(keys, &revisions).await
    }

    /// SETTLE without a lease: L1 drops what is older. For each: whether L1 confirmed it, in an epoch that still holds.
    pub(super) async fn remove_older(&self, keys: &[RecordKey], revisions: &[Revision]) -> Vec<bool> {
        let (L1Use::Trusted(epoch) | L1Use::RemoveOnly(epoch) | L1Use::HitsOnly(epoch)) = self.trust.l1() else {
            return vec![false; keys.len()];
        };
        let settle = |(key, revision): (&RecordKey, &Revision)| Settle {
            key: CacheKey::new(epoch, key),
            revision: *revision,
            fill: None,
        };
        let settles: Vec<_> = keys.iter().zip(revisions).map(settle).collect();
        let answers = self.cache.settle(&settles, self.l1_deadline()).await;
        if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
            self.note_l1(error);
        }
        let holds = self.trust.holds(epoch);
        answers.into_iter().map(|answer| holds && answer.is_ok()).collect()
    }

    async fn put(&self, epoch: Epoch, permits: &[PermitId], keys: &[RecordKey], states: &[State]) -> Vec<bool> {
        let put = |((key, permit), state): ((&RecordKey, &PermitId), &State)| Put {
            key: CacheKey::new(epoch, key),
            permit: *permit,
            fill: self.fill(state.clone()),
        };
        // Nothing stands in L2 and nothing is known of its revision: removing is what is always safe.
        let (gone, stands): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(|i| states[*i] == State::Absent);
        let mut confirmed = vec![false; keys.len()];
        let mut failure = None;
        if !stands.is_empty() {
            let puts: Vec<_> = stands.iter().map(|i| put(((&keys[*i], &permits[*i]), &states[*i]))).collect();
            for (i, answer) in stands.into_iter().zip(self.cache.put(&puts, self.l1_deadline()).await) {
                match answer {
                    Ok(Effect::Installed | Effect::Dropped | Effect::Kept | Effect::NoEntry) => confirmed[i] = true,
                    Err(error) => failure = Some(error),
                }
            }
        }
        if !gone.is_empty() && failure.is_none() {
            let removes: Vec<_> = gone.iter().map(|i| CacheKey::new(epoch, &keys[*i])).collect();
            for (i, answer) in gone.into_iter().zip(self.cache.remove(&removes, self.l1_deadline()).await) {
                match answer {
                    Ok(()) => confirmed[i] = true,
                    Err(error) => failure = Some(error),
                }
            }
        }
        if let Some(error) = failure {
            self.note_l1(&error);
        }
        confirmed
    }

    /// The answer to a committed write. What L1 did not confirm is remembered, so that L1 is not trusted before it is
    /// removed.
    pub(super) async fn accept<T>(
        &self,
        cached: bool,
        keys: &[RecordKey],
        answer: impl FnOnce() -> T,
    ) -> Result<T, WriteError> {
        if !cached {
            self.trust.remember(keys);
            if let Err(error) = self.make_dirty().await {
                // The write is durable and is answered as not cached; only a crash before L1 is back could hide it.
                tracing::warn!(%error, "L2 could not be told that L1 may be stale");
            }
            if self.settings.on_l1_loss == OnL1Loss::Reject {
                return Err(WriteError::CommittedNotCached);
            }
        }
        Ok(answer())
    }
}
