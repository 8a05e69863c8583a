//! Writes and deletes: MARK, commit in L2, PUT. Each runs in a task of its own, as a cancelled call drops its handler's
//! future, and that would be a crash between the tiers.

use std::{future::Future, slice, sync::Arc};

use tokio::time::Instant;

use super::{
    OnL1Loss, Tiered,
    meter::Operation,
    outcomes::Step,
    patience::{L1Patience, Load},
    told::Told,
    trust::BypassedWrite,
    trust::L1Use,
};
use crate::{
    cache::{CacheKey, Epoch, Marked, PermitId},
    record::{RecordKey, State},
    store::{Outcome, Receipt, StoreError, Write},
    trace,
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
    /// More writes at once than are taken. Nothing happened.
    #[error("too many writes at once")]
    TooBusy,
    /// A bug; it may have happened.
    #[error("the write was lost")]
    Internal,
}

/// How L1 was prepared for some writes.
pub(super) enum Prepared<'a> {
    /// Each with its permit, under a view with this life.
    Marked(Epoch, u64, Vec<PermitId>),
    /// L1 can be reached and will be told afterwards: bulk writes, and all writes while the epoch is changing.
    Unmarked,
    /// Behind L1's back; held until the answer, so that L1 is not trusted again before these writes have ended.
    Bypassed(#[expect(dead_code, reason = "held, not read")] BypassedWrite<'a>),
}

impl Tiered {
    /// Writes one record and answers what now stands. A call that is dropped meanwhile does not stop it.
    pub async fn upsert(self: &Arc<Self>, write: Write) -> Result<WriteAnswer, WriteError> {
        self.upsert_holding((), write).await
    }

    /// The same. `held` is dropped when the write has ended, however long after its call.
    pub async fn upsert_holding(
        self: &Arc<Self>,
        held: impl Send + 'static,
        write: Write,
    ) -> Result<WriteAnswer, WriteError> {
        let tiered = self.clone();
        self.detached(held, async move { tiered.run_write(write).await }).await?
    }

    /// Deletes records of distinct keys. A call that is dropped meanwhile does not stop it.
    pub async fn delete(self: &Arc<Self>, writes: Vec<Write>) -> BulkAnswer {
        self.delete_holding((), writes).await
    }

    /// The same. `held` is dropped when the writes have ended, however long after their call.
    pub async fn delete_holding(self: &Arc<Self>, held: impl Send + 'static, writes: Vec<Write>) -> BulkAnswer {
        let (tiered, count) = (self.clone(), writes.len());
        let items = self.detached(held, async move { tiered.run_deletes(writes).await }).await;
        BulkAnswer { items: items.unwrap_or_else(|error| vec![Err(error); count]) }
    }

