//! Converts requests into what the tiers take, and their answers into responses. Requests are
//! destructured field by field, so that a new field does not compile until it is handled here. All
//! errors of a request are reported at once.

mod chunk;
mod read;
mod record;
mod write;

pub(super) use chunk::{Chunk, chunk};
pub(super) use read::{Read, Shape, read};
pub(super) use write::{all_failed, delete, delete_response, result, upsert, upsert_response};

use super::failure::Violation;
use crate::{
    proto::EntityIds,
    record::{EntityId, FeatureName, FeatureView, MAX_MODEL_VERSION_BYTES, RecordKey},
    store::RequestId,
};
use record::{BulkDefaults, parse_duration, parse_record};

/// The most bytes that the request id of a client may have.
const MAX_REQUEST_ID_BYTES: usize = 128;

fn parse_view(name: &str, wrong: &mut Vec<Violation>) -> Option<FeatureView> {
    let parsed = FeatureView::parse(name);
    parsed.map_err(|why| wrong.push(Violation::new("feature_view", "INVALID_FEATURE_VIEW", why))).ok()
}

/// The keys of a batch. Bad entity ids are reported by their index.
fn parse_keys(view: &str, ids: &EntityIds, wrong: &mut Vec<Violation>) -> Vec<RecordKey> {
    let view = parse_view(view, wrong);
    if ids.is_empty() {
        wrong.push(Violation::new("entity_ids", "MISSING_FIELD", "give at least one entity id"));
    }
    match (EntityId::parse_all(ids), view) {
        (Ok(ids), Some(view)) => ids.map(|entity_id| RecordKey { view: view.clone(), entity_id }).collect(),
        (Ok(_), None) => Vec::new(),
        (Err(refused), _) => {
            let violation = |(i, why)| Violation::new(format!("entity_ids[{i}]"), "INVALID_ENTITY_ID", why);
            wrong.extend(refused.into_iter().map(violation));
            Vec::new()
        }
    }
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

/// The id of the client, marked so that it never equals one of ours. Without one ("") the server
/// makes its own.
fn parse_request_id(id: &str, wrong: &mut Vec<Violation>) -> RequestId {
    if id.len() > MAX_REQUEST_ID_BYTES {
        let why = format!("a request id may have {MAX_REQUEST_ID_BYTES} bytes at most, not {}", id.len());
        wrong.push(Violation::new("request_id", "INVALID_REQUEST_ID", why));
    }
    if id.is_empty() { our_request_id() } else { RequestId::of_client(id) }
}

/// Every write has an id, so that the store can find its outcome when the write is repeated.
fn our_request_id() -> RequestId {
    RequestId(format!("s:{:032x}", rand::random::<u128>()).into())
}

/// Checks the length of a model version, because every answer about the record repeats it.
fn check_model_version(field: &str, text: &str, wrong: &mut Vec<Violation>) {
    if text.len() > MAX_MODEL_VERSION_BYTES {
        let why = format!("a model version may have {MAX_MODEL_VERSION_BYTES} bytes at most, not {}", text.len());
        wrong.push(Violation::new(field, "INVALID_MODEL_VERSION", why));
    }
}

fn unknown_enum(field: &str, number: i32) -> Violation {
    Violation::new(field, "UNKNOWN_ENUM_VALUE", format!("{number} is not a known value"))
}
