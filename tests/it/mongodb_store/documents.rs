//! The documents as people see and edit them.

use bson::Bson;
use featurestore::proto::{BoolList, BytesList, DoubleList, FloatList, Int32List, Int64List, StringList};
use prost_types::{ListValue, Struct, Value as Json, value::Kind as JsonKind};

use super::*;

fn json(kind: JsonKind) -> Json {
    Json { kind: Some(kind) }
}

fn object<const N: usize>(fields: [(&str, JsonKind); N]) -> Kind {
    Kind::StructVal(Struct { fields: fields.into_iter().map(|(n, kind)| (n.to_owned(), json(kind))).collect() })
}

fn deep(levels: usize) -> JsonKind {
    (0..levels).fold(JsonKind::BoolValue(true), |inner, _| JsonKind::ListValue(ListValue { values: vec![json(inner)] }))
}

fn every_kind() -> Record {
    record([
        ("bytes", Kind::BytesVal(vec![0, 1, 255].into())),
        ("bytes_empty", Kind::BytesVal(Vec::new().into())),
        ("string", Kind::StringVal("$where: {} \0 \u{1F600}".to_owned())),
        ("string_empty", Kind::StringVal(String::new())),
        ("int32", Kind::Int32Val(i32::MIN)),
        ("int64", Kind::Int64Val(i64::MAX)),
        ("double", Kind::DoubleVal(f64::NAN)),
        ("double_minus_zero", Kind::DoubleVal(-0.0)),
        ("double_infinite", Kind::DoubleVal(f64::NEG_INFINITY)),
        ("float", Kind::FloatVal(0.1)),
        ("float_nan", Kind::FloatVal(f32::NAN)),
        ("float_max", Kind::FloatVal(f32::MAX)),
        ("bool", Kind::BoolVal(false)),
        ("time", Kind::UnixTimestampVal(i64::MIN)),
        ("null", Kind::NullVal(0)),
        ("bytes_list", Kind::BytesListVal(BytesList { val: vec![vec![1].into(), Vec::new().into()] })),
        ("string_list", Kind::StringListVal(StringList { val: vec![String::new(), "$a".to_owned()] })),
        ("int32_list", Kind::Int32ListVal(Int32List { val: vec![1, -1] })),
        ("int64_list", Kind::Int64ListVal(Int64List { val: vec![1, i64::MIN] })),
        ("double_list", Kind::DoubleListVal(DoubleList { val: vec![1.0, f64::NAN, -0.0] })),
        ("float_list", Kind::FloatListVal(FloatList { val: vec![0.1, f32::INFINITY] })),
        ("bool_list", Kind::BoolListVal(BoolList { val: vec![true, false] })),
        ("time_list", Kind::UnixTimestampListVal(Int64List { val: vec![0, i64::MAX] })),
        ("bytes_list_empty", Kind::BytesListVal(BytesList::default())),
        ("string_list_empty", Kind::StringListVal(StringList::default())),
        ("int32_list_empty", Kind::Int32ListVal(Int32List::default())),
        ("int64_list_empty", Kind::Int64ListVal(Int64List::default())),
        ("double_list_empty", Kind::DoubleListVal(DoubleList::default())),
        ("float_list_empty", Kind::FloatListVal(FloatList::default())),
        ("bool_list_empty", Kind::BoolListVal(BoolList::default())),
        ("time_list_empty", Kind::UnixTimestampListVal(Int64List::default())),
        ("struct", object([("a", JsonKind::NumberValue(1.0)), ("b", deep(3)), ("c", JsonKind::NullValue(0))])),
        ("struct_empty", object([])),
        ("struct_dollar", object([("$where", JsonKind::StringValue("sleep(1000)".to_owned()))])),
        ("struct_dot", object([("a.b", JsonKind::BoolValue(true))])),
        ("struct_nul", object([("a\0b", JsonKind::BoolValue(true))])),
        ("struct_no_key", object([("", JsonKind::BoolValue(true))])),
        ("struct_deep", object([("a", deep(45))])),
        ("a-b:c", Kind::BoolVal(true)),
        ("_id", Kind::StringVal("not the document's".to_owned())),
    ])
}