    /// Runs to its end whatever becomes of the caller. It keeps its place among the writes until then, so that callers who
    /// come and go do not leave more behind than the server takes; and so is `held` kept, which counts what it has in memory.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WriteError> {
        let place = self.writes.try_enter().ok_or(WriteError::TooBusy)?;
        let work = async move {
            let done = work.await;
            drop((place, held));
            done
        };
        self.tasks.spawn(trace::carried(work)).await.map_err(|error| {
            tracing::error!(%error, "a detached write was lost");
            WriteError::Internal
        })
    }

    async fn run_write(&self, write: Write) -> Result<WriteAnswer, WriteError> {
        let (keys, mut patience) = ([write.key.clone()], self.l1_patience());
        let prepared = self.prepare(&keys, true, &mut patience).await?;
        let started = Instant::now();
        let answer = self.store.write(write, started + self.settings.write_deadline).await;
        self.l2_meter.took(Operation::Write, started.elapsed());
        self.note_l2(&answer, self.settings.write_deadline);
        let (receipt, state) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.take_back(&prepared, &keys, &[Some(error.clone())], &mut patience).await;
                return Err(error.into());
            }
        };
        if let Some(record) = state.record() {
            self.sizes.of(&keys[0].view).saw(1, record.as_bytes().len());
        }
        let told = self.conclude(&prepared, &keys, slice::from_ref(&state), &mut patience).await;
        let cached = self.own_up(&keys, &told).await.into_iter().next().unwrap_or(Err(WriteError::Internal))?;
        tell(&keys[0], &receipt, cached);
        Ok(WriteAnswer { receipt, state, cached })
    }

    async fn run_deletes(&self, writes: Vec<Write>) -> Vec<Result<(Receipt, bool), WriteError>> {
        let keys: Vec<RecordKey> = writes.iter().map(|write| write.key.clone()).collect();
        let mut patience = self.l1_patience();
        let prepared = match self.prepare(&keys, true, &mut patience).await {
            Ok(prepared) => prepared,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let receipts = self.commit_batch(writes).await;
        let told = self.conclude_deletes(&prepared, &keys, &receipts, &mut patience).await;
        self.answers(&keys, receipts, &told).await
    }

    /// PUT of the tombstones that now stand, DEL where none does; the permits of what L2 surely never saw are given back.
    async fn conclude_deletes(
        &self,
        prepared: &Prepared<'_>,
        keys: &[RecordKey],
        receipts: &[Result<Receipt, StoreError>],
        patience: &mut L1Patience<'_>,
    ) -> Vec<Told> {
        let errors: Vec<Option<StoreError>> = receipts.iter().map(|receipt| receipt.clone().err()).collect();
        if errors.iter().any(Option::is_some) {
            self.take_back(prepared, keys, &errors, patience).await;
        }
        let (known, states): (Vec<usize>, Vec<State>) = receipts
            .iter()
            .enumerate()
            .filter_map(|(i, receipt)| Some((i, receipt.as_ref().ok()?)))
            .map(|(i, receipt)| (i, if receipt.tombstone { State::Tombstone(receipt.revision) } else { State::Absent }))
            .unzip();
        let known_keys: Vec<RecordKey> = known.iter().map(|i| keys[*i].clone()).collect();
        let concluded = match prepared {
            Prepared::Marked(epoch, life, permits) => {
                let prepared = Prepared::Marked(*epoch, *life, known.iter().map(|i| permits[*i]).collect());
                self.conclude(&prepared, &known_keys, &states, patience).await
            }
            _ => self.conclude(prepared, &known_keys, &states, patience).await,
        };
        let mut told = vec![Told::Nothing; keys.len()];
        for (i, concluded) in known.into_iter().zip(concluded) {
            told[i] = concluded;
        }
        told
    }

    /// Writes a batch to L2, counted.
    pub(super) async fn commit_batch(&self, writes: Vec<Write>) -> Vec<Result<Receipt, StoreError>> {
        let started = Instant::now();
        let deadline = started + self.settings.write_deadline;
        let (receipts, operation) = match <[Write; 1]>::try_from(writes) {
            // A batch of one is cheaper as a single write.
            Ok([write]) => {
                let receipt = self.store.write(write, deadline).await.map(|(receipt, _)| receipt);
                (vec![receipt], Operation::Write)
            }
            Err(writes) => (self.store.write_batch(writes, deadline).await, Operation::WriteBatch),
        };
        self.l2_meter.took(operation, started.elapsed());
        if let Some(receipt) = receipts.iter().find(|receipt| receipt.is_err()).or(receipts.first()) {
            self.note_l2(receipt, self.settings.write_deadline);
        }
        receipts
    }

    /// MARK, for those who mark. A permit counts only if its reply came before the L2 write is sent, so no reply means a
    /// write behind L1's back.
    pub(super) async fn prepare(
        &self,
        keys: &[RecordKey],
        mark: bool,
        patience: &mut L1Patience<'_>,
    ) -> Result<Prepared<'_>, WriteError> {
        if !self.l2_breaker.is_healthy() {
            return Err(StoreError::Unavailable("its breaker is open".into()).into());
        }
        let (l1, life) = self.l1_for_write().await;
        if self.trust.breaker.is_healthy() && !self.trust.is_fresh() {
            // L2 was just asked and does not confirm the epoch, so it is hardly there. A write behind L1's back would take
            // away the hits that are all that can be served now.
            return Err(StoreError::Unavailable("it does not confirm the epoch".into()).into());
        }
        let refuses = self.settings.on_l1_loss == OnL1Loss::Reject;
        match l1 {
            // Not `cached` in any case, as it is not everybody's L1.
            L1Use::Trusted(_) | L1Use::Untrusted(_) if refuses && !self.trust.is_everybodys() => {}
            L1Use::Trusted(epoch) | L1Use::Untrusted(epoch) if mark => {
                if let Some(permits) = self.mark(epoch, keys, patience).await {
                    return Ok(Prepared::Marked(epoch, life, permits));
                }
            }
            L1Use::Trusted(_) | L1Use::Untrusted(_) => return Ok(Prepared::Unmarked),
            // Not `cached` in any case, so it is no use to those who refuse such writes.
            L1Use::Paused(_) if !refuses => return Ok(Prepared::Unmarked),
            L1Use::Paused(_) | L1Use::HitsOnly(_) | L1Use::Bypassed => {}
        }
        if refuses {
            return Err(WriteError::L1Lost);
        }
        let bypassed = self.trust.begin_bypassed(keys.to_vec());
        self.make_dirty().await?;
        Ok(Prepared::Bypassed(bypassed))
    }

    async fn mark(&self, epoch: Epoch, keys: &[RecordKey], patience: &mut L1Patience<'_>) -> Option<Vec<PermitId>> {
        let marks: Vec<_> = keys.iter().map(|key| (CacheKey::new(epoch, key), PermitId::random())).collect();
        let step = |by| self.cache.mark(&marks, by);
        let answers = patience.waiting_step(Operation::Mark, Load::of(marks.len()), step).await?;
        self.outcomes.marked(&answers);
        if self.note_failed(&answers) {
            return None;
        }
        if answers.contains(&Ok(Marked::Overflow)) {
            tracing::debug!("too many writes of one key at once: its entry was removed");
        }
        Some(marks.into_iter().map(|(_, permit)| permit).collect())
    }

    /// After failed writes: the permits of what L2 surely never saw are given back, the others lapse.
    async fn take_back(
        &self,
        prepared: &Prepared<'_>,
        keys: &[RecordKey],
        errors: &[Option<StoreError>],
        patience: &mut L1Patience<'_>,
    ) {
        let Prepared::Marked(epoch, _, permits) = prepared else { return };
        let surely_not = |error: &Option<StoreError>| error.as_ref().is_some_and(|error| !error.may_have_happened());
        let unmarks: Vec<_> = keys
            .iter()
            .zip(permits)
            .zip(errors)
            .filter(|(_, error)| surely_not(error))
            .map(|((key, permit), _)| (CacheKey::new(*epoch, key), *permit))
            .collect();
        if unmarks.is_empty() {
            return;
        }
        let load = Load::of(unmarks.len());
        match patience.step(Operation::Unmark, load, |by| self.cache.unmark(&unmarks, by)).await {
            Some(answers) => {
                self.outcomes.effects(Step::Unmark, &answers);
                self.note_failed(&answers);
            }
            None => {
                self.go_on_alone(load, |cache, by| async move { cache.unmark(&unmarks, by).await });
            }
        }
    }

    /// One answer an item.
    pub(super) async fn answers(
        &self,
        keys: &[RecordKey],
        receipts: Vec<Result<Receipt, StoreError>>,
        told: &[Told],
    ) -> Vec<Result<(Receipt, bool), WriteError>> {
        let committed: Vec<usize> = (0..keys.len()).filter(|i| receipts[*i].is_ok()).collect();
        let committed_keys: Vec<RecordKey> = committed.iter().map(|i| keys[*i].clone()).collect();
        let committed_told: Vec<Told> = committed.iter().map(|i| told[*i]).collect();
        let mut cached = self.own_up(&committed_keys, &committed_told).await.into_iter();
        let answer = |receipt: Result<Receipt, StoreError>| {
            let receipt = receipt?;
            cached.next().unwrap_or(Err(WriteError::Internal)).map(|cached| (receipt, cached))
        };
        let answers: Vec<_> = receipts.into_iter().map(answer).collect();
        if tracing::enabled!(tracing::Level::DEBUG) {
            for (key, (receipt, cached)) in keys.iter().zip(&answers).filter_map(|(k, a)| Some((k, a.as_ref().ok()?))) {
                tell(key, receipt, *cached);
            }
        }
        answers
    }
}

/// One line a write, for a person at the debug level.
fn tell(key: &RecordKey, receipt: &Receipt, cached: bool) {
    let (feature_view, entity_id, revision) = (key.view.as_str(), key.entity_id.as_str(), receipt.revision.0);
    let word = match receipt.outcome {
        Outcome::Written => "WROTE",
        Outcome::Deleted => "DELETED",
        Outcome::NotFound => "NOTHING TO DELETE",
        Outcome::SkippedStale => "SKIPPED STALE",
        Outcome::RevisionMismatch { .. }
        | Outcome::RequestIdReused
        | Outcome::TooManyFeatures { .. }
        | Outcome::RecordTooLarge { .. }
        | Outcome::DocumentTooLarge { .. } => "REFUSED",
    };
    tracing::debug!(feature_view, entity_id, revision, cached, "{word} {entity_id}");
}
