//! Reads: from L1, then from L2 what L1 lacks. L1 gets what L2 returned before the caller does.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Keep, Refused, Tiered, Whole, board::Board, distinct::distinct, flight::Landed, meter::Operation, parts::FEW_KEYS,
    trust::L1Use,
};
use crate::{
    cache::time_to_move,
    in_flight::Holding,
    record::{RecordKey, Revision, State},
    store::{READ_BYTES, ReadConcern, StoreError},
    trace,
};

/// How many single reads a store runs at once for a linearizable batch.
const LINEARIZABLE_AT_ONCE: usize = 32;

/// Which tier may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// L1 or L2.
    Cached,
    /// Only L2.
    Strong,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The records, duplicates allowed.
    pub keys: Vec<RecordKey>,
    /// Which tier may answer.
    pub consistency: Consistency,
    /// The oldest revision that may answer, by key.
    pub min_revisions: HashMap<RecordKey, Revision>,
    /// Rows that were not read by then are errors.
    pub deadline: Instant,
}

/// The tier that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The cache.
    L1,
    /// The store.
    L2,
}

/// The state of a record, and the tier that it came from.
#[derive(Clone, Debug)]
pub struct Row {
    /// The record, its tombstone, or its absence.
    pub state: State,
    /// The tier that answered.
    pub tier: Tier,
}

impl Row {
    pub(super) fn bytes(&self) -> usize {
        self.state.record().map_or(0, |record| record.as_bytes().len())
    }
}

/// Why a row could not be read. This is never the same as absence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// L2 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record is older than `min_revisions` asks for.
    #[error("the record stands at revision {stored}, older than min_revisions asks for")]
    RevisionNotReached {
        /// The revision of the record; 0: there is none.
        stored: Revision,
    },
    /// The deadline of the call was reached first.
    #[error("the read did not end within its deadline")]
    Deadline,
    /// Too many reads of L2 run and wait. L2 was not asked.
    #[error("too many reads of L2 at once")]
    TooBusy,
    /// There is no memory for what the read would bring. L2 was not asked.
    #[error("too many bytes in flight")]
    NoRoom,
    /// A bug: the task of a flight ended without an answer.
    #[error("the task that reads L2 ended without an answer")]
    Internal,
}

impl RowError {
    /// Not a failure: the tier returned as much as it does at once; the row must be read again.
    pub(super) const LEFT_OUT: Self = Self::Store(StoreError::LeftOut);

    pub(super) fn is_left_out(&self) -> bool {
        *self == Self::LEFT_OUT
    }
}

/// The rows of a read, one for each key, in the order of the request.
#[derive(Debug, Default)]
pub struct ReadAnswer {
    /// `rows[i]` is the answer for `keys[i]`.
    pub rows: Vec<Result<Row, RowError>>,
    /// A tier failed or was skipped.
    pub degraded: bool,
    /// The records are not whole: they are what `Keep` kept of them.
    pub is_kept: bool,
    /// Why the whole read was refused; then the rows have no meaning.
    pub refused: Option<Refused>,
    /// Counts the bytes that the rows hold.
    pub held: Holding,
}

/// What a hit does not need is boxed, so that its future, which is moved several times, is small.
impl Tiered {
    /// Reads records. Equal keys get equal rows.
    pub async fn read(self: &Arc<Self>, request: &ReadRequest) -> ReadAnswer {
        self.read_keeping(request, &mut Whole).await
    }

    /// The same, but a read of more than is held at once returns what `keep` keeps (`is_kept`).
    pub async fn read_keeping(self: &Arc<Self>, request: &ReadRequest, keep: &mut dyn Keep) -> ReadAnswer {
        let (distinct, places) = distinct(&request.keys);
        let mins: Vec<Revision> = if request.min_revisions.is_empty() {
            Vec::new()
        } else {
            distinct.iter().map(|key| request.min_revisions.get(key).copied().unwrap_or_default()).collect()
        };
        let mut board = Board::new(distinct.len(), self.l1_patience(), keep.holding());
        let mut is_kept = distinct.len() > self.at_once(&distinct);
        if !is_kept {
            self.read_once(&distinct, &mins, request, &mut board).await;
            is_kept = board.left_out;
        }
        if is_kept {
            Box::pin(self.read_in_parts(&distinct, &mins, request, keep, &mut board)).await;
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            self.log_rows(&distinct, &board, request.consistency);
        }
        let rows: Vec<_> = board.rows.into_iter().map(|row| row.unwrap_or(Err(RowError::Internal))).collect();
        let rows = match places {
            None => rows,
            Some(places) => places.into_iter().map(|place| rows[place].clone()).collect(),
        };
        if board.degraded {
            self.degraded_reads.add(1);
        }
        ReadAnswer { rows, degraded: board.degraded, is_kept, refused: board.refused, held: board.held }
    }

