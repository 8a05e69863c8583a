//! UpsertFeatures and DeleteFeatures: requests and responses, and the result of one item of any
//! batch.

use std::collections::HashMap;

use super::{BulkDefaults, parse_keys, parse_record, parse_request_id, parse_view};
use crate::{
    api::{
        Limits,
        failure::{Failure, Violation},
    },
    proto::{
        DeleteFeaturesRequest, DeleteFeaturesResponse, UpsertFeaturesRequest, UpsertFeaturesResponse, WriteOutcome,
        WriteResult,
    },
    record::{RecordKey, State, encoding::timestamp},
    store::{Change, Outcome, Receipt, StoreError, Write},
    tiered::{BulkAnswer, WriteAnswer, WriteError},
};

pub(in crate::api) fn upsert(request: UpsertFeaturesRequest, limits: &Limits) -> Result<Write, Failure> {
    let UpsertFeaturesRequest { feature_view, record, request_id } = request;
    let mut wrong = Vec::new();
    let view = parse_view(&feature_view, &mut wrong);
    let request_id = parse_request_id(&request_id, &mut wrong);
    let Some(record) = record else {
        wrong.push(Violation::new("record", "MISSING_FIELD", "there is no record to write"));
        return Err(Failure::invalid(wrong));
    };
    match (parse_record(record, &BulkDefaults::default(), limits), view) {
        (Ok(parsed), Some(view)) if wrong.is_empty() => Ok(Write {
            key: RecordKey { view, entity_id: parsed.entity_id },
            request_id,
            if_revision: parsed.if_revision,
            change: Change::Upsert(parsed.record),
        }),
        (Ok(_), _) => Err(Failure::invalid(wrong)),
        (Err(failure), _) if failure.violations.is_empty() && wrong.is_empty() => Err(failure),
        (Err(failure), _) => {
            wrong.extend(failure.violations.into_iter().map(|violation| violation.under("record")));
            Err(Failure::invalid_and_more(wrong, failure.more_violations))
        }
    }
}

pub(in crate::api) fn upsert_response(answer: WriteAnswer, limits: &Limits) -> Result<UpsertFeaturesResponse, Failure> {
    let WriteAnswer { receipt, state, cached } = answer;
    if let Some(failure) = Failure::of_outcome(&receipt.outcome, limits) {
        return Err(failure);
    }
    let expire_at = match &state {
        State::Record(record) => record.expire_at(),
        State::Absent | State::Tombstone(_) => None,
    };
    Ok(UpsertFeaturesResponse {
        outcome: outcome(&receipt.outcome).into(),
        revision: receipt.revision.0,
        expire_time: expire_at.map(timestamp),
        cached,
    })
}

pub(in crate::api) struct Deletes {
    entity_ids: Vec<String>,
    /// One for each distinct id.
    pub(in crate::api) writes: Vec<Write>,
    /// For each id of the request, the index of its write.
    places: Vec<usize>,
}

pub(in crate::api) fn delete(request: DeleteFeaturesRequest, limits: &Limits) -> Result<Deletes, Failure> {
    let DeleteFeaturesRequest { feature_view, entity_ids, request_id } = request;
    if entity_ids.len() > limits.max_entities {
        return Err(Failure::too_many("TOO_MANY_ENTITIES", "entity ids", entity_ids.len(), limits.max_entities));
    }
    let mut wrong = Vec::new();
    let keys = parse_keys(&feature_view, &entity_ids.iter().collect(), &mut wrong);
    let request_id = parse_request_id(&request_id, &mut wrong);
    if !wrong.is_empty() {
        return Err(Failure::invalid(wrong));
    }
    let (mut seen, mut writes, mut places) = (HashMap::new(), Vec::new(), Vec::new());
    for key in keys {
        let place = *seen.entry(key.clone()).or_insert_with(|| {
            let request_id = request_id.clone();
            writes.push(Write { key, request_id, if_revision: None, change: Change::Delete });
            writes.len() - 1
        });
        places.push(place);
    }
    Ok(Deletes { entity_ids, writes, places })
}

