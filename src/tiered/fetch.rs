//! What a flight does: ACQUIRE in L1, one read of L2, SETTLE in L1.

use std::{borrow::Cow, sync::Arc};

use tokio::time::Instant;

use super::{
    Tiered,
    board::Board,
    flight::{Crew, Flight, Landed},
    lane::Place,
    meter::Operation,
    outcomes::Step,
    patience::{Brought, L1Patience, Load, value_bytes},
    read::{Row, RowError, Tier},
    trust::L1Use,
};
use crate::{
    cache::{Acquired, CacheError, CacheKey, CacheValue, Epoch, PermitId, Settle},
    in_flight::Holding,
    record::{RecordKey, State},
    store::{ReadConcern, StoreError},
};

/// The reply to ACQUIRE for one key.
#[derive(Default)]
pub(super) struct Ask {
    hit: Option<CacheValue>,
    pub(super) token: Option<PermitId>,
    suspect: Option<CacheValue>,
}

impl Ask {
    /// The size of the values in it.
    fn bytes(&self) -> usize {
        self.hit.iter().chain(&self.suspect).map(value_bytes).sum()
    }
}

/// The keys at these places, which are in order and without duplicates; in most cases these are all
/// keys.
fn those<'a>(keys: &'a [RecordKey], places: &[usize]) -> Cow<'a, [RecordKey]> {
    match places.len() == keys.len() {
        true => Cow::Borrowed(keys),
        false => Cow::Owned(places.iter().map(|place| keys[*place].clone()).collect()),
    }
}

impl Tiered {
    /// Runs a flight to its end, and then the flights that were queued behind it.
    pub(super) async fn fly(&self, flight: Arc<Flight>) {
        let mut crew = Crew::new(&self.flights, flight);
        let mut queued = false;
        loop {
            let keys = crew.keys();
            let (landed, held) = self.fetch(&keys, queued, &crew).await;
            if !crew.land(landed, held) {
                return;
            }
            queued = true;
        }
    }

    /// Runs one flight: a look into L1 if it was queued, ACQUIRE, the read of L2, SETTLE. If L1
    /// fails in a step, the rows are degraded. A flight gets its turn in L2 before it asks for
    /// leases, because these keep others from filling while it waits. The returned `Holding` counts
    /// the rows.
    async fn fetch(&self, keys: &[RecordKey], look_first: bool, crew: &Crew<'_>) -> (Vec<Landed>, Holding) {
        // Before the deadlines of its callers, so that they learn which rows L2 did not answer.
        let deadline = Instant::now() + self.settings.read_deadline.mul_f64(0.9);
        let mut place = None;
        if !look_first {
            // While it waits, other callers may join.
            match self.place_in_l2(deadline).await {
                Ok(found) => place = Some(found),
                Err(error) => return (vec![Landed::failed(error); keys.len()], Holding::default()),
            }
        }
        // From here on no caller may join: what L1 or L2 returns may be older than a later call.
        let l1_time = crew.close_doors().min(self.settings.l1_timeout);
        let mut l1 = if l1_time.is_zero() { L1Use::Bypassed } else { self.l1_for_read() };
        let patience = L1Patience::new(l1_time, &self.pace, &self.l1_meter);
        let mut board = Board::new(keys.len(), patience, self.holding());
        if let (L1Use::Trusted(epoch), true) = (l1, look_first) {
            self.look(epoch, keys, &mut board).await;
        }
        board.has_rows_for(keys.len());
        if board.refused.is_some() {
            return (vec![Landed::failed(RowError::NoRoom); keys.len()], Holding::default());
        }
        let missing: Vec<usize> = (0..keys.len()).filter(|i| board.rows[*i].is_none()).collect();
        if look_first && !missing.is_empty() {
            match self.place_in_l2(deadline).await {
                Ok(found) => place = Some(found),
                Err(error) => {
                    let failed = |row: Option<_>| row.map_or_else(|| Landed::failed(error.clone()), Landed::of_l1);
                    return (board.rows.into_iter().map(failed).collect(), board.held);
                }
            }
        }
        if board.degraded || !matches!(l1, L1Use::Trusted(_)) {
            board.degraded = true;
            l1 = L1Use::Bypassed;
        }
        self.read_missing(keys, &missing, l1, place, deadline, &mut board).await;
        let (degraded, l1_time) = (board.degraded, board.patience.left());
        let landed = |row: Option<_>| Landed { row: row.unwrap_or(Err(RowError::Internal)), degraded, l1_time };
        (board.rows.into_iter().map(landed).collect(), board.held)
    }

