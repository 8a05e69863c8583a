//! Builds the answer of a read. The features go into a row as the bytes that are stored, without
//! being decoded.

use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use super::{
    convert::{Read, Shape},
    failure::Failure,
    matrix,
};
use crate::{
    in_flight::Holding,
    proto::{EncodedRow, GetFeaturesResponse, RowStatus, SharedText, Source},
    record::{
        Millis, State,
        encoding::{Corrupt, Projection, Scratch, StoredRecord},
    },
    store::StoreError,
    tiered::{ReadAnswer, Refused, Row, RowError, Tier},
};

/// A tier may give up this long before a deadline that it cannot meet.
const MOMENT: Duration = Duration::from_millis(2);

/// Fails an answer that lacks rows because the time was over. If the deadline is the client's, one
/// such row fails the call with DEADLINE_EXCEEDED: a store that was not fast enough for it is no
/// outage. If the deadline is ours, the other rows are returned.
pub(super) fn check_time(answer: &ReadAnswer, deadline: Instant, is_clients: bool) -> Result<(), Failure> {
    let passed = |early: Duration| Instant::now() + early >= deadline;
    let late = |row: &Result<Row, RowError>| match row {
        Err(RowError::Deadline) => passed(Duration::ZERO),
        Err(RowError::Store(error)) => is_clients && error.is_outage() && passed(MOMENT),
        Err(RowError::RevisionNotReached { .. } | RowError::TooBusy | RowError::NoRoom | RowError::Internal)
        | Ok(_) => false,
    };
    let refused = if is_clients { answer.rows.iter().any(late) } else { answer.rows.iter().all(late) };
    if refused { Err(Failure::deadline()) } else { Ok(()) }
}

/// Builds the response, with its size and what counts the records it is made of. Fails if no row
/// could be answered because of L2, and if the response would be larger than the limit; then it is
/// not built to its end.
// Inlined into its large caller, this would not have its own callees inlined: 100 instructions a
// row.
#[inline(never)]
pub(super) fn response(
    read: Read,
    answer: ReadAnswer,
    now: Millis,
    most: usize,
) -> Result<(GetFeaturesResponse, usize, Holding), Failure> {
    let ReadAnswer { rows, degraded, is_kept, refused, held } = answer;
    match refused {
        None => {}
        Some(Refused::NoRoom) => return Err(Failure::too_many_bytes()),
        Some(Refused::TooLarge(bytes)) => return Err(Failure::response_too_large(bytes, most)),
    }
    if let Some(error) = all_failed(&rows) {
        return Err(error.into());
    }
    let degraded = degraded || rows.iter().any(|row| matches!(row, Err(RowError::Store(_))));
    // Not `of`: the keys are moved out of the request below.
    let judge = Judge { now, expected: &read.expected_model_version, max_age: read.max_age };
    let mut response = GetFeaturesResponse { degraded, ..GetFeaturesResponse::default() };
    let bytes = match &read.shape {
        Shape::Rows(projection) => {
            let (mut scratch, mut bytes) = (Scratch::for_rows(rows.len()), response.encoded_len());
            response.rows.reserve_exact(rows.len());
            for (key, row) in read.request.keys.into_iter().zip(rows) {
                let id = key.entity_id.into_text();
                let row = encoded_row(id, row, &judge, projection.as_ref(), read.omit_metadata, &mut scratch);
                bytes += row.encoded_len_as();
                // Whole rows take no memory of their own, so all of them are measured for the error
                // message.
                if bytes > most && projection.is_some() {
                    break;
                }
                response.rows.push(row);
            }
            bytes
        }
        Shape::Matrix { names, columns, single } => {
            let least = matrix::least_bytes(rows.len(), columns, *single);
            if least > most {
                return Err(Failure::response_too_large(least, most));
            }
            let matrix = matrix::build(names, columns, *single, rows, is_kept, &judge);
            response.matrix = Some(matrix);
            response.encoded_len()
        }
    };
    if bytes > most { Err(Failure::response_too_large(bytes, most)) } else { Ok((response, bytes, held)) }
}

/// The error of L2, if no row at all could be read, so that the retry policies of clients apply. A
/// record that cannot be read, however often it is retried, stays the error of its row.
fn all_failed(rows: &[Result<Row, RowError>]) -> Option<RowError> {
    let lacking = |row: &Result<Row, RowError>| match row {
        Err(RowError::Store(StoreError::Corrupt(_)) | RowError::RevisionNotReached { .. }) | Ok(_) => false,
        Err(_) => true,
    };
    rows.iter().all(lacking).then(|| rows.first().and_then(|row| row.as_ref().err()).cloned()).flatten()
}

pub(super) struct Judge<'a> {
    now: Millis,
    expected: &'a str,
    max_age: Option<i64>,
}

impl<'a> Judge<'a> {
    pub(super) fn of(read: &'a Read, now: Millis) -> Self {
        Self { now, expected: &read.expected_model_version, max_age: read.max_age }
    }

    /// The status. If several apply, the first in this order.
    #[inline]
    pub(super) fn status(&self, record: &StoredRecord) -> Result<RowStatus, Corrupt> {
        Ok(if record.is_expired(self.now) {
            RowStatus::Expired
        } else if !self.expected.is_empty() && record.model_version()? != self.expected {
            RowStatus::VersionMismatch
        } else if self.max_age.is_some_and(|max_age| record.event_time().0 < self.now.0.saturating_sub(max_age)) {
            RowStatus::TooOld
        } else {
            RowStatus::Found
        })
    }
}

fn encoded_row(
    id: SharedText,
    row: Result<Row, RowError>,
    judge: &Judge<'_>,
    projection: Option<&Projection>,
    omit_metadata: bool,
    scratch: &mut Scratch,
) -> EncodedRow {
    let Row { state, tier } = match row {
        Ok(row) => row,
        Err(error) => return error_row(id, error.into()),
    };
    let revision = state.revision().0;
    let from_tier = |id, status| {
        let row = EncodedRow::new(id, status).at_revision(revision);
        if omit_metadata {
            return row;
        }
        row.from_source(match tier {
            Tier::L1 => Source::L1,
            Tier::L2 => Source::L2,
        })
    };
    let State::Record(record) = state else { return from_tier(id, RowStatus::NotFound) };
    let judged = judge.status(&record).and_then(|status| {
        let wanted = projection.filter(|_| status == RowStatus::Found);
        Ok((status, wanted.map(|wanted| wanted.apply(&record, scratch)).transpose()?))
    });
    match judged {
        Ok((status, Some((features, missing)))) => {
            let row = from_tier(id, status).with_projected(features, missing);
            if omit_metadata { row } else { row.with_stored(record.into_metadata()) }
        }
        Ok((status, None)) => match (status == RowStatus::Found, omit_metadata) {
            (true, false) => from_tier(id, status).with_stored(record.into_segments()),
            (true, true) => from_tier(id, status).with_stored(record.into_features()),
            (false, false) => from_tier(id, status).with_stored(record.into_metadata()),
            (false, true) => from_tier(id, status),
        },
        Err(cause) => {
            let failure = Failure::unreadable(Some(id.as_str()), &cause);
            error_row(id, failure)
        }
    }
}

fn error_row(id: SharedText, failure: Failure) -> EncodedRow {
    EncodedRow::new(id, RowStatus::Error).with_error(failure.into())
}
