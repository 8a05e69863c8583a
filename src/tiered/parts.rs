//! Reads of more than is held at once. They run part by part, and the size of a part follows from
//! how large records were lately. Of each part only what the answer needs is kept, before the next
//! part is read. So a few features of a thousand large records take as much memory as these
//! features and one part.
//!
//! In every read the bytes count for its connection as they come in (`Board::hold`).

use std::{collections::VecDeque, sync::Arc};

use tokio::time::Instant;

use super::{
    Tiered,
    board::Board,
    read::{ReadRequest, Row, RowError},
};
use crate::{
    in_flight::Holding,
    record::{
        RecordKey, Revision, State,
        encoding::{Corrupt, StoredRecord},
    },
    store::{READ_BYTES, StoreError},
};

/// How many keys are read at once if no record of their feature view was seen yet.
const UNSEEN_KEYS: usize = 512;
/// This many keys are always read at once.
pub(super) const FEW_KEYS: usize = 2;

/// What a read keeps of records, and how much.
pub trait Keep: Send {
    /// What the answer needs of a record, copied into a buffer of its own.
    fn keep(&mut self, record: &StoredRecord) -> Result<StoredRecord, Corrupt>;

    /// The most bytes of features that the answer may hold.
    fn most(&self) -> usize;

    /// The count for the bytes that the read holds.
    fn holding(&self) -> Holding;
}

/// Keeps whole records, without a bound.
#[derive(Clone, Copy, Debug)]
pub struct Whole;

impl Keep for Whole {
    fn keep(&mut self, record: &StoredRecord) -> Result<StoredRecord, Corrupt> {
        Ok(record.detached())
    }

    fn most(&self) -> usize {
        usize::MAX
    }

    fn holding(&self) -> Holding {
        Holding::default()
    }
}

/// Why a whole read was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no memory for it now.
    NoRoom,
    /// The answer would have this many bytes of features, which is too many.
    TooLarge(usize),
}

impl Tiered {
    /// How many of these keys are read at once.
    pub(super) fn at_once(&self, keys: &[RecordKey]) -> usize {
        let Some(first) = keys.first().filter(|_| keys.len() > FEW_KEYS) else { return FEW_KEYS };
        let size = self.sizes.of(&first.view);
        match size.get() {
            // A cache in this process has nothing to send.
            0 if self.brings => UNSEEN_KEYS,
            _ => size.records_in(READ_BYTES),
        }
    }

    /// Reads part by part what a first read left out, or everything if there was none.
    pub(super) async fn read_in_parts(
        self: &Arc<Self>,
        keys: &[RecordKey],
        mins: &[Revision],
        request: &ReadRequest,
        keep: &mut dyn Keep,
        board: &mut Board<'_>,
    ) {
        let mut kept = Kept { rows: vec![None; keys.len()], keep, bytes: 0, features: 0 };
        board.has_rows_for(keys.len());
        let first_try = std::mem::take(&mut board.rows);
        let mut to_do = VecDeque::from(kept.take(0..keys.len(), first_try));
        let mut most = usize::MAX;
        loop {
            kept.hold(board);
            if board.refused.is_some() || to_do.is_empty() {
                break;
            }
            if Instant::now() >= request.deadline {
                to_do.into_iter().for_each(|place| kept.rows[place] = Some(Err(RowError::Deadline)));
                break;
            }
            let count = self.at_once(keys).min(most).min(to_do.len());
            let places: Vec<usize> = to_do.drain(..count).collect();
            let part: Vec<RecordKey> = places.iter().map(|place| keys[*place].clone()).collect();
            let part_mins: Vec<Revision> = places.iter().filter_map(|place| mins.get(*place).copied()).collect();
            board.left_out = false;
            Box::pin(self.read_once(&part, &part_mins, request, board)).await;
            let left_out = kept.take(places.into_iter(), std::mem::take(&mut board.rows));
            // A flight may have read them together with others, and have left out all of these.
            most = if left_out.len() == count { count.div_ceil(2) } else { usize::MAX };
            to_do.extend(left_out);
        }
        board.rows = kept.rows;
    }
}

struct Kept<'a> {
    rows: Vec<Option<Result<Row, RowError>>>,
    keep: &'a mut dyn Keep,
    /// Bytes of the kept records, and of the features in them.
    bytes: usize,
    features: usize,
}

impl Kept<'_> {
    /// Keeps what the answer needs of these rows. Returns the places of those to read again.
    fn take(&mut self, places: impl Iterator<Item = usize>, rows: Vec<Option<Result<Row, RowError>>>) -> Vec<usize> {
        let mut left_out = Vec::new();
        for (place, row) in places.zip(rows) {
            let Some(row) = row.filter(|row| !row.as_ref().is_err_and(RowError::is_left_out)) else {
                left_out.push(place);
                continue;
            };
            self.rows[place] = Some(row.and_then(|row| self.cut_down(row)));
        }
        left_out
    }

    fn cut_down(&mut self, row: Row) -> Result<Row, RowError> {
        let (record, tier) = match row {
            Row { state: State::Record(record), tier } => (record, tier),
            absent => return Ok(absent),
        };
        let unreadable = |error: Corrupt| StoreError::Corrupt(error.to_string().into());
        let record = self.keep.keep(&record).map_err(unreadable)?;
        self.features += record.features_len();
        self.bytes += record.as_bytes().len();
        Ok(Row { state: State::Record(record), tier })
    }

    /// Counts what was kept instead of the part, and refuses the read if that is too much.
    fn hold(&self, board: &mut Board<'_>) {
        if self.features > self.keep.most() {
            board.refused = Some(Refused::TooLarge(self.features));
        } else if !board.held.set(self.bytes) {
            board.refused = Some(Refused::NoRoom);
        }
    }
}
