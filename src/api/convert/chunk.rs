//! BulkUpsert: one message of the stream. Each of its records is checked by itself.

use super::{BulkDefaults, our_request_id, parse_record, parse_view};
use crate::{
    api::{Limits, failure::Failure},
    proto::BulkUpsertRequest,
    record::{FeatureView, RecordKey},
    store::{Change, Write},
};

/// A checked chunk of a bulk stream: the writes, and the records that were rejected.
pub(in crate::api) struct Chunk {
    /// The feature view, which is also that of later messages that name none.
    pub(in crate::api) view: FeatureView,
    pub(in crate::api) sequence: u64,
    pub(in crate::api) warm_cache: bool,
    pub(in crate::api) all_results: bool,
    /// The entity id of every record, as it was given.
    pub(in crate::api) entity_ids: Vec<String>,
    /// With their indices in the message.
    pub(in crate::api) writes: Vec<(usize, Write)>,
    /// With their indices in the message.
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
            Err(failure) => refused.push((index, failure.under(&format!("records[{index}]")))),
        }
    }
    Ok(Chunk { view, sequence, warm_cache, all_results, entity_ids, writes, refused })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        proto::{Value, value::Kind},
        record::FeatureRecord,
    };

    fn limits() -> Limits {
        Limits {
            max_entities: 10,
            max_features: 1000,
            max_record_bytes: 1 << 20,
            max_bulk_records: 10,
            max_request_bytes: 4 << 20,
            max_response_bytes: 4 << 20,
            max_ttl: Duration::from_secs(1000),
        }
    }

    #[test]
    fn the_records_of_a_message_share_its_model_version() {
        let record = |id: &str| FeatureRecord { entity_id: id.to_owned(), ..FeatureRecord::default() };
        let records = vec![record("a"), record("b")];
        let request = BulkUpsertRequest { records, model_version: "v".repeat(128), ..BulkUpsertRequest::default() };
        let chunk = chunk(request, None, &limits()).ok().unwrap();
        let version = |i: usize| match &chunk.writes[i].1.change {
            Change::Upsert(record) => &record.model_version,
            Change::Delete => panic!("it is an upsert"),
        };
        assert!(version(0).len() == 128 && Arc::ptr_eq(version(0), version(1)));
    }

    #[test]
    fn of_many_bad_features_the_first_are_described_and_the_others_counted() {
        let bad = |i: usize| (format!("${i:04}"), Value { kind: Some(Kind::BoolVal(true)) });
        let features = (0..1000).map(bad).collect();
        let record = FeatureRecord { entity_id: "a".to_owned(), features, ..FeatureRecord::default() };
        let request = BulkUpsertRequest { records: vec![record], ..BulkUpsertRequest::default() };
        let chunk = chunk(request, None, &limits()).ok().unwrap();
        let failure = &chunk.refused[0].1;
        assert!(failure.violations.len() < 10 && failure.message.len() < 4096, "{failure:?}");
        assert!(failure.violations[0].field.starts_with("records[0].features[\"$0000\"]"), "{failure:?}");
        let more = format!("; and {} more", 1000 - failure.violations.len());
        assert!(failure.message.ends_with(&more), "{failure:?}");
    }
}
