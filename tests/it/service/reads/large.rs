//! Reads of more than is held at once: they are made in parts, and answered as any other.

use std::{sync::Arc, time::Duration};

use featurestore::{
    api::{Api, ByteBudget, ConnectionBytes, Deadlines, InFlight, Limits, Place},
    proto::{GetFeaturesRequest as Asked, feature_store_service_server::FeatureStoreService as _},
};
use prost::Message as _;

use super::*;

const RECORDS: usize = 40;
/// Of a record; all together have several times what a part brings.
const BYTES: usize = 512 << 10;

fn large(id: &str) -> FeatureRecord {
    let text = value(value::Kind::StringVal("x".repeat(BYTES)));
    FeatureRecord { model_version: "v1".to_owned(), ..record(id, [("text", text), ("n", double(id.len() as f64))]) }
}

fn ids() -> Vec<String> {
    (0..RECORDS).map(|id| format!("L{id}")).collect()
}

fn of(names: &[&str]) -> GetFeaturesRequest {
    let feature_names = names.iter().map(|name| (*name).to_owned()).collect();
    // With some that there are not, and some twice.
    let more = ["nobody".to_owned(), "L0".to_owned(), "L39".to_owned()];
    GetFeaturesRequest { feature_names, ..get(ids().into_iter().chain(more)) }
}

/// What a row must say, but for times and the source.
fn seen(row: FeatureRow) -> (String, RowStatus, Vec<String>, Vec<String>) {
    let status = row.status();
    (row.entity_id, status, row.features.into_keys().collect(), row.missing_features)
}

async fn check_rows(client: &mut Client, request: GetFeaturesRequest, what: &str) {
    let answer = client.get_features(request.clone()).await.unwrap().into_inner();
    assert!(!answer.degraded, "{what}");
    let expected = request.entity_ids.iter().map(|id| match id.as_str() {
        "nobody" => (id.clone(), RowStatus::NotFound, vec![], vec![]),
        _ => (id.clone(), RowStatus::Found, vec!["n".to_owned()], vec!["absent".to_owned()]),
    });
    assert!(answer.rows.into_iter().map(seen).eq(expected), "{what}");
}

async fn check_matrix(client: &mut Client, consistency: Consistency, what: &str) {
    let format = ResponseFormat::MatrixFloat64.into();
    let request = GetFeaturesRequest { format, consistency: consistency.into(), ..of(&["text", "n", "absent"]) };
    let matrix = client.get_features(request.clone()).await.unwrap().into_inner().matrix.unwrap();
    let statuses: Vec<_> = matrix.field_statuses.chunks(3).collect();
    for (row, id) in request.entity_ids.iter().enumerate() {
        let expected = match id.as_str() {
            "nobody" => [FieldStatus::NotFound; 3],
            _ => [FieldStatus::NotNumeric, FieldStatus::Present, FieldStatus::NotFound],
        };
        assert_eq!(statuses[row], expected.map(|status| status as u8), "{what}: {id}");
        let number = f64::from_le_bytes(matrix.values[24 * row + 8..][..8].try_into().unwrap());
        assert!(id == "nobody" || number == id.len() as f64, "{what}: {id} {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_features_of_many_large_records_are_answered_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve_with(&[("FEATURESTORE_DEADLINES_READ", "30s")]).await;
        let mut client = server.client().await;
        for ids in ids().chunks(5) {
            let (answers, _) = bulk(&mut client, [chunk(1, ids.iter().map(|id| large(id)))]).await;
            assert_eq!(answers[0].written, 5);
        }
        for what in ["nothing is known", "from L2", "from L1"] {
            let what = format!("{}, {what}", pair.name());
            check_rows(&mut client, of(&["n", "absent"]), &what).await;
            let strong = GetFeaturesRequest { consistency: Consistency::Strong.into(), ..of(&["n", "absent"]) };
            check_rows(&mut client, strong, &what).await;
            check_matrix(&mut client, Consistency::Cached, &what).await;
            check_matrix(&mut client, Consistency::Strong, &what).await;
        }
        let other = GetFeaturesRequest { expected_model_version: "v2".to_owned(), ..get(ids()) };
        for row in rows(&mut client, other).await {
            assert_eq!((row.status(), row.features.len()), (RowStatus::VersionMismatch, 0), "{}", pair.name());
            assert!(row.model_version == "v1" && row.event_time.is_some());
        }
        let some: Vec<String> = ids().into_iter().take(25).collect();
        for row in rows(&mut client, get(some)).await {
            assert_eq!((row.status(), row.features["text"].encoded_len() > BYTES), (RowStatus::Found, true));
        }
        let refused = Refusal::of(&client.get_features(get(ids())).await.unwrap_err());
        assert_eq!(refused.reason, "RESPONSE_TOO_LARGE");
        eventually("all bytes to be given back", async || server.metric("featurestore_bytes_in_flight").await == 0.0)
            .await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_records_of_an_answer_are_counted_beside_it_until_it_is_encoded() {
    let server = Pair::embedded().serve().await;
    put(&mut server.client().await, large("L0")).await;
    let limits = Limits {
        max_entities: 10,
        max_features: 10,
        max_record_bytes: 1 << 20,
        max_bulk_records: 10,
        max_request_bytes: 4 << 20,
        max_response_bytes: 4 << 20,
        max_ttl: Duration::from_secs(3600),
    };
    let time = Duration::from_secs(60);
    let api = Api::new(server.tiered.clone(), limits, Deadlines { read: time, strong: time, write: time }, time, false);
    let all = Arc::new(ByteBudget::new(64 << 20));
    // As the server passes it on.
    let mut request = tonic::Request::new(Asked::decode(&strong(["L0"]).encode_to_vec()[..]).unwrap());
    let connection = Arc::new(ConnectionBytes::new(all.clone()));
    request.extensions_mut().insert(InFlight::new(Place::None, connection));
    let answer = api.get_features(request).await.unwrap();
    assert!(all.held() > 2 * BYTES, "{}", all.held());
    drop(answer);
    assert_eq!(all.held(), 0);
    server.stop().await;
}

/// What it would hold is more than a connection may, too; but that is no matter of waiting.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_told_so_before_all_of_its_records_are_held() {
    let settings =
        [("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "4MiB"), ("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "64MiB")];
    const { assert!(RECORDS * BYTES > 64 << 18) };
    let server = Pair::embedded().serve_with(&settings).await;
    let mut client = server.client().await;
    for ids in ids().chunks(5) {
        let (answers, _) = bulk(&mut client, [chunk(1, ids.iter().map(|id| large(id)))]).await;
        assert_eq!(answers[0].written, 5);
    }
    for request in [get(ids()), strong(ids()), of(&["text"])] {
        let refused = Refusal::of(&client.get_features(request).await.unwrap_err());
        assert_eq!(refused.reason, "RESPONSE_TOO_LARGE");
    }
    server.stop().await;
}