pub(in crate::api) fn delete_response(
    deletes: Deletes,
    answer: BulkAnswer,
    limits: &Limits,
) -> Result<DeleteFeaturesResponse, Failure> {
    if let Some(error) = all_failed(&answer.items) {
        return Err(error.into());
    }
    let asked = deletes.entity_ids.into_iter().zip(deletes.places).enumerate();
    let results =
        asked.map(|(index, (entity_id, place))| result(index, entity_id, answer.items[place].clone(), limits));
    Ok(DeleteFeaturesResponse { results: results.collect() })
}

/// The error of the whole batch, if every item failed because a tier failed. A record that cannot
/// be read, however often it is retried, stays the error of its item.
pub(in crate::api) fn all_failed(items: &[Result<(Receipt, bool), WriteError>]) -> Option<WriteError> {
    let worst = items.iter().find_map(|item| match item {
        Err(error @ WriteError::Store(StoreError::OutcomeUnknown(_))) => Some(error),
        _ => None,
    });
    let lacking = |item: &Result<_, WriteError>| match item {
        Ok(_)
        | Err(WriteError::Store(StoreError::Corrupt(_) | StoreError::DoneUnreadable(_) | StoreError::Refused(_))) => {
            false
        }
        Err(_) => true,
    };
    let first = items.first().and_then(|item| item.as_ref().err());
    items.iter().all(lacking).then(|| worst.or(first).cloned()).flatten()
}

pub(in crate::api) fn result(
    index: usize,
    entity_id: String,
    item: Result<(Receipt, bool), WriteError>,
    limits: &Limits,
) -> WriteResult {
    let index = index as u32;
    let failed = |failure: Failure, revision| WriteResult {
        index,
        entity_id: entity_id.clone(),
        outcome: WriteOutcome::Failed.into(),
        revision,
        error: Some(failure.into()),
        cached: false,
    };
    match item {
        Err(error) => failed(error.into(), 0),
        Ok((receipt, cached)) => match Failure::of_outcome(&receipt.outcome, limits) {
            Some(failure) => failed(failure, receipt.revision.0),
            None => WriteResult {
                index,
                entity_id,
                outcome: outcome(&receipt.outcome).into(),
                revision: receipt.revision.0,
                error: None,
                cached,
            },
        },
    }
}

fn outcome(outcome: &Outcome) -> WriteOutcome {
    match outcome {
        Outcome::Written => WriteOutcome::Written,
        Outcome::SkippedStale => WriteOutcome::SkippedStale,
        Outcome::Deleted => WriteOutcome::Deleted,
        Outcome::NotFound => WriteOutcome::NotFound,
        Outcome::RevisionMismatch { .. }
        | Outcome::RequestIdReused
        | Outcome::TooManyFeatures { .. }
        | Outcome::RecordTooLarge { .. }
        | Outcome::DocumentTooLarge { .. } => WriteOutcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Revision;

    #[test]
    fn only_the_want_of_a_tier_fails_a_whole_batch() {
        let (unavailable, unknown) =
            (StoreError::Unavailable("down".into()), StoreError::OutcomeUnknown("lost".into()));
        let failed = |errors: &[&StoreError]| {
            all_failed(&errors.iter().map(|&error| Err(error.clone().into())).collect::<Vec<_>>())
        };
        assert_eq!(failed(&[]), None);
        assert_eq!(failed(&[&unavailable, &unavailable]), Some(unavailable.clone().into()));
        // That some writes may have happened is what the client must know.
        assert_eq!(failed(&[&unavailable, &unknown]), Some(unknown.into()));
        let corrupt = StoreError::Corrupt("bytes".into());
        assert_eq!(failed(&[&corrupt]), None);
        assert_eq!(failed(&[&unavailable, &corrupt]), None);
        let receipt = Receipt { outcome: Outcome::NotFound, revision: Revision::NONE, tombstone: false };
        assert_eq!(all_failed(&[Ok((receipt, true)), Err(unavailable.into())]), None);
    }
}
