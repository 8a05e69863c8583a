//! Reads: L1 first, L2 for what L1 lacks, and L1 told what L2 answered before the caller is.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Tiered, distinct::distinct, flight::Landed, meter::Operation, patience::L1Patience, trust::L1Use};
use crate::{
    cache::{CacheKey, Epoch},
    record::{RecordKey, Revision, State},
    store::{ReadConcern, StoreError},
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
    /// A bug.
    #[error("the read was lost")]
    Internal,
}

/// One row a key, in the order of the request.
#[derive(Clone, Debug)]
pub struct ReadAnswer {
    /// `rows[i]` answers `keys[i]`.
    pub rows: Vec<Result<Row, RowError>>,
    /// A tier failed or was skipped on the way.
    pub degraded: bool,
}

/// Rows of distinct keys as they come in.
pub(super) struct Board<'a> {
    pub(super) rows: Vec<Option<Result<Row, RowError>>>,
    pub(super) degraded: bool,
    /// Of the call that they are for.
    pub(super) patience: L1Patience<'a>,
}

impl Board<'_> {
    /// Lets go of the buffers that L1's answers are part of, as these rows wait for others.
    fn detach(&mut self) {
        for row in self.rows.iter_mut().flatten().flatten() {
            if let State::Record(record) = &mut row.state {
                *record = record.detached();
            }
        }
    }
}

/// The ways that hits do not go are boxed, so that the future of a hit, which is moved several times, stays small.
impl Tiered {
    /// Reads records. Equal keys get equal rows.
    pub async fn read(self: &Arc<Self>, request: &ReadRequest) -> ReadAnswer {
        let (distinct, places) = distinct(&request.keys);
        let mins: Vec<Revision> = if request.min_revisions.is_empty() {
            Vec::new()
        } else {
            distinct.iter().map(|key| request.min_revisions.get(key).copied().unwrap_or_default()).collect()
        };
        let mut board = Board { rows: vec![None; distinct.len()], degraded: false, patience: self.l1_patience() };
        match request.consistency {
            Consistency::Cached => self.read_cached(&distinct, &mins, request.deadline, &mut board).await,
            Consistency::Strong => {
                let all = (0..distinct.len()).collect();
                Box::pin(self.read_l2(&distinct, all, ReadConcern::Linearizable, request.deadline, &mut board)).await;
            }
        }
        if !mins.is_empty() {
            Box::pin(self.hold_to(&distinct, &mins, request.deadline, &mut board)).await;
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
        ReadAnswer { rows, degraded: board.degraded }
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
        for (i, row) in board.rows.iter_mut().enumerate() {
            match row {
                Some(Ok(hit)) if self.satisfies(&hit.state, at_least(i)) => {}
                Some(_) => {
                    *row = None;
                    outdated.push(i);
                }
                None => missed.push(i),
            }
        }
        if missed.len() + outdated.len() > 0 {
            board.detach();
        }
        if !missed.is_empty() {
            Box::pin(self.board_flights(keys, &missed, deadline, board)).await;
        }
        if !outdated.is_empty() {
            Box::pin(self.read_l2(keys, outdated, ReadConcern::Majority, deadline, board)).await;
        }
    }

    /// Looks into L1: one MGET. Rows that it lacks stay empty.
    pub(super) async fn look(&self, epoch: Epoch, keys: &[RecordKey], board: &mut Board<'_>) {
        let l1_keys = CacheKey::all(epoch, keys);
        let look = |by| self.cache.get(&l1_keys, by);
        let Some(found) = board.patience.step(Operation::Get, keys.len(), look).await else {
            board.degraded = true;
            return;
        };
        let (mut hits, mut negative_hits, mut failure) = (0, 0, None);
        for (row, found) in board.rows.iter_mut().zip(found) {
            match found {
                Ok(Some(value)) => {
                    hits += 1;
                    let state = State::from(value);
                    negative_hits += usize::from(!matches!(state, State::Record(_)));
                    *row = Some(Ok(Row { state, tier: Tier::L1 }));
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        let before = self.l1_meter.read(hits, negative_hits, keys.len() - hits);
        let hit = || keys.iter().zip(&board.rows).find(|(_, row)| row.is_some()).map(|(key, _)| key);
        self.audit.hits(before, hits as u64, hit);
        match failure {
            None => self.trust.breaker.succeeded(),
            Some(error) => {
                board.degraded = true;
                self.note_l1(&error);
            }
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
        let states = self.query(&wanted, concern, deadline).await;
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
            board.rows[i] = Some(state.map(|state| Row { state, tier: Tier::L2 }).map_err(RowError::from));
        }
    }

    /// Asks L2, unless its breaker says that there is no use. The caller has a place among those who read it.
    pub(super) async fn query(
        &self,
        keys: &[RecordKey],
        concern: ReadConcern,
        deadline: Instant,
    ) -> Vec<Result<State, StoreError>> {
        if !self.l2_breaker.is_healthy() {
            return vec![Err(StoreError::Unavailable("its breaker is open".into())); keys.len()];
        }
        let started = Instant::now();
        let states = self.store.read(keys, concern, deadline).await;
        let hits = states.iter().filter(|state| matches!(state, Ok(State::Record(_)))).count();
        self.l2_meter.read(hits, 0, states.iter().filter(|state| state.is_ok()).count() - hits);
        self.l2_meter.took(Operation::Read, started.elapsed());
        if concern != ReadConcern::Linearizable {
            self.pace.l2_took(started.elapsed());
        }
        // One batch is one answer: its worst item tells how L2 is.
        if let Some(state) = states.iter().find(|state| state.is_err()).or(states.first()) {
            self.note_l2(state, deadline.saturating_duration_since(started));
        }
        states
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
        state.revision() >= at_least
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
