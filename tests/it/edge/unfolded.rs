//! What is small on the wire and large in memory is counted before it is built.

use mongodb::bson::doc;

use super::*;
use crate::harness::mongod::Mongod;

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

/// Has MongoDB keep the next command of this name that is about records for a while.
async fn keep_next(mongod: &Mongod, command: &str) {
    let data = doc! {
        "failCommands": [command], "namespace": "featurestore.features", "blockConnection": true, "blockTimeMS": 4000,
    };
    let command = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
    mongod.database("admin").await.run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_becomes_on_its_way_to_mongodb_is_counted_until_it_is_answered() {
    const MIB: usize = 1 << 20;
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let uri = mongod.uri();
    let server = Binary::start(&[("MONGO_URI", &uri), ("FEATURESTORE_DEADLINES_WRITE", "1min")]);
    server.until_serving().await;
    let client = server.client().await;
    // A byte each in the request, and eleven or more in a document.
    let bools =
        |id: &str| record(id, [("bools", value(value::Kind::BoolListVal(BoolList { val: vec![true; 150_000] })))]);
    let text = |id: &str| record(id, [("text", value(value::Kind::StringVal("x".repeat(MIB - 100))))]);
    let merge = FeatureRecord { write_mode: WriteMode::Merge.into(), ..record("text", [("n", double(1.0))]) };
    for _ in 0..5 {
        put(&mut client.clone(), text("text")).await;
    }
    let upserting = async |record| client.clone().upsert_features(upsert(record)).await.map(drop);
    let streaming = async || {
        let (answers, ended) = bulk(&mut client.clone(), [chunk(1, ["one", "two"].map(bools))]).await;
        assert_eq!(answers[0].written, 2);
        ended.map_or(Ok(()), Err)
    };
    let counted =
        async |what: &str, command: &str, write: &mut (dyn Future<Output = Result<(), tonic::Status>> + Unpin)| {
            eventually("all bytes to be given back", async || in_flight(&server).await == 0).await;
            keep_next(&mongod, command).await;
            let held = eventually(what, async || in_flight(&server).await > 3 * MIB);
            let (written, ()) = tokio::join!(write, held);
            written.expect(what);
        };
    counted("an upsert", "update", &mut Box::pin(upserting(bools("one")))).await;
    counted("a message of a stream", "update", &mut Box::pin(streaming())).await;
    // It brings the record that stands.
    counted("a merge", "findAndModify", &mut Box::pin(upserting(merge))).await;
    eventually("all bytes to be given back", async || in_flight(&server).await == 0).await;
}