#[tokio::test]
async fn every_kind_of_value_reads_back_as_it_was_written() {
    for mongod in [Mongod::shared_replica_set(), Mongod::shared_standalone()] {
        let bench = Bench::on(mongod, rules()).await;
        // NaN equals nothing, so what is compared is the encoding.
        let expected = every_kind();
        let (receipt, state) = bench.write(upsert("a", expected.clone())).await;
        assert_eq!(receipt.outcome, Outcome::Written);
        assert_eq!(format!("{:?}", snapshot(&state).features), format!("{:?}", expected.features.decode()));
        assert_eq!(bench.read("a").await.unwrap(), state);

        let (_, merged) = bench.write(upsert("a", Record { mode: WriteMode::Merge, ..every_kind() })).await;
        assert_eq!(format!("{:?}", snapshot(&merged).features), format!("{:?}", expected.features.decode()));
        let receipts = bench.store.write_batch(vec![upsert("b", every_kind())], soon()).await;
        assert_eq!(receipts[0].as_ref().unwrap().outcome, Outcome::Written);
        assert_eq!(format!("{:?}", bench.snapshot("b").await.features), format!("{:?}", expected.features.decode()));
    }
}

#[tokio::test]
async fn an_analyst_finds_records_by_their_features() {
    let bench = Bench::new().await;
    for (id, utilization) in [("low", 0.25), ("high", 0.75)] {
        let features = [
            ("credit_utilization", Kind::FloatVal(utilization)),
            ("opened", Kind::UnixTimestampVal(1_700_000_000)),
            ("tags", Kind::StringListVal(StringList { val: vec!["gold".to_owned()] })),
        ];
        let record = Record { model_version: "v7".into(), ..record(features) };
        bench.write(upsert(id, record)).await;
    }
    let found = bench.features().find_one(doc! { "features.credit_utilization": { "$lt": 0.5 } }).await.unwrap();
    let document = found.unwrap();
    let fields: Vec<&str> = document.keys().map(String::as_str).collect();
    let expected = ["_id", "deleted", "event_time", "expire_at", "features", "gc_at", "kinds", "model_version"];
    let mut sorted = fields.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [&expected[..], &["requests", "rev", "write_time"]].concat());
    assert_eq!(document.get_document("_id").unwrap(), &doc! { "view": "customers", "entity_id": "low" });
    assert_eq!(document.get_document("kinds").unwrap(), &doc! { "credit_utilization": 6, "opened": 8, "tags": 12 });
    assert_eq!(document.get_str("model_version").unwrap(), "v7");
    assert!(matches!(document.get("rev"), Some(Bson::Int64(rev)) if *rev > 1_600_000_000_000_000));
    let (expire_at, gc_at) = (document.get_datetime("expire_at").unwrap(), document.get_datetime("gc_at").unwrap());
    assert_eq!(gc_at.timestamp_millis() - expire_at.timestamp_millis(), 24 * 3600 * 1000);
    let request = document.get_array("requests").unwrap()[0].as_document().unwrap();
    assert_eq!(request.get_str("outcome").unwrap(), "written");
    assert_eq!(request.get("rev"), document.get("rev"));

    let by_tag = doc! { "features.tags": "gold", "features.opened": { "$gt": 1_600_000_000 } };
    assert_eq!(bench.features().count_documents(by_tag).await.unwrap(), 2);
}