    /// Reads distinct keys, not more than are held at once.
    pub(super) async fn read_once(
        self: &Arc<Self>,
        keys: &[RecordKey],
        mins: &[Revision],
        request: &ReadRequest,
        board: &mut Board<'_>,
    ) {
        match request.consistency {
            Consistency::Cached => self.read_cached(keys, mins, request.deadline, board).await,
            Consistency::Strong => {
                let all = (0..keys.len()).collect();
                board.has_rows_for(keys.len());
                Box::pin(self.read_l2(keys, all, ReadConcern::Linearizable, request.deadline, board)).await;
            }
        }
        if !mins.is_empty() {
            Box::pin(self.hold_to(keys, mins, request.deadline, board)).await;
        }
    }

    async fn read_cached(
        self: &Arc<Self>,
        keys: &[RecordKey],
        mins: &[Revision],
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        let at_least = |i: usize| mins.get(i).copied().unwrap_or_default();
        let (mut missed, mut outdated) = (Vec::new(), Vec::new());
        match self.l1_for_read() {
            L1Use::Trusted(epoch) => self.look(epoch, keys, board).await,
            L1Use::HitsOnly(epoch) => {
                board.degraded = true;
                self.look(epoch, keys, board).await;
            }
            L1Use::Untrusted(_) | L1Use::Paused(_) | L1Use::Bypassed => board.degraded = true,
        }
        board.has_rows_for(keys.len());
        for (i, row) in board.rows.iter_mut().enumerate() {
            match row {
                Some(Ok(hit)) if self.satisfies(&hit.state, at_least(i)) => {}
                Some(Err(error)) if error.is_left_out() => {}
                Some(_) => {
                    *row = None;
                    outdated.push(i);
                }
                None => missed.push(i),
            }
        }
        if board.refused.is_some() {
            return;
        }
        if missed.len() + outdated.len() > 0 {
            board.wait_with_hits(self.brings);
        }
        if !missed.is_empty() {
            Box::pin(self.board_flights(keys, &missed, deadline, board)).await;
        }
        if !outdated.is_empty() {
            Box::pin(self.read_l2(keys, outdated, ReadConcern::Majority, deadline, board)).await;
        }
    }

    /// Gets the missed rows through flights, until the caller's deadline at most.
    async fn board_flights(
        self: &Arc<Self>,
        keys: &[RecordKey],
        missed: &[usize],
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        // If L1 has failed this call, its flights bypass it too.
        let l1_time = if board.degraded { Duration::ZERO } else { board.patience.left() };
        let (seats, to_start) = self.flights.board(missed.iter().map(|i| &keys[*i]), l1_time);
        if let Some(flight) = to_start {
            let tiered = self.clone();
            self.tasks.spawn(trace::carried(async move { tiered.fly(flight).await }));
        }
        for (i, seat) in missed.iter().zip(seats) {
            // Most keys of a batch are in one flight, so in most cases only the first one waits.
            let landed = match seat.landed() {
                Some(landed) => landed,
                None => {
                    let landed = tokio::time::timeout_at(deadline, seat.landing()).await;
                    landed.unwrap_or(Landed { row: Err(RowError::Deadline), degraded: true, l1_time: Duration::ZERO })
                }
            };
            board.degraded |= landed.degraded;
            board.patience.at_most(landed.l1_time);
            match &landed.row {
                // The flight counts these bytes until all its callers do, so nothing waits here.
                Ok(row) if !board.take_over(row.bytes()) => return,
                Err(RowError::NoRoom) => board.refused = Some(Refused::NoRoom),
                Err(error) => board.left_out |= error.is_left_out(),
                Ok(_) => {}
            }
            board.rows[*i] = Some(landed.row);
        }
    }

    /// Reads from L2 and removes from L1 what is older: STRONG reads, and rows that are too old.
    async fn read_l2(
        &self,
        keys: &[RecordKey],
        places: Vec<usize>,
        concern: ReadConcern,
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        let wanted: Vec<RecordKey> = places.iter().map(|i| keys[*i].clone()).collect();
        // A linearizable batch is one read for each key, of which this many run at once.
        let reads = if concern == ReadConcern::Linearizable { wanted.len().min(LINEARIZABLE_AT_ONCE) } else { 1 };
        let Some(_place) = self.l2_reads.enter(reads, deadline).await else {
            board.degraded = true;
            places.into_iter().for_each(|i| board.rows[i] = Some(Err(RowError::TooBusy)));
            return;
        };
        let Some(states) = self.query(&wanted, concern, deadline, &mut board.held).await else {
            board.refused = Some(Refused::NoRoom);
            return;
        };
        match self.trust.l1() {
            L1Use::Trusted(epoch) | L1Use::Untrusted(epoch) | L1Use::Paused(epoch) => {
                let (tokens, patience) = (vec![None; wanted.len()], &mut board.patience);
                let is_settled = self.settle_read(epoch, &wanted, tokens, &states, patience).await;
                // What our L1 confirms does not keep readers of the named L1 from an older value.
                board.degraded |= !is_settled || !self.trust.is_everybodys();
            }
            // L1 may hold something older than this answer, and a later hit may return it.
            L1Use::HitsOnly(_) | L1Use::Bypassed => board.degraded = true,
        }
        for (i, state) in places.into_iter().zip(states) {
            board.left_out |= state == Err(StoreError::LeftOut);
            board.rows[i] = Some(state.map(|state| Row { state, tier: Tier::L2 }).map_err(RowError::from));
        }
    }