    /// ACQUIRE, the read of L2 and SETTLE for the rows that a flight lacks.
    async fn read_missing(
        &self,
        keys: &[RecordKey],
        missing: &[usize],
        l1: L1Use,
        place: Option<Place>,
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        let wanted = those(keys, missing);
        let (mut asks, mut acquire_failed) = (Vec::new(), false);
        if let (L1Use::Trusted(epoch), false) = (l1, wanted.is_empty()) {
            match self.acquire(CacheKey::all(epoch, &wanted), &mut board.patience).await {
                Some(answers) => asks = answers,
                None => acquire_failed = true,
            }
        }
        board.degraded |= acquire_failed;
        asks.resize_with(wanted.len(), Ask::default);
        if self.brings && !board.hold(asks.iter().map(Ask::bytes).sum()) {
            missing.iter().for_each(|i| board.rows[*i] = Some(Err(RowError::NoRoom)));
            return;
        }

        // A clean entry, or one that became clean meanwhile, needs no read of L2.
        let mut to_read = Vec::with_capacity(wanted.len());
        for (place, (i, ask)) in missing.iter().zip(&mut asks).enumerate() {
            match ask.hit.take() {
                Some(value) => board.rows[*i] = Some(Ok(Row { state: value.into(), tier: Tier::L1 })),
                None => to_read.push(place),
            }
        }
        if to_read.is_empty() {
            return;
        }
        let l2_keys = those(&wanted, &to_read);
        let Some(states) = self.query(&l2_keys, ReadConcern::Majority, deadline, &mut board.held).await else {
            to_read.into_iter().for_each(|place| board.rows[missing[place]] = Some(Err(RowError::NoRoom)));
            return;
        };
        drop(place);
        if acquire_failed {
            // A SETTLE would wait for L1 once more.
            self.trust.remember(l2_keys.iter().zip(&states).filter(|(_, state)| state.is_ok()).map(|(key, _)| key));
        } else if let L1Use::Trusted(epoch) = l1 {
            let tokens = to_read.iter().map(|place| asks[*place].token).collect();
            if !self.settle_read(epoch, &l2_keys, tokens, &states, &mut board.patience).await {
                board.degraded = true;
            }
        }
        for (place, state) in to_read.into_iter().zip(states) {
            let row = state.map_err(RowError::from).map(|state| match asks[place].suspect.take() {
                // L2 answered from before a write that L1 already has, so the suspect is right.
                Some(suspect) if suspect.revision() > state.revision() => Row { state: suspect.into(), tier: Tier::L1 },
                _ => Row { state, tier: Tier::L2 },
            });
            board.rows[missing[place]] = Some(row);
        }
    }

    /// A place among the reads of L2. Fails at once if the breaker of L2 is open.
    async fn place_in_l2(&self, deadline: Instant) -> Result<Place, RowError> {
        if !self.l2_breaker.is_healthy() {
            return Err(StoreError::Unavailable("its circuit breaker is open".into()).into());
        }
        self.l2_reads.enter(1, deadline).await.ok_or(RowError::TooBusy)
    }