#[tokio::test]
async fn a_ttl_index_collects_what_is_past_its_time() {
    let bench = Bench::new().await;
    bench.write(upsert("kept", record([]))).await;
    bench.write(upsert("gone", record([]))).await;
    // Nobody waits for the index.
    let bound = Instant::now() + Duration::from_secs(20);
    let indexes = loop {
        let indexes = bench.database.run_command(doc! { "listIndexes": "features" }).await.unwrap();
        if indexes.to_string().contains(r#""key": { "gc_at": 1 }"#) {
            break indexes;
        }
        assert!(Instant::now() < bound, "no index was made: {indexes}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(indexes.to_string().contains(r#""expireAfterSeconds": 0"#), "{indexes}");
    bench.edit("gone", doc! { "$set": { "gc_at": bson::DateTime::from_millis(0) } }).await;
    let bound = Instant::now() + Duration::from_secs(20);
    // One concern only: a majority sees the collection a moment after the primary does.
    while bench.store.read(&[key("gone")], ReadConcern::Majority, soon()).await != [Ok(State::Absent)] {
        assert!(Instant::now() < bound, "the TTL index did not collect");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bench.document("kept").await.is_some());
}

#[tokio::test]
async fn after_a_hand_edit_the_bson_type_wins() {
    let bench = Bench::new().await;
    bench.write(upsert("a", every_kind())).await;
    bench
        .edit(
            "a",
            doc! { "$set": {
                "features.float": "text",
                "features.time": bson::DateTime::from_millis(-1),
                "features.double_list": [1, 2],
                "features.int32_list": [1, "two"],
                "features.float_list": "none",
                "features.string_list_empty": [1.5, 2],
                "features.new_list": [true],
                "features.new_empty": [],
                "features.new_time": bson::DateTime::from_millis(1500),
                "features.float_max": 1e300,
                "rev": 5.0,
            } },
        )
        .await;
    // One item of int32_list fits no list, and that makes the record unreadable, not absent.
    assert!(matches!(bench.read("a").await, Err(StoreError::Corrupt(text)) if text.contains("int32_list")));
    bench.edit("a", doc! { "$unset": { "features.int32_list": 1 } }).await;

    let edited = bench.snapshot("a").await;
    assert_eq!(edited.revision, Revision(5));
    assert_eq!(kind_of(&edited, "float"), &Kind::StringVal("text".to_owned()));
    assert_eq!(kind_of(&edited, "time"), &Kind::UnixTimestampVal(-1));
    assert_eq!(kind_of(&edited, "double_list"), &Kind::DoubleListVal(DoubleList { val: vec![1.0, 2.0] }));
    assert_eq!(kind_of(&edited, "float_list"), &Kind::StringVal("none".to_owned()));
    assert_eq!(kind_of(&edited, "string_list_empty"), &Kind::DoubleListVal(DoubleList { val: vec![1.5, 2.0] }));
    assert_eq!(kind_of(&edited, "new_list"), &Kind::BoolListVal(BoolList { val: vec![true] }));
    assert_eq!(kind_of(&edited, "new_empty"), &Kind::StringListVal(StringList::default()));
    assert_eq!(kind_of(&edited, "new_time"), &Kind::UnixTimestampVal(1));
    assert_eq!(kind_of(&edited, "float_max"), &Kind::DoubleVal(1e300));
    assert_eq!(kind_of(&edited, "int64_list_empty"), &Kind::Int64ListVal(Int64List::default()));

    // A merge keeps what it does not name, and its revision is above the typed one.
    let (receipt, merged) = bench.write(upsert("a", merge([("bool", Kind::BoolVal(true))]))).await;
    assert_eq!(receipt.outcome, Outcome::Written);
    assert!(receipt.revision > edited.revision);
    assert_eq!(kind_of(&snapshot(&merged), "new_time"), &Kind::UnixTimestampVal(1));
}

#[tokio::test]
async fn what_cannot_be_read_is_corrupt_for_its_key_alone_and_a_write_mends_it() {
    let bench = Bench::new().await;
    let damages = [
        doc! { "$set": { "features.a": bson::oid::ObjectId::new() } },
        doc! { "$set": { "features": "all of them" } },
        doc! { "$unset": { "features": 1 } },
        doc! { "$set": { "rev": "first" } },
        doc! { "$unset": { "rev": 1 } },
        doc! { "$set": { "rev": -3 } },
        doc! { "$set": { "expire_at": "tomorrow" } },
        doc! { "$unset": { "event_time": 1 } },
        doc! { "$set": { "model_version": 7 } },
        doc! { "$set": { "features.mean radius": 1 } },
    ];
    for (number, damage) in damages.iter().enumerate() {
        let id = format!("damaged {number}");
        bench.write(upsert(&id, record([("a", Kind::Int32Val(1))]))).await;
        bench.write(upsert("whole", record([]))).await;
        bench.edit(&id, damage.clone()).await;
        for concern in BOTH {
            let answers = bench.store.read(&[key("whole"), key(&id), key("absent")], concern, soon()).await;
            assert!(matches!(answers[0], Ok(State::Record(_))), "{damage}");
            assert!(matches!(answers[1], Err(StoreError::Corrupt(_))), "{damage}: {:?}", answers[1]);
            assert_eq!(answers[2], Ok(State::Absent));
        }
        let (receipt, _) = bench.write(upsert(&id, record([("a", Kind::Int32Val(2))]))).await;
        assert_eq!(receipt.outcome, Outcome::Written, "{damage}");
        assert_eq!(kind_of(&bench.snapshot(&id).await, "a"), &Kind::Int32Val(2));
    }
    // Reads and replacements do without the memory of requests.
    bench.edit("whole", doc! { "$set": { "requests": "none" } }).await;
    assert!(bench.read("whole").await.is_ok());
    let (receipt, _) = bench.write(upsert("whole", record([("b", Kind::FloatVal(1.0))]))).await;
    assert_eq!(receipt.outcome, Outcome::Written);

    // A write that was done and is repeated over a record that cannot be read has happened, and its error says so.
    let write = upsert("whole", record([("b", Kind::FloatVal(2.0))]));
    bench.write(write.clone()).await;
    bench.edit("whole", doc! { "$set": { "features.a": bson::oid::ObjectId::new() } }).await;
    let repeated = bench.store.write(write, soon()).await;
    assert!(matches!(repeated, Err(StoreError::DoneUnreadable(_))), "{repeated:?}");
}

#[tokio::test]
async fn values_that_look_like_code_stay_values() {
    let bench = Bench::new().await;
    let attempts =
        ["$where", "$rev", "$$ROOT", "$$NOW", "{\"$gt\": \"\"}", "'; return true; //", "a.b", "$_attempt.live"];
    for text in attempts {
        let id = RequestId(text.into());
        let features = [
            ("s", Kind::StringVal(text.to_owned())),
            ("l", Kind::StringListVal(StringList { val: vec![text.to_owned()] })),
            ("o", object([("$literal", JsonKind::StringValue(text.to_owned()))])),
            ("p", object([("p", JsonKind::StringValue(text.to_owned()))])),
        ];
        for mode in [WriteMode::Replace, WriteMode::Merge] {
            let record = Record { mode, model_version: text.into(), ..record(features.clone()) };
            let write = Write { request_id: id.clone(), ..upsert(text, record.clone()) };
            let write = if mode == WriteMode::Merge { upsert(text, record.clone()) } else { write };
            let (receipt, state) = bench.write(write).await;
            assert_eq!(receipt.outcome, Outcome::Written);
            assert_eq!(snapshot(&state).features, record.features.decode());
            assert_eq!(snapshot(&state).model_version, text);
        }
        let (repeated, _) = bench.write(Write { request_id: id, ..delete(text) }).await;
        assert_eq!(repeated.outcome, Outcome::Written, "the id of the first write was not remembered as it is");
        let (deleted, _) = bench.write(delete(text)).await;
        assert_eq!(deleted.outcome, Outcome::Deleted);
    }
    assert_eq!(bench.features().count_documents(doc! {}).await.unwrap(), attempts.len() as u64);
}

#[tokio::test]
async fn an_attempt_on_nothing_leaves_nothing() {
    let rules = WriteRules { max_features: 1, max_record_bytes: 100, ..rules() };
    let bench = Bench::on(Mongod::shared_replica_set(), rules).await;
    let two = || record([("a", Kind::BoolVal(true)), ("b", Kind::BoolVal(true))]);
    let large = || record([("a", Kind::StringVal("x".repeat(200)))]);
    let attempts = || {
        vec![
            (delete("none"), Outcome::NotFound),
            (Write { if_revision: Some(Revision(7)), ..delete("none") }, mismatch(0)),
            (Write { if_revision: Some(Revision(7)), ..upsert("none", record([])) }, mismatch(0)),
            (upsert("none", two()), Outcome::TooManyFeatures { count: 2 }),
            (upsert("none", large()), Outcome::RecordTooLarge { bytes: 212 }),
        ]
    };
    for (write, outcome) in attempts() {
        let nothing = Receipt { outcome, revision: Revision::NONE, tombstone: false };
        assert_eq!(bench.write(write.clone()).await, (nothing, State::Absent));
        assert_eq!(bench.store.write_batch(vec![write], soon()).await, [Ok(nothing)]);
    }
    assert_eq!(bench.features().count_documents(doc! {}).await.unwrap(), 0);

    // The merged result is what the limits hold for, and nothing of it is kept when it is too much.
    let (first, before) = bench.write(upsert("some", record([("a", Kind::StringVal("x".repeat(60)))]))).await;
    let too_many = bench.write(upsert("some", merge([("b", Kind::BoolVal(true))]))).await;
    let outcome = Outcome::TooManyFeatures { count: 2 };
    assert_eq!(too_many, (Receipt { outcome, revision: first.revision, tombstone: false }, before));
    let (large, _) = bench.write(upsert("some", merge([("a", Kind::StringVal("x".repeat(200)))]))).await;
    assert_eq!(large.outcome, Outcome::RecordTooLarge { bytes: 212 });
}

fn mismatch(stored: i64) -> Outcome {
    Outcome::RevisionMismatch { stored: Revision(stored) }
}

#[tokio::test]
async fn concurrent_writers_lose_nothing() {
    let bench = Bench::new().await;
    // Merges of different features into one record that none of them has yet: every one is kept.
    let names: Vec<String> = (0..24).map(|n| format!("f{n}")).collect();
    let writes = names.iter().map(|name| bench.write(upsert("merged", merge([(name, Kind::BoolVal(true))]))));
    let receipts = futures_util::future::join_all(writes).await;
    let mut revisions: Vec<i64> = receipts.iter().map(|(receipt, _)| receipt.revision.0).collect();
    assert!(receipts.iter().all(|(receipt, _)| receipt.outcome == Outcome::Written));
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), names.len());
    assert_eq!(bench.snapshot("merged").await.features.len(), names.len());

    // Of many that want to be the first, one is.
    let first = |n: i32| Write { if_revision: Some(Revision(0)), ..upsert("one", record([("n", Kind::Int32Val(n))])) };
    let receipts = futures_util::future::join_all((0..16).map(|n| bench.write(first(n)))).await;
    assert_eq!(receipts.iter().filter(|(receipt, _)| receipt.outcome == Outcome::Written).count(), 1);

    // Batches that meet in the same new keys.
    let batch = || (0..50).map(|n| upsert(&format!("b{n}"), record([]))).collect::<Vec<_>>();
    let batches = (0..4).map(|_| bench.store.write_batch(batch(), soon()));
    for receipts in futures_util::future::join_all(batches).await {
        assert!(receipts.iter().all(|r| r.as_ref().is_ok_and(|r| r.outcome == Outcome::Written)), "{receipts:?}");
    }
}

