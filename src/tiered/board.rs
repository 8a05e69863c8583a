//! The rows of a read, or of a flight, as they come in; and what they hold meanwhile.

use tokio::time::Instant;

use super::{
    Refused,
    patience::L1Patience,
    read::{Row, RowError},
};
use crate::{in_flight::Holding, record::State, store::READ_BYTES};

/// Rows of distinct keys as they come in.
pub(super) struct Board<'a> {
    /// None before L1 was asked; from then on one a key.
    pub(super) rows: Vec<Option<Result<Row, RowError>>>,
    pub(super) degraded: bool,
    /// Of the call that they are for.
    pub(super) patience: L1Patience<'a>,
    /// What was brought for them.
    pub(super) held: Holding,
    /// Some of them were left out.
    pub(super) left_out: bool,
    pub(super) refused: Option<Refused>,
}

impl<'a> Board<'a> {
    pub(super) fn new(rows: usize, patience: L1Patience<'a>, held: Holding) -> Self {
        Self { rows: Vec::with_capacity(rows), degraded: false, patience, held, left_out: false, refused: None }
    }

    /// Gives each of so many keys a row that is still to come, where L1 was not asked or did not answer.
    pub(super) fn has_rows_for(&mut self, keys: usize) {
        if self.rows.len() != keys {
            self.rows.resize(keys, None);
        }
    }

    /// Counts what was brought. False: there is no room for it, so it must be let go.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        let fits = self.held.add(bytes);
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// The same, but waits until then at most for what others hold.
    pub(super) async fn hold_by(&mut self, bytes: usize, until: Instant) -> bool {
        let fits = self.held.add_by(bytes, until).await;
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// Counts what somebody else still counts too.
    pub(super) fn take_over(&mut self, bytes: usize) -> bool {
        let fits = self.held.take_over(bytes);
        if !fits {
            self.refused = Some(Refused::NoRoom);
        }
        fits
    }

    /// Counts no more than these from now on.
    pub(super) fn hold_only(&mut self, bytes: usize) {
        if self.held.bytes() > bytes {
            let _fewer_always_fit = self.held.set(bytes);
        }
    }

    /// Prepares hits for waiting for others. What was brought lets go of the buffers that it is part of. Of what L1 in this
    /// process holds so much is kept as one read brings: L1 may let go of it meanwhile.
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
