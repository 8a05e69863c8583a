//! A record is measured in stored bytes, whatever BSON makes of it, up to what a document of MongoDB can hold; and what it costs
//! to write one record many times.

use bson::RawDocumentBuf;
use featurestore::{
    proto::{BoolList, FloatList, Int64List},
    store::mongodb::MAX_DOCUMENT_BYTES,
};
use futures_util::TryStreamExt as _;

use super::*;

fn zeros(count: usize) -> Kind {
    Kind::Int64ListVal(Int64List { val: vec![0; count] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_bson_makes_many_times_as_large_are_taken_and_come_back() {
    let bench = Bench::new().await;
    let floats = Kind::FloatListVal(FloatList { val: (0..100_000).map(|i| i as f32).collect() });
    let bools = Kind::BoolListVal(BoolList { val: (0..150_000).map(|i| i % 3 == 0).collect() });
    let json = Kind::BytesListVal(featurestore::proto::BytesList { val: vec![vec![].into(); 200_000] });
    for (id, kind) in [("floats", floats), ("bools", bools), ("bytes", json)] {
        let (receipt, state) = bench.write(upsert(id, record([("a", kind.clone())]))).await;
        assert_eq!(receipt.outcome, Outcome::Written, "{id}");
        assert_eq!(receipt.revision, state.revision());
        assert_eq!(kind_of(&snapshot(&state), "a"), &kind, "{id}");
        assert_eq!(kind_of(&bench.snapshot(id).await, "a"), &kind, "{id}");
        // And merged with as much again.
        let merged = bench.write(upsert(id, merge([("b", kind.clone())]))).await.0;
        assert_eq!(merged.outcome, Outcome::Written, "{id}");
        let both = bench.snapshot(id).await;
        assert_eq!((kind_of(&both, "a"), kind_of(&both, "b")), (&kind, &kind), "{id}");
        let kinds = bench.document(id).await.unwrap().get_document("kinds").unwrap().clone();
        assert_eq!(kinds.len(), 2, "{id}: {kinds}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_document_can_hold_is_refused_with_both_sizes_and_remembered() {
    let bench = Bench::new().await;
    // A byte each in stored form, and 16 in BSON.
    let (count, stored) = (1_048_400, 1_048_400 + 19);
    let refused = |outcome: &Outcome, bytes: usize| match *outcome {
        Outcome::DocumentTooLarge { bytes: told, document, maximum } => {
            assert_eq!((told, maximum), (bytes, MAX_DOCUMENT_BYTES));
            assert!(document > maximum && document < 17 << 20, "{document}");
        }
        other => panic!("{other:?}"),
    };
    for alone in [true, false] {
        let id = if alone { "alone" } else { "in a batch" };
        let write = async |write: Write| match alone {
            true => bench.write(write).await.0,
            false => bench.store.write_batch(vec![write], soon()).await.remove(0).unwrap(),
        };
        for record in [record([("a", zeros(count))]), merge([("a", zeros(count))])] {
            let receipt = write(upsert(id, record)).await;
            refused(&receipt.outcome, stored);
            assert_eq!(receipt.revision, Revision::NONE);
        }
        assert_eq!(bench.read(id).await, Ok(State::Absent));
        let first = write(upsert(id, record([("b", Kind::Int64Val(1))]))).await;
        let before = bench.read(id).await.unwrap();
        for (record, more) in [(record([("a", zeros(count))]), 0), (merge([("a", zeros(count))]), 9)] {
            let attempt = upsert(id, record);
            let receipt = write(attempt.clone()).await;
            refused(&receipt.outcome, stored + more);
            assert_eq!(receipt.revision, first.revision);
            assert_eq!(write(attempt).await, receipt, "the attempt is remembered");
        }
        assert_eq!(bench.read(id).await.unwrap(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_makes_a_record_too_large_is_told_how_large_it_would_be() {
    let bench = Bench::new().await;
    let text = || Kind::StringVal("SECRETVALUE".repeat(80));
    let names: Vec<String> = (0..900).map(|i| format!("k{i:03}")).collect();
    let large = Record {
        features: names.iter().map(|name| (FeatureName::parse(name).unwrap(), Value { kind: Some(text()) })).collect(),
        ..record([])
    };
    let base = large.features.as_bytes().len();
    bench.write(upsert("m", large)).await;
    let before = bench.read("m").await.unwrap();
    let (receipt, state) = bench.write(upsert("m", merge([("a", zeros(1_048_400))]))).await;
    assert_eq!(receipt.outcome, Outcome::RecordTooLarge { bytes: base + 1_048_400 + 19 });
    assert_eq!((&state, bench.read("m").await.unwrap()), (&before, before.clone()));
    // What fits is merged, though the server could not tell.
    let (receipt, state) =
        bench.write(upsert("m", merge([("a", zeros(100_000)), ("k000", Kind::BoolVal(true))]))).await;
    assert_eq!((receipt.outcome, snapshot(&state).features.len()), (Outcome::Written, 901));
    assert_eq!(bench.read("m").await.unwrap(), state);
    // The same twice is a repeat.
    let again = upsert("m", merge([("a", zeros(100_001))]));
    let first = bench.write(again.clone()).await;
    assert_eq!(bench.write(again).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_without_room_beside_what_is_not_ours_is_too_large_and_no_bug() {
    let bench = Bench::new().await;
    bench.write(upsert("full", record([("a", Kind::Int64Val(1))]))).await;
    bench.edit("full", doc! { "$set": { "theirs": "SECRETVALUE".repeat(15 << 16) } }).await;
    let before = bench.read("full").await.unwrap();
    let half = || zeros(400_000);
    for write in [upsert("full", record([("b", half())])), upsert("full", merge([("b", half())]))] {
        for batch in [false, true] {
            let write = Write { request_id: request_id(), ..write.clone() };
            let answer = match batch {
                false => bench.store.write(write, soon()).await.map(|(receipt, _)| receipt),
                true => bench.store.write_batch(vec![write], soon()).await.remove(0),
            };
            let outcome = answer.map(|receipt| (receipt.outcome, receipt.revision));
            assert!(
                matches!(outcome, Ok((Outcome::DocumentTooLarge { .. }, revision)) if revision == before.revision()),
                "{outcome:?}"
            );
        }
    }
    assert_eq!(bench.read("full").await.unwrap(), before);
    // What is small by itself goes to MongoDB in another way.
    bench.write(upsert("brim", record([("a", Kind::Int64Val(1))]))).await;
    bench.edit("brim", doc! { "$set": { "theirs": "x".repeat((16 << 20) - 2000) } }).await;
    let small = || Kind::StringVal("x".repeat(4000));
    for record in [record([("b", small())]), merge([("b", small())])] {
        let answer = bench.store.write(upsert("brim", record), soon()).await.map(|(receipt, _)| receipt.outcome);
        assert!(matches!(answer, Ok(Outcome::DocumentTooLarge { .. })), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_writes_of_one_record_are_a_few_updates() {
    let bench = Bench::new().await;
    bench.write(upsert("other", record([]))).await;
    let before = updates(&bench).await;
    let mut writes: Vec<Write> =
        (0..1000).map(|i| upsert("hot", merge([(&*format!("f{}", i % 50), Kind::Int64Val(i))]))).collect();
    writes.push(upsert("cold", record([])));
    let answers = bench.store.write_batch(writes, soon()).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|receipt| receipt.outcome == Outcome::Written)));
    let after = updates(&bench).await;
    assert!(after - before <= 4, "{} updates", after - before);
    assert_eq!(bench.snapshot("hot").await.features.len(), 50);
}

/// Writes of the collection since it was made, by the server's own count.
async fn updates(bench: &Bench) -> i64 {
    let stages = vec![doc! { "$collStats": { "latencyStats": {} } }];
    let mut found = bench.features().aggregate(stages).await.unwrap();
    let stats = found.try_next().await.unwrap().unwrap();
    stats.get_document("latencyStats").unwrap().get_document("writes").unwrap().get_i64("ops").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_repeats_a_value() {
    let bench = Bench::new().await;
    bench.write(upsert("first", record([("secret", Kind::StringVal("SECRETVALUE".into()))]))).await;
    let index = doc! { "createIndexes": "features", "indexes": [
        { "key": { "features.secret": 1 }, "name": "theirs", "unique": true,
          "partialFilterExpression": { "features.secret": { "$exists": true } } },
    ] };
    bench.database.run_command(index).await.unwrap();
    let secret = |id: &str| upsert(id, record([("secret", Kind::StringVal("SECRETVALUE".into()))]));
    let mut errors = failures(&bench, secret).await;
    bench.database.run_command(doc! { "dropIndexes": "features", "index": "theirs" }).await.unwrap();
    let validator = doc! { "collMod": "features", "validator": { "features.secret": { "$exists": false } } };
    bench.database.run_command(validator).await.unwrap();
    errors.extend(failures(&bench, secret).await);
    assert_eq!(errors.len(), 8);
    for (error, code) in errors.iter().zip([["11000"; 4], ["121"; 4]].concat()) {
        let error = format!("{error} {error:?}");
        assert!(!error.contains("SECRET") && error.contains(code), "{error}");
    }
}

/// The errors of a write alone, of one in a batch, of two of one record, and of a large one.
async fn failures(bench: &Bench, secret: impl Fn(&str) -> Write) -> Vec<StoreError> {
    let mut large = secret("large");
    if let Change::Upsert(record) = &mut large.change {
        let more = record_features([("more", zeros(40_000))]);
        record.features = more.over(&record.features);
    }
    let two = bench.store.write_batch(vec![secret("two"), secret("two")], soon()).await;
    vec![
        bench.store.write(secret("alone"), soon()).await.unwrap_err(),
        bench.store.write_batch(vec![secret("one"), delete("other")], soon()).await.remove(0).unwrap_err(),
        two.into_iter().next_back().unwrap().unwrap_err(),
        bench.store.write(large, soon()).await.unwrap_err(),
    ]
}

fn record_features<const N: usize>(features: [(&str, Kind); N]) -> featurestore::record::encoding::EncodedFeatures {
    record(features).features
}

#[test]
fn the_bound_leaves_room_for_what_stands_beside_the_features() {
    let requests: Vec<Document> = (0..8)
        .map(|_| {
            doc! { "id": "c:".to_owned() + &"x".repeat(128), "rev": 1_i64, "outcome": "document_too_large",
            "number": 1_i64, "document": 1_i64, "at": bson::DateTime::now() }
        })
        .collect();
    let beside = doc! { "_id": { "view": "v".repeat(63), "entity_id": "x".repeat(512) }, "requests": requests };
    let bytes = RawDocumentBuf::try_from(&beside).unwrap().as_bytes().len();
    assert!(MAX_DOCUMENT_BYTES + bytes < 16 << 20);
}
