//! The latest writes of a document by their request ids, with their outcomes.

use bson::RawDocument;

use super::statement::MAX_DOCUMENT_BYTES;
use crate::{
    record::Revision,
    store::{Operation, Outcome, RequestId, Write, repeated},
};

/// The outcome of the write, if the document remembers it.
pub(super) fn outcome_of(document: &RawDocument, write: &Write) -> Option<Outcome> {
    let remembered = request(document, &write.request_id)?;
    Some(repeated(write, operation(remembered), outcome(remembered)?))
}

/// What a remembered write was to do, if known.
pub(super) fn operation(remembered: &RawDocument) -> Option<Operation> {
    remembered.get_i64("of").ok().and_then(|sum| u32::try_from(sum).ok()).map(Operation)
}

/// What the document remembers of the write with this id.
pub(super) fn request<'a>(document: &'a RawDocument, request_id: &RequestId) -> Option<&'a RawDocument> {
    let requests = document.get_array("requests").ok()?;
    let mut entries = requests.into_iter().filter_map(|entry| entry.ok()?.as_document());
    entries.find(|entry| entry.get_str("id").is_ok_and(|id| id == &*request_id.0))
}

/// The name of an outcome in documents.
pub(super) fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Written => "written",
        Outcome::SkippedStale => "skipped_stale",
        Outcome::Deleted => "deleted",
        Outcome::NotFound => "not_found",
        Outcome::RevisionMismatch { .. } => "revision_mismatch",
        Outcome::TooManyFeatures { .. } => "too_many_features",
        Outcome::RecordTooLarge { .. } => "record_too_large",
        Outcome::DocumentTooLarge { .. } => "document_too_large",
        // Never remembered: the outcome of the first request is.
        Outcome::RequestIdReused => "request_id_reused",
    }
}

/// The fields `number` and `document` of an outcome.
pub(super) fn numbers_of(outcome: &Outcome) -> (Option<i64>, Option<i64>) {
    let number = |number: usize| Some(i64::try_from(number).unwrap_or(i64::MAX));
    match *outcome {
        Outcome::Written | Outcome::SkippedStale | Outcome::Deleted | Outcome::NotFound | Outcome::RequestIdReused => {
            (None, None)
        }
        Outcome::RevisionMismatch { stored } => (Some(stored.0), None),
        Outcome::TooManyFeatures { count } => (number(count), None),
        Outcome::RecordTooLarge { bytes } => (number(bytes), None),
        Outcome::DocumentTooLarge { bytes, document, .. } => (number(bytes), number(document)),
    }
}

/// The outcome of a remembered write.
pub(super) fn outcome(remembered: &RawDocument) -> Option<Outcome> {
    let number = || remembered.get_i64("number").ok();
    Some(match remembered.get_str("outcome").ok()? {
        "written" => Outcome::Written,
        "skipped_stale" => Outcome::SkippedStale,
        "deleted" => Outcome::Deleted,
        "not_found" => Outcome::NotFound,
        "revision_mismatch" => Outcome::RevisionMismatch { stored: Revision(number()?) },
        "too_many_features" => Outcome::TooManyFeatures { count: usize::try_from(number()?).ok()? },
        "record_too_large" => Outcome::RecordTooLarge { bytes: usize::try_from(number()?).ok()? },
        "document_too_large" => Outcome::DocumentTooLarge {
            bytes: usize::try_from(number()?).ok()?,
            document: usize::try_from(remembered.get_i64("document").ok()?).ok()?,
            maximum: MAX_DOCUMENT_BYTES,
        },
        _ => return None,
    })
}
