//! Reads of more than is held at once: they are made in parts, and answered as any other.

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
