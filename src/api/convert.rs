//! Requests into what the tiers take, and their answers back. Requests are taken apart field by field, so that a new
//! field breaks the build here; everything wrong with a request is told at once.

mod record;

use std::collections::HashMap;

use tokio::time::Instant;

use super::{
    Limits,
    failure::{Failure, Violation},
};
use crate::{
    proto::{
        self, BulkUpsertRequest, DeleteFeaturesRequest, DeleteFeaturesResponse, GetFeaturesRequest, ResponseFormat,
        UpsertFeaturesRequest, UpsertFeaturesResponse, WriteOutcome, WriteResult,
    },
    record::{
        EntityId, FeatureName, FeatureView, RecordKey, Revision, State,
        encoding::{Columns, Projection, timestamp},
    },
    store::{Change, Outcome, Receipt, RequestId, StoreError, Write},
    tiered::{BulkAnswer, Consistency, ReadRequest, WriteAnswer, WriteError},
};
use record::{BulkDefaults, parse_duration, parse_record};

/// The most bytes that a client's request id may have.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A checked GetFeaturesRequest.
pub(super) struct Read {
    /// As they were asked for.
    pub(super) entity_ids: Vec<String>,
    pub(super) keys: Vec<RecordKey>,
    pub(super) consistency: Consistency,
    pub(super) min_revisions: HashMap<RecordKey, Revision>,
    pub(super) expected_model_version: String,
    /// Milliseconds.
    pub(super) max_age: Option<i64>,
    pub(super) shape: Shape,
    pub(super) omit_metadata: bool,
}

/// What the answer looks like.
pub(super) enum Shape {
    Rows(Option<Projection>),
    Matrix { names: Vec<String>, columns: Columns, single: bool },
}

impl Read {
    /// What the tiers are asked.
    pub(super) fn request(&self, deadline: Instant) -> ReadRequest {
        ReadRequest {
            keys: self.keys.clone(),
            consistency: self.consistency,
            min_revisions: self.min_revisions.clone(),
            deadline,
        }
    }
}

pub(super) fn read(request: GetFeaturesRequest, limits: &Limits) -> Result<Read, Failure> {
    let GetFeaturesRequest {
        feature_view,
        entity_ids,
        feature_names,
        consistency,
        expected_model_version,
        max_age,
        min_revisions,
        format,
        omit_metadata,
    } = request;
    if entity_ids.len() > limits.max_entities {
        return Err(Failure::too_many("TOO_MANY_ENTITIES", "entity ids", entity_ids.len(), limits.max_entities));
    }
    if feature_names.len() > limits.max_features {
        return Err(Failure::too_many("TOO_MANY_FEATURES", "feature names", feature_names.len(), limits.max_features));
    }
    let mut wrong = Vec::new();
    let keys = parse_keys(&feature_view, &entity_ids, &mut wrong);
    let names = parse_feature_names(&feature_names, &mut wrong);
    let consistency = match proto::Consistency::try_from(consistency) {
        Ok(proto::Consistency::Unspecified | proto::Consistency::Cached) => Consistency::Cached,
        Ok(proto::Consistency::Strong) => Consistency::Strong,
        Err(_) => {
            wrong.push(unknown_enum("consistency", consistency));
            Consistency::Cached
        }
    };
    let format = ResponseFormat::try_from(format).unwrap_or_else(|_| {
        wrong.push(unknown_enum("format", format));
        ResponseFormat::Unspecified
    });
    let is_matrix = matches!(format, ResponseFormat::MatrixFloat64 | ResponseFormat::MatrixFloat32);
    if is_matrix && feature_names.is_empty() {
        wrong.push(Violation::new("feature_names", "MISSING_FIELD", "a matrix needs the names of its columns"));
    }
    let max_age = max_age.and_then(|max_age| match parse_duration(max_age) {
        Ok(millis) => Some(millis),
        Err(why) => {
            wrong.push(Violation::new("max_age", "INVALID_DURATION", why));
            None
        }
    });
    for (id, revision) in &min_revisions {
        if *revision < 0 {
            let field = format!("min_revisions[{id:?}]");
            wrong.push(Violation::new(field, "INVALID_REVISION", "a revision must not be negative"));
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::invalid(wrong));
    }
    let min_revisions = if min_revisions.is_empty() {
        HashMap::new()
    } else {
        let asked = keys.iter().filter_map(|key| {
            let revision = min_revisions.get(key.entity_id.as_str())?;
            Some((key.clone(), Revision(*revision)))
        });
        asked.collect()
    };
    let shape = match is_matrix {
        true => Shape::Matrix {
            columns: Columns::new(&names),
            names: feature_names,
            single: format == ResponseFormat::MatrixFloat32,
        },
        false => Shape::Rows((!names.is_empty()).then(|| Projection::new(&names))),
    };
    Ok(Read { entity_ids, keys, consistency, min_revisions, expected_model_version, max_age, shape, omit_metadata })
}

