//! A client that knows the API only from its proto: plain messages, generated apart from the server's.

use std::collections::BTreeMap;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

pub use pb::*;

pub type Client = pb::feature_store_service_client::FeatureStoreServiceClient<Channel>;

/// A client that shows a token with each call, if it has one.
pub type Caller = pb::feature_store_service_client::FeatureStoreServiceClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone, Debug, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    pub fn new(token: &str) -> Self {
        Self(Some(format!("Bearer {token}").parse().unwrap()))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// Connects with the first call.
pub fn caller(endpoint: &Endpoint, bearer: &Bearer) -> Caller {
    let channel = endpoint.clone().connect_timeout(std::time::Duration::from_secs(1)).connect_lazy();
    Caller::new(InterceptedService::new(channel, bearer.clone()))
}

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

pub fn timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 0 }
}

/// Milliseconds since the epoch.
pub fn in_millis(at: &prost_types::Timestamp) -> i64 {
    at.seconds * 1000 + i64::from(at.nanos) / 1_000_000
}

/// A read from the default view that L2 answers.
pub fn strong<S: Into<String>>(ids: impl IntoIterator<Item = S>) -> GetFeaturesRequest {
    GetFeaturesRequest { consistency: Consistency::Strong.into(), ..get(ids) }
}

/// One message of a bulk stream into the default view.
pub fn chunk(sequence: u64, records: impl IntoIterator<Item = FeatureRecord>) -> BulkUpsertRequest {
    BulkUpsertRequest { sequence, records: records.into_iter().collect(), ..BulkUpsertRequest::default() }
}

/// Writes a record into the default view.
pub async fn put(client: &mut Client, record: FeatureRecord) -> UpsertFeaturesResponse {
    client.upsert_features(upsert(record)).await.unwrap().into_inner()
}

/// Reads rows.
pub async fn rows(client: &mut Client, request: GetFeaturesRequest) -> Vec<FeatureRow> {
    client.get_features(request).await.unwrap().into_inner().rows
}

/// Reads the only row.
pub async fn row(client: &mut Client, request: GetFeaturesRequest) -> FeatureRow {
    let mut rows = rows(client, request).await;
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

/// Sends a bulk stream and reads it to its end: its answers, and the status that ended it if that is not OK.
pub async fn bulk(
    client: &mut Client,
    chunks: impl IntoIterator<Item = BulkUpsertRequest>,
) -> (Vec<BulkUpsertResponse>, Option<tonic::Status>) {
    let chunks: Vec<_> = chunks.into_iter().collect();
    let mut stream = match client.bulk_upsert(tokio_stream::iter(chunks)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return (Vec::new(), Some(status)),
    };
    let mut answers = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => return (answers, None),
            Err(status) => return (answers, Some(status)),
        }
    }
}

/// What a refused call says in its status and in its google.rpc details.
#[derive(Debug)]
pub struct Refusal {
    pub code: tonic::Code,
    pub reason: String,
    pub metadata: BTreeMap<String, String>,
    /// Of BadRequest, in its order.
    pub fields: Vec<String>,
    pub retry: bool,
}

impl Refusal {
    pub fn of(status: &tonic::Status) -> Self {
        use tonic_types::StatusExt as _;
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
        assert_eq!(info.domain, "featurestore.v1");
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{status:?}");
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            metadata: info.metadata.clone().into_iter().collect(),
            fields: violations.into_iter().map(|violation| violation.field).collect(),
            retry: details.retry_info().is_some(),
        }
    }
}