#[tokio::test]
async fn a_batch_does_writes_of_equal_keys_in_order_and_answers_a_repeat() {
    for mongod in [Mongod::shared_replica_set(), Mongod::shared_standalone()] {
        let bench = Bench::on(mongod, rules()).await;
        let mut writes: Vec<Write> = (0..12)
            .map(|n| upsert("same", merge([("n", Kind::Int32Val(n)), (&format!("f{n}"), Kind::Int32Val(n))])))
            .collect();
        writes.insert(3, delete("same"));
        writes.push(upsert("other", record([])));
        writes.push(delete("absent"));
        let receipts: Vec<Receipt> =
            bench.store.write_batch(writes.clone(), soon()).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(receipts[3].outcome, Outcome::Deleted);
        assert_eq!(receipts[14].outcome, Outcome::NotFound);
        assert!(receipts[..13].windows(2).all(|pair| pair[0].revision < pair[1].revision));
        let stored = bench.snapshot("same").await;
        assert_eq!(kind_of(&stored, "n"), &Kind::Int32Val(11));
        assert_eq!(stored.features.len(), 10, "what stood before the delete is gone: f3 to f11 and n");

        // What is still remembered answers its first outcome and changes nothing.
        let repeated = bench.store.write_batch(writes.split_off(8), soon()).await;
        let outcomes: Vec<Outcome> = repeated.into_iter().map(|receipt| receipt.unwrap().outcome).collect();
        assert_eq!(outcomes[..5], [Outcome::Written; 5]);
        assert_eq!(bench.snapshot("same").await, stored);
    }
}

