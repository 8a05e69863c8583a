//! A client that knows the API only from its proto: plain messages, generated apart from the server's.

use std::collections::BTreeMap;

use tonic::transport::Channel;

#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

pub use pb::*;

pub type Client = pb::feature_store_service_client::FeatureStoreServiceClient<Channel>;

/// A value of one kind.
pub fn value(kind: value::Kind) -> Value {
    Value { kind: Some(kind) }
}

pub fn double(number: f64) -> Value {
    value(value::Kind::DoubleVal(number))
}

pub fn features<const N: usize>(features: [(&str, Value); N]) -> BTreeMap<String, Value> {
    features.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A record with features and defaults for all else.
pub fn record<const N: usize>(id: &str, named: [(&str, Value); N]) -> FeatureRecord {
    FeatureRecord { entity_id: id.to_owned(), features: features(named), ..FeatureRecord::default() }
}

/// An upsert into the default view.
pub fn upsert(record: FeatureRecord) -> UpsertFeaturesRequest {
    UpsertFeaturesRequest { record: Some(record), ..UpsertFeaturesRequest::default() }
}

/// A read of whole rows from the default view.
pub fn get<S: Into<String>>(ids: impl IntoIterator<Item = S>) -> GetFeaturesRequest {
    GetFeaturesRequest { entity_ids: ids.into_iter().map(Into::into).collect(), ..GetFeaturesRequest::default() }
}

/// A delete from the default view.
pub fn delete<S: Into<String>>(ids: impl IntoIterator<Item = S>) -> DeleteFeaturesRequest {
    DeleteFeaturesRequest { entity_ids: ids.into_iter().map(Into::into).collect(), ..DeleteFeaturesRequest::default() }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub fn millis(millis: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 }
}
