//! BulkUpsert: one message of the stream, each of its records checked for itself.

use super::{BulkDefaults, our_request_id, parse_record, parse_view};
use crate::{
    api::{
        Limits,
        failure::{Failure, Violation},
    },
    proto::BulkUpsertRequest,
    record::{FeatureView, RecordKey},
    store::{Change, Write},
};

/// One checked chunk of a bulk stream: what can be written, and what was wrong with the rest.
pub(in crate::api) struct Chunk {
    /// The view, for later messages that leave it out.
    pub(in crate::api) view: FeatureView,
    pub(in crate::api) sequence: u64,
    pub(in crate::api) warm_cache: bool,
    pub(in crate::api) all_results: bool,
    /// Of every record, as it was given.
    pub(in crate::api) entity_ids: Vec<String>,
    /// With their indices.
    pub(in crate::api) writes: Vec<(usize, Write)>,
    /// With their indices.
    pub(in crate::api) refused: Vec<(usize, Failure)>,
}

pub(in crate::api) fn chunk(
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
