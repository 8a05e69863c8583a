//! Reads: L1 first, L2 for what L1 lacks, and L1 told what L2 answered before the caller is.

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

/// How many single reads a store makes at once for a linearizable batch.
const LINEARIZABLE_AT_ONCE: usize = 32;

/// Which tier may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// L1 may.
    Cached,
    /// L2 does.
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
    /// When the caller stops waiting.
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

/// What is known of a key, and from where.
#[derive(Clone, Debug)]
pub struct Row {
    /// Absence is a state too.
    pub state: State,
    /// The tier that answered.
    pub tier: Tier,
}

impl Row {
    /// Of its record.
    pub(super) fn bytes(&self) -> usize {
        self.state.record().map_or(0, |record| record.as_bytes().len())
    }
}

/// Why a row could not be answered. Never the same as absence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// L2 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What stands is older than `min_revisions` asks for.
    #[error("the record stands at revision {stored}, older than asked for")]
    RevisionNotReached {
        /// Its revision; 0: there is none.
        stored: Revision,
    },
    /// Not within the deadline.
    #[error("not read in time")]
    Deadline,
    /// More reads of L2 at once than are made. L2 was not asked.
    #[error("too many reads of L2 at once")]
    TooBusy,
    /// There is no room for what the read would bring. L2 was not asked.
    #[error("too many bytes in flight")]
    NoRoom,
    /// A bug.
    #[error("the read was lost")]
    Internal,
}

impl RowError {
    /// Nothing is wrong: the tier brought as much as it does at once, and this row is to be asked for again.
    pub(super) const LEFT_OUT: Self = Self::Store(StoreError::LeftOut);

    pub(super) fn is_left_out(&self) -> bool {
        *self == Self::LEFT_OUT
    }
}

/// One row a key, in the order of the request.
#[derive(Debug, Default)]
pub struct ReadAnswer {
    /// `rows[i]` answers `keys[i]`.
    pub rows: Vec<Result<Row, RowError>>,
    /// A tier failed or was skipped on the way.
    pub degraded: bool,
    /// The records are what `Keep` made of them.
    pub is_kept: bool,
    /// The read as a whole is not answered, and the rows say nothing.
    pub refused: Option<Refused>,
    /// Counts what the rows hold.
    pub held: Holding,
}

/// The ways that hits do not go are boxed, so that the future of a hit, which is moved several times, stays small.
impl Tiered {
    /// Reads records. Equal keys get equal rows.
    pub async fn read(self: &Arc<Self>, request: &ReadRequest) -> ReadAnswer {
        self.read_keeping(request, &mut Whole).await
    }

    /// The same, but where it brings more than is held at once only what `keep` keeps is answered (`is_kept`).
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
            self.tell(&distinct, &board, request.consistency);
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

    /// Reads distinct keys, as many of them as are brought at once.
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

    /// Gets the missed rows through flights, at most until the caller's deadline.
    async fn board_flights(
        self: &Arc<Self>,
        keys: &[RecordKey],
        missed: &[usize],
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        // What failed this call is left alone by its flights.
        let l1_time = if board.degraded { Duration::ZERO } else { board.patience.left() };
        let (seats, to_start) = self.flights.board(missed.iter().map(|i| &keys[*i]), l1_time);
        if let Some(flight) = to_start {
            let tiered = self.clone();
            self.tasks.spawn(trace::carried(async move { tiered.fly(flight).await }));
        }
        for (i, seat) in missed.iter().zip(seats) {
            // Most of a batch's seats are in one flight, so only the first of them is waited for.
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
                // The flight counts it until all of its passengers do, so nobody waits for that.
                Ok(row) if !board.take_over(row.bytes()) => return,
                Err(RowError::NoRoom) => board.refused = Some(Refused::NoRoom),
                Err(error) => board.left_out |= error.is_left_out(),
                Ok(_) => {}
            }
            board.rows[*i] = Some(landed.row);
        }
    }

    /// Reads straight from L2 and removes from L1 what is older: STRONG reads, and rows that must be newer.
    async fn read_l2(
        &self,
        keys: &[RecordKey],
        places: Vec<usize>,
        concern: ReadConcern,
        deadline: Instant,
        board: &mut Board<'_>,
    ) {
        let wanted: Vec<RecordKey> = places.iter().map(|i| keys[*i].clone()).collect();
        // A linearizable batch is a read a key, and so many are made at once.
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
                // What an L1 of one's own was told keeps no reader of the named one from reading what is older.
                board.degraded |= !is_settled || !self.trust.is_everybodys();
            }
            // What L1 holds may be older than this answer, and a later hit may show it.
            L1Use::HitsOnly(_) | L1Use::Bypassed => board.degraded = true,
        }
        for (i, state) in places.into_iter().zip(states) {
            board.left_out |= state == Err(StoreError::LeftOut);
            board.rows[i] = Some(state.map(|state| Row { state, tier: Tier::L2 }).map_err(RowError::from));
        }
    }

    /// Asks L2, unless its breaker says that there is no use. The caller has a place among those who read it, and holds what it
    /// answers. None: there is no room for that.
    pub(super) async fn query(
        &self,
        keys: &[RecordKey],
        concern: ReadConcern,
        deadline: Instant,
        held: &mut Holding,
    ) -> Option<Vec<Result<State, StoreError>>> {
        if !self.l2_breaker.is_healthy() {
            return Some(vec![Err(StoreError::Unavailable("its breaker is open".into())); keys.len()]);
        }
        let size = keys.first().map(|key| self.sizes.of(&key.view));
        let _turn = match size {
            Some(size) if size.get() == 0 && keys.len() > FEW_KEYS => {
                // Known by now, it holds up nobody else.
                self.sizes.first_look(deadline).await.filter(|_| size.get() == 0)
            }
            _ => None,
        };
        // What it is expected to bring has its room before it comes, once as L2's reply and once as records.
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
        // One batch is one answer: its worst item tells how L2 is.
        let of_l2 = || states.iter().filter(|state| **state != Err(StoreError::LeftOut));
        if let Some(state) = of_l2().find(|state| state.is_err()).or(of_l2().next()) {
            self.note_l2(state, deadline.saturating_duration_since(started));
        }
        let fits = held.take_over(bytes);
        drop(reply);
        fits.then_some(states)
    }

    /// Holds rows to `min_revisions`: what is older is read once more at linearizable, then it is an error.
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

    /// Whether a state may answer a read that asks for this revision. A revision is a time, so one that is older than
    /// tombstones are kept may have been collected: then absence answers it.
    fn satisfies(&self, state: &State, at_least: Revision) -> bool {
        let kept = Duration::as_millis(&self.settings.tombstone_ttl) as i64;
        at_least == Revision::default()
            || state.revision() >= at_least
            || (*state == State::Absent && at_least.0 / 1000 < self.clock.now().0.saturating_sub(kept))
    }

    /// One line a lookup, for a person at the debug level.
    fn tell(&self, keys: &[RecordKey], board: &Board<'_>, consistency: Consistency) {
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