#[tokio::test]
async fn a_batch_larger_than_a_command_is_split() {
    let bench = Bench::new().await;
    let large = || record([("text", Kind::StringVal("x".repeat(900_000)))]);
    let writes: Vec<Write> = (0..40).map(|n| upsert(&format!("large {n}"), large())).collect();
    let receipts = bench.store.write_batch(writes, soon()).await;
    assert!(receipts.iter().all(|r| r.as_ref().is_ok_and(|r| r.outcome == Outcome::Written)), "{receipts:?}");
    let keys: Vec<RecordKey> = (0..40).rev().map(|n| key(&format!("large {n}"))).collect();
    // One read answers 16 MiB of records at most.
    for keys in keys.chunks(4) {
        let states = bench.store.read(keys, ReadConcern::Majority, soon()).await;
        assert!(states.iter().all(|state| matches!(state, Ok(State::Record(_)))), "{states:?}");
    }
}

#[tokio::test]
async fn servers_that_start_together_agree_on_one_epoch() {
    for mongod in [Mongod::shared_replica_set(), Mongod::shared_standalone()] {
        let bench = Bench::on(mongod, rules()).await;
        let calls = (0..16).map(|_| bench.store.epoch(soon()));
        let mut epochs: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap).collect();
        let first = epochs[0].clone();
        epochs.retain(|epoch| epoch.epoch != first.epoch);
        assert!(epochs.is_empty() && !first.dirty);

        assert!(bench.store.mark_dirty(soon()).await.unwrap().dirty);
        assert!(bench.store.epoch(soon()).await.unwrap().dirty);
        let renewals = (0..4).map(|_| bench.store.renew_epoch(first.epoch, soon()));
        let renewed = futures_util::future::join_all(renewals).await;
        let second = bench.store.epoch(soon()).await.unwrap();
        assert_ne!(second.epoch, first.epoch);
        assert!(!second.dirty);
        assert!(renewed.into_iter().all(|state| state.is_ok_and(|state| state.epoch == second.epoch && !state.dirty)));
    }
}

#[tokio::test]
async fn an_expired_record_stays_readable_and_counts_as_absent() {
    let bench = Bench::new().await;
    let brief =
        Record { lifetime: Some(Lifetime::Ttl(Duration::from_millis(1))), ..record([("a", Kind::BoolVal(true))]) };
    let (first, _) = bench.write(upsert("brief", brief)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let expired = bench.snapshot("brief").await;
    assert_eq!(expired.features.len(), 1);
    let (not_found, _) = bench.write(delete("brief")).await;
    assert_eq!(not_found, Receipt { outcome: Outcome::NotFound, revision: first.revision, tombstone: false });
    let again = Write { if_revision: Some(Revision(0)), ..upsert("brief", merge([("b", Kind::BoolVal(true))])) };
    let (receipt, state) = bench.write(again).await;
    assert_eq!(receipt.outcome, Outcome::Written);
    assert!(receipt.revision > first.revision);
    assert_eq!(snapshot(&state).features.len(), 1);
}
