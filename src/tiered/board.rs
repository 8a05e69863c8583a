//! The rows of a read, or of a flight, while they come in, and the memory that they hold.

use tokio::time::Instant;

use super::{
    Refused,
    patience::L1Patience,
    read::{Row, RowError},
};
use crate::{in_flight::Holding, record::State, store::READ_BYTES};

pub(super) struct Board<'a> {
    /// Empty before L1 was asked. Afterwards one for each key; None: not read yet.
    pub(super) rows: Vec<Option<Result<Row, RowError>>>,
    pub(super) degraded: bool,
    pub(super) patience: L1Patience<'a>,
    /// Counts the bytes of the rows.
    pub(super) held: Holding,
    /// Some rows were left out, because a tier returns only so many bytes at once.
    pub(super) left_out: bool,
    pub(super) refused: Option<Refused>,
}

impl<'a> Board<'a> {
    pub(super) fn new(rows: usize, patience: L1Patience<'a>, held: Holding) -> Self {
        Self { rows: Vec::with_capacity(rows), degraded: false, patience, held, left_out: false, refused: None }
    }

    /// Adds the empty rows, if L1 was not asked or failed.
    pub(super) fn has_rows_for(&mut self, keys: usize) {
        if self.rows.len() != keys {
            self.rows.resize(keys, None);
        }
    }

    /// Counts bytes of the rows. False: there is no memory for them, and they must be dropped.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        let fits = self.held.add(bytes);
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// The same, but waits for memory, until `until` at most.
    pub(super) async fn hold_by(&mut self, bytes: usize, until: Instant) -> bool {
        let fits = self.held.add_by(bytes, until).await;
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// Counts bytes that something else still counts too.
    pub(super) fn take_over(&mut self, bytes: usize) -> bool {
        let fits = self.held.take_over(bytes);
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// From now on counts no more than this.
    pub(super) fn hold_only(&mut self, bytes: usize) {
        if self.held.bytes() > bytes {
            let _fewer_always_fit = self.held.set(bytes);
        }
    }

    /// Prepares hits that wait for other rows. What came from another process is copied out of its
    /// large buffer. Of records in the cache of this process only `READ_BYTES` are kept, because
    /// that cache may remove them meanwhile.
    pub(super) fn wait_with_hits(&mut self, were_brought: bool) {
        let mut kept = 0;
        for slot in &mut self.rows {
            let Some(Ok(Row { state: State::Record(record), .. })) = slot else { continue };
            if were_brought {
                *record = record.detached();
            } else if kept >= READ_BYTES {
                *slot = Some(Err(RowError::LEFT_OUT));
                self.left_out = true;
            } else {
                kept += record.as_bytes().len();
            }
        }
    }
}
