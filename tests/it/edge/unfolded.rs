//! What is small on the wire and large in memory is counted before it is built.

use super::*;

/// Beyond what the server holds when it begins: far below what these messages would take.
const GROWN: usize = 64 << 20;

fn of_kind(kind: value::Kind) -> BulkUpsertRequest {
    chunk(1, [record("R", [("a", value(kind))])])
}

fn json(kind: prost_types::value::Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

/// Messages of some MiB that become hundreds of them.
fn amplifying() -> Vec<(&'static str, BulkUpsertRequest)> {
    use prost_types::value::Kind as Json;
    let empty = vec![FeatureRecord::default(); 1_000_000];
    let objects = (0..150_000).map(|_| {
        let fields = [("a".to_owned(), json(Json::NullValue(0)))].into_iter().collect();
        json(Json::StructValue(prost_types::Struct { fields }))
    });
    let list = json(Json::ListValue(prost_types::ListValue { values: objects.collect() }));
    let fields = [("list".to_owned(), list)].into_iter().collect();
    vec![
        ("empty records", BulkUpsertRequest { records: empty, ..BulkUpsertRequest::default() }),
        ("objects", of_kind(value::Kind::StructVal(prost_types::Struct { fields }))),
        ("empty texts", of_kind(value::Kind::StringListVal(StringList { val: vec![String::new(); 1_500_000] }))),
        ("integers", of_kind(value::Kind::Int64ListVal(Int64List { val: vec![0; 3_900_000] }))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_becomes_more_than_a_connection_may_hold_is_refused_before_it_is_decoded() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut client = server.client().await;
    put(&mut client, record("before", [])).await;
    let before = server.memory();
    for (what, message) in amplifying() {
        let (answers, ended) = bulk(&mut client, [message]).await;
        let refused = Refusal::of(&ended.expect(what));
        assert!(answers.is_empty(), "{what}");
        assert_eq!((refused.code, &*refused.reason), (Code::InvalidArgument, "REQUEST_TOO_LARGE"), "{what}");
        assert!(refused.metadata.contains_key("bytes") && refused.metadata["maximum"] == (64 << 20).to_string());
        let grown = server.memory().saturating_sub(before);
        assert!(grown < GROWN, "{what}: {} MiB", grown >> 20);
    }
    another_is_served(&server).await;
    let upsert_of = |message: BulkUpsertRequest| upsert(message.records.into_iter().next().unwrap());
    for (what, message) in amplifying().into_iter().skip(1) {
        let refused = client.upsert_features(upsert_of(message)).await.expect_err(what);
        assert_eq!(Refusal::of(&refused).reason, "REQUEST_TOO_LARGE", "{what}");
    }
    let many = DeleteFeaturesRequest { entity_ids: vec![String::new(); 1_000_000], ..Default::default() };
    assert_eq!(Refusal::of(&client.delete_features(many).await.unwrap_err()).reason, "REQUEST_TOO_LARGE");
    let texts = || vec![String::new(); 2_000_000];
    for (what, read) in [
        ("names", GetFeaturesRequest { feature_names: texts(), ..get(["a"]) }),
        ("ids", GetFeaturesRequest { entity_ids: texts(), ..Default::default() }),
        (
            "revisions",
            GetFeaturesRequest { min_revisions: (0..450_000).map(|i| (format!("{i:x}"), 1)).collect(), ..get(["a"]) },
        ),
    ] {
        let refused = client.get_features(read).await.expect_err(what);
        assert_eq!(Refusal::of(&refused).reason, "REQUEST_TOO_LARGE", "{what}");
        let grown = server.memory().saturating_sub(before);
        assert!(grown < GROWN, "{what}: {} MiB", grown >> 20);
    }
}