pub(super) fn upsert(request: UpsertFeaturesRequest, limits: &Limits) -> Result<Write, Failure> {
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
            Err(Failure::invalid(wrong))
        }
    }
}

pub(super) fn upsert_response(answer: WriteAnswer, limits: &Limits) -> Result<UpsertFeaturesResponse, Failure> {
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

/// A checked DeleteFeaturesRequest.
pub(super) struct Deletes {
    entity_ids: Vec<String>,
    /// Of each id once.
    pub(super) writes: Vec<Write>,
    /// The write that answers each id.
    places: Vec<usize>,
}

pub(super) fn delete(request: DeleteFeaturesRequest, limits: &Limits) -> Result<Deletes, Failure> {
    let DeleteFeaturesRequest { feature_view, entity_ids, request_id } = request;
    if entity_ids.len() > limits.max_entities {
        return Err(Failure::too_many("TOO_MANY_ENTITIES", "entity ids", entity_ids.len(), limits.max_entities));
    }
    let mut wrong = Vec::new();
    let keys = parse_keys(&feature_view, &entity_ids, &mut wrong);
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

pub(super) fn delete_response(
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

/// The error of a batch of which nothing succeeded for want of a tier. A record that cannot be read however often it is
/// tried stays its item's error.
pub(super) fn all_failed(items: &[Result<(Receipt, bool), WriteError>]) -> Option<WriteError> {
    let worst = items.iter().find_map(|item| match item {
        Err(error @ WriteError::Store(StoreError::OutcomeUnknown(_))) => Some(error),
        _ => None,
    });
    let lacking = |item: &Result<_, WriteError>| match item {
        Ok(_) | Err(WriteError::Store(StoreError::Corrupt(_) | StoreError::DoneUnreadable(_))) => false,
        Err(_) => true,
    };
    let first = items.first().and_then(|item| item.as_ref().err());
    items.iter().all(lacking).then(|| worst.or(first).cloned()).flatten()
}

/// One item's answer.
pub(super) fn result(
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

/// One checked chunk of a bulk stream: what can be written, and what was wrong with the rest.
pub(super) struct Chunk {
    /// The view, for later messages that leave it out.
    pub(super) view: FeatureView,
    pub(super) sequence: u64,
    pub(super) warm_cache: bool,
    pub(super) all_results: bool,
    /// Of every record, as it was given.
    pub(super) entity_ids: Vec<String>,
    /// With their indices.
    pub(super) writes: Vec<(usize, Write)>,
    /// With their indices.
    pub(super) refused: Vec<(usize, Failure)>,
}

pub(super) fn chunk(
    request: BulkUpsertRequest,
    last_view: Option<&FeatureView>,
    limits: &Limits,
) -> Result<Chunk, Failure> {
    let BulkUpsertRequest { feature_view, sequence, records, model_version, ttl, warm_cache, all_results } = request;
    if records.len() > limits.max_bulk_records {
        return Err(Failure::too_many("TOO_MANY_RECORDS", "records", records.len(), limits.max_bulk_records));
    }
    let mut wrong = Vec::new();
    let view = match last_view {
        Some(last_view) if feature_view.is_empty() => Some(last_view.clone()),
        _ => parse_view(&feature_view, &mut wrong),
    };
    let defaults = BulkDefaults::parse(model_version, ttl, limits, &mut wrong);
    let Some(view) = view.filter(|_| wrong.is_empty()) else { return Err(Failure::invalid(wrong)) };

    let mut entity_ids = Vec::with_capacity(records.len());
    let (mut writes, mut refused) = (Vec::with_capacity(records.len()), Vec::new());
    for (index, record) in records.into_iter().enumerate() {
        entity_ids.push(record.entity_id.clone());
        match parse_record(record, &defaults, limits) {
            Ok(parsed) => writes.push((
                index,
                Write {
                    key: RecordKey { view: view.clone(), entity_id: parsed.entity_id },
                    request_id: our_request_id(),
                    if_revision: parsed.if_revision,
                    change: Change::Upsert(parsed.record),
                },
            )),
            Err(mut failure) => {
                let parent = format!("records[{index}]");
                if failure.violations.is_empty() {
                    let (reason, message) = (failure.reason, failure.message.clone());
                    failure.violations.push(Violation::new(parent, reason, message));
                } else {
                    failure = Failure::invalid(failure.violations.into_iter().map(|v| v.under(&parent)).collect());
                }
                refused.push((index, failure));
            }
        }
    }
    Ok(Chunk { view, sequence, warm_cache, all_results, entity_ids, writes, refused })
}

fn outcome(outcome: &Outcome) -> WriteOutcome {
    match outcome {
        Outcome::Written => WriteOutcome::Written,
        Outcome::SkippedStale => WriteOutcome::SkippedStale,
        Outcome::Deleted => WriteOutcome::Deleted,
        Outcome::NotFound => WriteOutcome::NotFound,
        Outcome::RevisionMismatch { .. } | Outcome::TooManyFeatures { .. } | Outcome::RecordTooLarge { .. } => {
            WriteOutcome::Failed
        }
    }
}

fn parse_view(name: &str, wrong: &mut Vec<Violation>) -> Option<FeatureView> {
    let parsed = FeatureView::parse(name);
    parsed.map_err(|why| wrong.push(Violation::new("feature_view", "INVALID_FEATURE_VIEW", why))).ok()
}

fn parse_keys(view: &str, ids: &[String], wrong: &mut Vec<Violation>) -> Vec<RecordKey> {
    let view = parse_view(view, wrong);
    if ids.is_empty() {
        wrong.push(Violation::new("entity_ids", "MISSING_FIELD", "there is no entity id"));
    }
    let mut keys = Vec::with_capacity(ids.len());
    for (i, id) in ids.iter().enumerate() {
        match (EntityId::parse(id), &view) {
            (Ok(entity_id), Some(view)) => keys.push(RecordKey { view: view.clone(), entity_id }),
            (Ok(_), None) => {}
            (Err(why), _) => wrong.push(Violation::new(format!("entity_ids[{i}]"), "INVALID_ENTITY_ID", why)),
        }
    }
    keys
}

fn parse_feature_names(names: &[String], wrong: &mut Vec<Violation>) -> Vec<FeatureName> {
    let mut parsed = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        match FeatureName::parse(name) {
            Ok(name) => parsed.push(name),
            Err(why) => wrong.push(Violation::new(format!("feature_names[{i}]"), "INVALID_FEATURE_NAME", why)),
        }
    }
    parsed
}

/// The client's id, told apart from ours; "": one of ours.
fn parse_request_id(id: &str, wrong: &mut Vec<Violation>) -> RequestId {
    if id.len() > MAX_REQUEST_ID_BYTES {
        let why = format!("a request id may have {MAX_REQUEST_ID_BYTES} bytes, this one has {}", id.len());
        wrong.push(Violation::new("request_id", "INVALID_REQUEST_ID", why));
    }
    if id.is_empty() { our_request_id() } else { RequestId(format!("c:{id}").into()) }
}

/// Every write carries an id, so that its outcome can be found in what it left.
fn our_request_id() -> RequestId {
    RequestId(format!("s:{:032x}", rand::random::<u128>()).into())
}

fn unknown_enum(field: &str, number: i32) -> Violation {
    Violation::new(field, "UNKNOWN_ENUM_VALUE", format!("{number} is not a known value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_want_of_a_tier_fails_a_whole_batch() {
        let (unavailable, unknown) =
            (StoreError::Unavailable("down".into()), StoreError::OutcomeUnknown("lost".into()));
        let failed = |errors: &[&StoreError]| {
            all_failed(&errors.iter().map(|&error| Err(error.clone().into())).collect::<Vec<_>>())
        };
        assert_eq!(failed(&[]), None);
        assert_eq!(failed(&[&unavailable, &unavailable]), Some(unavailable.clone().into()));
        // That some may have happened is what the client must know.
        assert_eq!(failed(&[&unavailable, &unknown]), Some(unknown.into()));
        let corrupt = StoreError::Corrupt("bytes".into());
        assert_eq!(failed(&[&corrupt]), None);
        assert_eq!(failed(&[&unavailable, &corrupt]), None);
        let receipt = Receipt { outcome: Outcome::NotFound, revision: Revision::NONE, tombstone: false };
        assert_eq!(all_failed(&[Ok((receipt, true)), Err(unavailable.into())]), None);
    }
}
