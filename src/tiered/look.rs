//! One MGET of a read, and what its reply means for the rows.

use super::{
    Tiered,
    board::Board,
    meter::Operation,
    patience::{Brought, Load, value_bytes},
    read::{Row, RowError, Tier},
};
use crate::{
    cache::{BATCH_BYTES, CacheError, CacheKey, CacheValue, Epoch},
    record::{RecordKey, State},
};

/// A smaller expected reply is counted only when it has come.
const UNEXPECTED: usize = 64 << 10;

impl Tiered {
    /// Looks the keys up in L1, with one MGET. Rows that L1 lacks stay empty. There are no rows at
    /// all if L1 failed.
    pub(super) async fn look(&self, epoch: Epoch, keys: &[RecordKey], board: &mut Board<'_>) {
        let l1_keys = CacheKey::all(epoch, keys);
        let look = |by| self.cache.get(&l1_keys, by);
        let brought = |found: &Vec<Result<Option<CacheValue>, CacheError>>| {
            Brought::by(found, |value| value.as_ref().map_or(0, value_bytes))
        };
        let load = self.load(keys);
        let held = board.held.bytes();
        if load.bytes() > 0 {
            // Memory for the expected reply is reserved before it comes.
            let expected = load.bytes().min(BATCH_BYTES + load.bytes() / keys.len());
            if expected > UNEXPECTED && !Box::pin(board.hold_by(expected, self.room_by())).await {
                return;
            }
        }
        let Some(found) = board.patience.step_bringing(Operation::Get, load, brought, look).await else {
            board.hold_only(held);
            board.degraded = true;
            return;
        };
        if self.brings {
            board.hold_only(held);
            if !self.hold_brought(keys, &found, board) {
                return;
            }
        }
        let (mut hits, mut negative_hits, mut failure, mut left_out) = (0, 0, None, 0);
        board.rows.extend(found.into_iter().map(|found| match found {
            Ok(Some(value)) => {
                hits += 1;
                let state = State::from(value);
                negative_hits += usize::from(!matches!(state, State::Record(_)));
                Some(Ok(Row { state, tier: Tier::L1 }))
            }
            Ok(None) => None,
            Err(CacheError::LeftOut) => {
                left_out += 1;
                Some(Err(RowError::LEFT_OUT))
            }
            Err(error) => {
                failure = Some(error);
                None
            }
        }));
        board.left_out |= left_out > 0;
        let before = self.l1_meter.read(hits, negative_hits, keys.len() - hits - left_out);
        let hit = || keys.iter().zip(&board.rows).find(|(_, row)| matches!(row, Some(Ok(_)))).map(|(key, _)| key);
        self.audit.hits(before, hits as u64, hit);
        match failure {
            None => self.trust.breaker.succeeded(),
            Some(error) => {
                board.degraded = true;
                self.note_l1(&error);
            }
        }
    }

    /// How much looking up these keys may bring.
    fn load(&self, keys: &[RecordKey]) -> Load {
        let load = Load::of(keys.len());
        match keys.first().filter(|_| self.brings) {
            Some(key) => load.with_bytes(keys.len().saturating_mul(self.sizes.of(&key.view).get())),
            None => load,
        }
    }

    /// Counts the bytes that an L1 in another process sent, and notes how large the records were.
    /// False: there is no memory for them.
    fn hold_brought(
        &self,
        keys: &[RecordKey],
        found: &[Result<Option<CacheValue>, CacheError>],
        board: &mut Board<'_>,
    ) -> bool {
        let sizes = found.iter().flatten().flatten().map(value_bytes).filter(|bytes| *bytes > 0);
        let (records, bytes) = sizes.fold((0, 0), |(records, all), bytes| (records + 1, all + bytes));
        keys.iter().take(1).for_each(|key| self.sizes.of(&key.view).saw(records, bytes));
        board.hold(bytes)
    }
}
