//! Writes and deletes: MARK, commit in L2, PUT. Each runs in a task of its own: a cancelled call
//! drops the future of its handler, which would be a crash between the tiers.

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

/// The result of a write that L2 decided.
#[derive(Clone, Debug)]
pub struct WriteAnswer {
    /// The outcome in L2, and the revision that now stands.
    pub receipt: Receipt,
    /// The record as it now stands.
    pub state: State,
    /// L1 confirmed that it holds nothing older than this write.
    pub cached: bool,
}

/// The results of many writes.
#[derive(Clone, Debug)]
pub struct BulkAnswer {
    /// One for each write, and whether it is `cached`.
    pub items: Vec<Result<(Receipt, bool), WriteError>>,
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// L2 failed. `StoreError` says whether the write may have happened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// L1 is lost, and such writes are rejected (`l1.on_loss`). Nothing happened.
    #[error("L1 cannot be used now, and l1.on_loss = reject: nothing was written")]
    L1Lost,
    /// L1 was lost during the write, and such writes are rejected (`l1.on_loss`). It is durable.
    #[error("the write is durable in L2, but L1 did not confirm it (l1.on_loss = reject)")]
    CommittedNotCached,
    /// Too many writes run at the same time. Nothing happened.
    #[error("too many writes at once")]
    TooBusy,
    /// A bug: the task of the write ended without an answer. It may have happened.
    #[error("the task of the write ended without an answer")]
    Internal,
}

/// What was done in L1 before the writes.
pub(super) enum Prepared<'a> {
    /// Each write has its permit, in this epoch, under a view with this `life`.
    Marked(Epoch, u64, Vec<PermitId>),
    /// Nothing. L1 gets a SETTLE afterwards: bulk writes, and all writes in the pause after a
    /// change of the epoch.
    Unmarked,
    /// Bypassed writes. Held until the answer, so that L1 is not trusted before they have ended.
    Bypassed(#[expect(dead_code, reason = "held, not read")] BypassedWrite<'a>),
}

impl Tiered {
    /// Writes one record and returns what now stands. The write continues if the call is dropped.
    pub async fn upsert(self: &Arc<Self>, write: Write) -> Result<WriteAnswer, WriteError> {
        self.upsert_holding((), write).await
    }

    /// The same. `held` is dropped when the write has ended, even if that is after its call.
    pub async fn upsert_holding(
        self: &Arc<Self>,
        held: impl Send + 'static,
        write: Write,
    ) -> Result<WriteAnswer, WriteError> {
        let tiered = self.clone();
        self.detached(held, async move { tiered.run_write(write).await }).await?
    }

    /// Deletes records of distinct keys. The deletes continue if the call is dropped.
    pub async fn delete(self: &Arc<Self>, writes: Vec<Write>) -> BulkAnswer {
        self.delete_holding((), writes).await
    }

    /// The same. `held` is dropped when the deletes have ended, even if that is after their call.
    pub async fn delete_holding(self: &Arc<Self>, held: impl Send + 'static, writes: Vec<Write>) -> BulkAnswer {
        let (tiered, count) = (self.clone(), writes.len());
        let items = self.detached(held, async move { tiered.run_deletes(writes).await }).await;
        BulkAnswer { items: items.unwrap_or_else(|error| vec![Err(error); count]) }
    }

    /// Runs `work` to its end in a task, even if the call is dropped. Until then it counts among
    /// the writes, so that calls that are cancelled do not leave more work behind than the server
    /// takes; and `held` counts its memory.
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
            tracing::error!(%error, "the task of a write ended without an answer: this is a bug");
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
        log_write(&keys[0], &receipt, cached);
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

    /// PUT of the tombstones that now stand, DEL for keys without one, UNMARK after failures.
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

    /// Sends MARK, if `mark` says so. A permit counts only if its reply came before the write is
    /// sent to L2, so without a reply it is a bypassed write.
    pub(super) async fn prepare(
        &self,
        keys: &[RecordKey],
        mark: bool,
        patience: &mut L1Patience<'_>,
    ) -> Result<Prepared<'_>, WriteError> {
        if !self.l2_breaker.is_healthy() {
            return Err(StoreError::Unavailable("its circuit breaker is open".into()).into());
        }
        let (l1, life) = self.l1_for_write().await;
        if self.trust.breaker.is_healthy() && !self.trust.is_fresh() {
            // L2 was just asked and did not confirm the epoch, so it is hardly there. A bypassed
            // write would take away the hits, which are all that can be served now.
            return Err(StoreError::Unavailable("it did not confirm the epoch".into()).into());
        }
        let refuses = self.settings.on_l1_loss == OnL1Loss::Reject;
        match l1 {
            // These cannot be `cached`, as L1 does not hold for all servers.
            L1Use::Trusted(_) | L1Use::Untrusted(_) if refuses && !self.trust.is_everybodys() => {}
            L1Use::Trusted(epoch) | L1Use::Untrusted(epoch) if mark => {
                if let Some(permits) = self.mark(epoch, keys, patience).await {
                    return Ok(Prepared::Marked(epoch, life, permits));
                }
            }
            L1Use::Trusted(_) | L1Use::Untrusted(_) => return Ok(Prepared::Unmarked),
            // These cannot be `cached`, so they continue only if such writes are accepted.
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
            tracing::debug!("one key has too many permits: its entry was removed from L1");
        }
        Some(marks.into_iter().map(|(_, permit)| permit).collect())
    }

    /// After failed writes: UNMARK for what L2 certainly did not do. The other permits lapse.
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
                log_write(key, receipt, *cached);
            }
        }
        answers
    }
}

/// Logs a line for each write, at the level debug.
fn log_write(key: &RecordKey, receipt: &Receipt, cached: bool) {
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