    /// Asks L1 for leases. None: L1 failed.
    pub(super) async fn acquire(&self, keys: Vec<CacheKey>, patience: &mut L1Patience<'_>) -> Option<Vec<Ask>> {
        let asks: Vec<_> = keys.into_iter().map(|key| (key, PermitId::random())).collect();
        let brought = |answers: &Vec<Result<Acquired, CacheError>>| {
            Brought::by(answers, |answer| match answer {
                Acquired::Hit(value) => value_bytes(value),
                Acquired::Lease { suspect } | Acquired::NoFill { suspect } => suspect.as_ref().map_or(0, value_bytes),
            })
        };
        let (load, acquire) = (Load::of(asks.len()), |by| self.cache.acquire(&asks, by));
        let answers = patience.step_bringing(Operation::Acquire, load, brought, acquire).await?;
        self.outcomes.acquired(&answers);
        let mut failure = None;
        let read = |((_, token), answer): (&(CacheKey, PermitId), _)| match answer {
            Ok(Acquired::Hit(value)) => Ask { hit: Some(value), ..Ask::default() },
            Ok(Acquired::Lease { suspect }) => Ask { token: Some(*token), suspect, hit: None },
            Ok(Acquired::NoFill { suspect }) => Ask { token: None, suspect, hit: None },
            Err(error) => {
                failure = Some(error);
                Ask::default()
            }
        };
        let answers = asks.iter().zip(answers).map(read).collect();
        match failure {
            None => Some(answers),
            Some(error) => {
                self.note_l1(&error);
                None
            }
        }
    }

    /// Sends what L2 returned to L1. False: L1 did not confirm all of it, and the keys are
    /// remembered. If there is no memory to send a value, its key is not filled.
    pub(super) async fn settle_read(
        &self,
        epoch: Epoch,
        keys: &[RecordKey],
        tokens: Vec<Option<PermitId>>,
        states: &[Result<State, StoreError>],
        patience: &mut L1Patience<'_>,
    ) -> bool {
        // Each value is copied when it is packed, into the pipeline, and into the buffer of the
        // connection.
        const COPIES: usize = 3;
        let (mut room, mut fill_bytes) = (self.holding(), 0);
        let mut settles = Vec::with_capacity(keys.len());
        let mut settled = Vec::with_capacity(keys.len());
        for (((key, l1_key), token), state) in keys.iter().zip(CacheKey::all(epoch, keys)).zip(tokens).zip(states) {
            // An error is never cached. Its lease lapses.
            let Ok(state) = state else { continue };
            let bytes = state.record().map_or(0, |record| record.as_bytes().len());
            let fits = |_: &_| !self.brings || room.add(COPIES * bytes);
            let fill = token.filter(fits).map(|token| (token, self.fill(state.clone())));
            fill_bytes += if fill.is_some() { bytes } else { 0 };
            settles.push(Settle { key: l1_key, revision: state.revision(), fill });
            settled.push(key);
        }
        // In an epoch that is gone, or that is not yet used by all servers, this does not keep
        // later hits from being older.
        let load = Load::of(settles.len()).with_bytes(fill_bytes);
        self.settle_or_remember(settles, &settled, load, patience).await && self.trust.stands(epoch)
    }

    /// Sends SETTLE in one pipeline, and remembers the keys that L1 did not confirm.
    async fn settle_or_remember(
        &self,
        settles: Vec<Settle>,
        keys: &[&RecordKey],
        load: Load,
        patience: &mut L1Patience<'_>,
    ) -> bool {
        if settles.is_empty() {
            return true;
        }
        let step = |by| self.cache.settle(&settles, by);
        let answers = match settles.iter().all(|settle| settle.fill.is_some()) {
            true => patience.step(Operation::Settle, load, step).await,
            false => patience.waiting_step(Operation::Settle, load, step).await,
        };
        let Some(answers) = answers else {
            self.trust.remember(keys.iter().copied());
            return false;
        };
        for (step, is_fill) in [(Step::Fill, true), (Step::Settle, false)] {
            let of_step = settles.iter().zip(&answers).filter(|(settle, _)| settle.fill.is_some() == is_fill);
            self.outcomes.effects(step, of_step.map(|(_, answer)| answer));
        }
        let lost: Vec<_> =
            keys.iter().zip(&answers).filter(|(_, answer)| answer.is_err()).map(|(key, _)| *key).collect();
        if lost.is_empty() {
            return true;
        }
        self.trust.remember(lost);
        self.note_failed(&answers);
        false
    }
}
