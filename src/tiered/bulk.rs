//! Bulk writes: one batch in L2, then a SETTLE for each record, which removes what is older from
//! L1; with `warm` L1 is filled too. There is no MARK, which saves a pipeline; the chunk is
//! answered only after L1 has confirmed.

use std::{collections::HashSet, sync::Arc};

use tokio::time::Instant;

use super::{BulkAnswer, Tiered, WriteError, fetch::Ask, patience::L1Patience, told::Told, trust::L1Use};
use crate::{
    cache::CacheKey,
    record::RecordKey,
    store::{ReadConcern, Receipt, StoreError, Write},
};

impl Tiered {
    /// Writes a chunk. If a key is repeated, the last write wins. The writes continue if the call
    /// is dropped.
    pub async fn write_bulk(self: &Arc<Self>, writes: Vec<Write>, warm: bool) -> BulkAnswer {
        self.write_bulk_holding((), writes, warm).await
    }

    /// The same. `held` is dropped when the writes have ended, even if that is after their call.
    pub async fn write_bulk_holding(
        self: &Arc<Self>,
        held: impl Send + 'static,
        writes: Vec<Write>,
        warm: bool,
    ) -> BulkAnswer {
        let (tiered, count) = (self.clone(), writes.len());
        let items = self.detached(held, async move { tiered.run_bulk(writes, warm).await }).await;
        BulkAnswer { items: items.unwrap_or_else(|error| vec![Err(error); count]) }
    }

    async fn run_bulk(&self, writes: Vec<Write>, warm: bool) -> Vec<Result<(Receipt, bool), WriteError>> {
        let keys: Vec<RecordKey> = writes.iter().map(|write| write.key.clone()).collect();
        let mut patience = self.l1_patience();
        // Held until the answer, so that L1 is not trusted before these writes have ended.
        let _prepared = match self.prepare(&keys, false, &mut patience).await {
            Ok(prepared) => prepared,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let receipts = self.commit_batch(writes).await;
        let written: Vec<usize> = (0..keys.len()).filter(|i| receipts[*i].is_ok()).collect();
        let written_keys: Vec<RecordKey> = written.iter().map(|i| keys[*i].clone()).collect();
        let revisions: Vec<_> = receipts.iter().flatten().map(|receipt| receipt.revision).collect();
        let mut told = vec![Told::Nothing; keys.len()];
        if !written.is_empty() {
            let known = self.remove_older(&written_keys, &revisions, &mut patience).await;
            for (i, known) in written.into_iter().zip(known) {
                told[i] = known;
            }
            if warm {
                self.warm(&written_keys, &mut patience).await;
            }
        }
        self.answers(&keys, receipts, &told).await
    }

    /// Fills L1: first the leases, then the records from L2, because records that were read before
    /// the lease may be older than a write in between. Nothing depends on it: a key that is not
    /// filled is a miss.
    async fn warm(&self, keys: &[RecordKey], patience: &mut L1Patience<'_>) {
        let L1Use::Trusted(epoch) = self.trust.l1() else { return };
        // Calls that read have precedence.
        let Some(_place) = self.l2_reads.try_enter() else { return };
        let distinct: HashSet<&RecordKey> = keys.iter().collect();
        let keys: Vec<RecordKey> = distinct.into_iter().cloned().collect();
        let Some(asks) = self.acquire(CacheKey::all(epoch, &keys), patience).await else { return };
        let leased = |(key, ask): (RecordKey, Ask)| Some((key, Some(ask.token?)));
        let (mut keys, mut tokens): (Vec<_>, Vec<_>) = keys.into_iter().zip(asks).filter_map(leased).unzip();
        // Part by part, each as large as is held at once.
        while !keys.is_empty() && !patience.left().is_zero() {
            let (deadline, mut held) = (Instant::now() + self.settings.read_deadline, self.holding());
            let Some(states) = self.query(&keys, ReadConcern::Majority, deadline, &mut held).await else { return };
            let left_out: Vec<bool> = states.iter().map(|state| *state == Err(StoreError::LeftOut)).collect();
            if patience.left().is_zero() || left_out.iter().all(|left_out| *left_out) {
                return; // the leases lapse
            }
            self.settle_read(epoch, &keys, tokens.clone(), &states, patience).await;
            drop(states);
            let rest = keys.into_iter().zip(tokens).zip(left_out).filter(|(_, left_out)| *left_out);
            (keys, tokens) = rest.map(|(rest, _)| rest).unzip();
        }
    }
}