    /// Reads from L2, unless its breaker is open. The caller has a place among the reads of L2, and
    /// `held` counts the result. None: there is no memory for it.
    pub(super) async fn query(
        &self,
        keys: &[RecordKey],
        concern: ReadConcern,
        deadline: Instant,
        held: &mut Holding,
    ) -> Option<Vec<Result<State, StoreError>>> {
        if !self.l2_breaker.is_healthy() {
            return Some(vec![Err(StoreError::Unavailable("its circuit breaker is open".into())); keys.len()]);
        }
        let size = keys.first().map(|key| self.sizes.of(&key.view));
        let _turn = match size {
            Some(size) if size.get() == 0 && keys.len() > FEW_KEYS => {
                // The size of its records is known by now, so it need not hold up others.
                self.sizes.first_look(deadline).await.filter(|_| size.get() == 0)
            }
            _ => None,
        };
        // Reserves memory for what is expected, once for the reply of L2 and once for the records.
        let expected = size.map_or(0, |size| size.get().saturating_mul(keys.len()).min(READ_BYTES + size.get()));
        let mut reply = self.holding();
        if !reply.add_by(2 * expected, deadline.min(self.room_by())).await {
            return None;
        }
        let started = Instant::now();
        let states = self.store.read(keys, concern, deadline).await;
        let took = started.elapsed();
        let records = states.iter().flatten().filter_map(State::record);
        let (hits, bytes) = records.fold((0, 0), |(hits, all), record| (hits + 1, all + record.as_bytes().len()));
        let is_answered = states.iter().any(Result::is_ok);
        size.iter().filter(|_| is_answered).for_each(|size| size.saw(hits, bytes));
        self.l2_meter.read(hits, 0, states.iter().filter(|state| state.is_ok()).count() - hits);
        self.l2_meter.took(Operation::Read, took);
        if concern != ReadConcern::Linearizable {
            self.pace.l2_took(took.saturating_sub(time_to_move(bytes)));
        }
        // A batch is one reply, and its worst item shows how L2 is.
        let of_l2 = || states.iter().filter(|state| **state != Err(StoreError::LeftOut));
        if let Some(state) = of_l2().find(|state| state.is_err()).or(of_l2().next()) {
            self.note_l2(state, deadline.saturating_duration_since(started));
        }
        let fits = held.take_over(bytes);
        drop(reply);
        fits.then_some(states)
    }

    /// Reads rows that are older than `min_revisions` again, linearizably; then they are errors.
    async fn hold_to(&self, keys: &[RecordKey], mins: &[Revision], deadline: Instant, board: &mut Board<'_>) {
        let falls_short = |board: &Board<'_>, i: usize| match &board.rows[i] {
            Some(Ok(row)) if !self.satisfies(&row.state, mins[i]) => Some(row.state.revision()),
            _ => None,
        };
        let short: Vec<usize> = (0..mins.len()).filter(|i| falls_short(board, *i).is_some()).collect();
        if short.is_empty() {
            return;
        }
        self.read_l2(keys, short.clone(), ReadConcern::Linearizable, deadline, board).await;
        for i in short {
            if let Some(stored) = falls_short(board, i) {
                board.rows[i] = Some(Err(RowError::RevisionNotReached { stored }));
            }
        }
    }

    /// Whether a state satisfies `min_revisions`. A revision is a time. If that is so long ago that
    /// its tombstone may have been collected, an absent record satisfies it.
    fn satisfies(&self, state: &State, at_least: Revision) -> bool {
        let kept = Duration::as_millis(&self.settings.tombstone_ttl) as i64;
        at_least == Revision::default()
            || state.revision() >= at_least
            || (*state == State::Absent && at_least.0 / 1000 < self.clock.now().0.saturating_sub(kept))
    }

    /// Logs a line for each key, at the level debug.
    fn log_rows(&self, keys: &[RecordKey], board: &Board<'_>, consistency: Consistency) {
        let skipped = consistency == Consistency::Strong || !matches!(self.l1_for_read(), L1Use::Trusted(_));
        for (key, row) in keys.iter().zip(&board.rows) {
            let (feature_view, entity_id) = (key.view.as_str(), key.entity_id.as_str());
            match row {
                Some(Ok(Row { state, tier: Tier::L1 })) => {
                    let what = if matches!(state, State::Record(_)) { "L1" } else { "L1, negative entry" };
                    let revision = state.revision().0;
                    tracing::debug!(feature_view, entity_id, tier = "L1", revision, "cache HIT {entity_id} ({what})");
                }
                Some(Ok(Row { state, tier: Tier::L2 })) => {
                    let l1 = if skipped { "L1 skipped" } else { "MISS L1" };
                    let l2 = if matches!(state, State::Record(_)) { "HIT" } else { "MISS" };
                    let revision = state.revision().0;
                    tracing::debug!(feature_view, entity_id, tier = "L2", revision, "{l1}, {l2} L2 {entity_id}");
                }
                Some(Err(error)) => tracing::debug!(feature_view, entity_id, %error, "ERROR {entity_id}"),
                None => {}
            }
        }
    }
}
