//! A document that breaks a rule of ours is DATA_LOSS: for reads, and for every write that needs what stands. Nothing is
//! changed then. A plain upsert and a delete take its place.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bson::{Binary, Bson, DateTime, Decimal128, Regex, Timestamp, oid::ObjectId, spec::BinarySubtype};
use featurestore::{
    proto::{Int64List, StringList},
    record::Millis,
};
use futures_util::StreamExt as _;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::*;

/// A record whose document has every field that a server writes.
fn whole() -> Record {
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) };
    let object = prost_types::Struct { fields: [("k".to_owned(), text("v"))].into() };
    let features = [
        ("a", Kind::Int32Val(1)),
        ("f", Kind::FloatVal(0.5)),
        ("list", Kind::Int64ListVal(Int64List { val: vec![1, 2] })),
        ("s", Kind::StructVal(object)),
        ("tags", Kind::StringListVal(StringList { val: vec!["x".to_owned()] })),
    ];
    Record { model_version: "v1".into(), ..record(features) }
}

/// `levels` lists in each other.
fn nested(levels: usize) -> Bson {
    (0..levels).fold(Bson::from(1), |inner, _| Bson::from(vec![inner]))
}

/// Values of every type that MongoDB has and a shell can type.
fn values() -> Vec<Bson> {
    let at = |millis| Bson::DateTime(DateTime::from_millis(millis));
    vec![
        "text".into(),
        "".into(),
        true.into(),
        false.into(),
        0.into(),
        7.into(),
        (-3).into(),
        1.5.into(),
        7.0.into(),
        f64::NAN.into(),
        f64::INFINITY.into(),
        1e300.into(),
        0_i64.into(),
        (1_i64 << 53).into(),
        i64::MAX.into(),
        i64::MIN.into(),
        ((1_i64 << 53) as f64).into(),
        Bson::Decimal128("7".parse::<Decimal128>().unwrap()),
        Bson::Null,
        doc! {}.into(),
        doc! { "a": 1 }.into(),
        doc! { "mean radius": 1 }.into(),
        doc! { "a": ObjectId::new() }.into(),
        doc! { "a": { "b": DateTime::from_millis(1) } }.into(),
        doc! { "a": { "b": nested(3) } }.into(),
        doc! { "a": { "b": nested(30) } }.into(),
        doc! { "a": { "b": nested(60) } }.into(),
        doc! { "a": [1, "two"] }.into(),
        doc! { "a": [1, 2.5, 3_i64] }.into(),
        doc! { "a": [[1]] }.into(),
        doc! { "a": [null] }.into(),
        doc! { "f": "six" }.into(),
        doc! { "f": 6.5 }.into(),
        doc! { "f": 40 }.into(),
        Bson::Array(vec![]),
        Bson::Array(vec!["x".into(), doc! { "id": 1 }.into()]),
        at(0),
        at(i64::MAX),
        at(i64::MIN),
        at(253_402_300_799_999),
        at(253_402_300_800_000),
        Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0xff, 1] }),
        Bson::ObjectId(ObjectId::new()),
        Bson::RegularExpression(Regex { pattern: "x".try_into().unwrap(), options: "".try_into().unwrap() }),
        Bson::Timestamp(Timestamp { time: 1, increment: 1 }),
        Bson::MinKey,
        Bson::JavaScriptCode("1".to_owned()),
    ]
}

const FIELDS: [&str; 12] = [
    "rev",
    "features",
    "deleted",
    "requests",
    "event_time",
    "write_time",
    "expire_at",
    "model_version",
    "kinds",
    "features.a",
    "features.s",
    "kinds.s",
];

fn is_corrupt<T: std::fmt::Debug>(answer: &Result<T, StoreError>, id: &str) -> bool {
    matches!(answer, Err(StoreError::Corrupt(text)) if text.contains("customers") && text.contains(&format!("{id:?}")))
}

/// Whether a write needs more of what stands than that it stands.
async fn dependent_writes(bench: &Bench, id: &str) -> Vec<Write> {
    let revision = bench.document(id).await.and_then(|document| document.get_i64("rev").ok()).unwrap_or(9);
    vec![
        upsert(id, merge([("new", Kind::Int32Val(3))])),
        Write { if_revision: Some(Revision(0)), ..upsert(id, record([])) },
        Write { if_revision: Some(Revision(revision)), ..upsert(id, record([])) },
        Write { if_revision: Some(Revision(revision)), ..delete(id) },
    ]
}

/// Does each write that needs the document alone and in a batch with others: it is DATA_LOSS and nothing is changed.
async fn is_data_loss(bench: &Bench, id: &str, writes: Vec<Write>, what: &str) {
    let before = bench.document(id).await;
    for write in writes {
        let alone = bench.store.write(write.clone(), soon()).await;
        assert!(is_corrupt(&alone, id), "{what}: {write:?} was answered {alone:?}");
        let batch =
            vec![upsert(&format!("before {id}"), record([])), write.clone(), upsert(&format!("after {id}"), merge([]))];
        let answers = bench.store.write_batch(batch, soon()).await;
        assert!(is_corrupt(&answers[1], id), "{what}: {write:?} in a batch was answered {:?}", answers[1]);
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{what}: the others of the batch: {answers:?}");
        assert_eq!(format!("{:?}", bench.document(id).await), format!("{before:?}"), "{what}: {write:?} changed it");
    }
}

/// A plain upsert and a delete take the place of what cannot be read, and what they leave can be.
async fn is_mended(bench: &Bench, id: &str, what: &str, damage: &Document) {
    let (receipt, state) = bench.write(upsert(id, record([("a", Kind::Int32Val(2))]))).await;
    assert_eq!(receipt.outcome, Outcome::Written, "{what}");
    assert_eq!(snapshot(&state).features.len(), 1, "{what}");
    assert_eq!(bench.read(id).await, Ok(state), "{what}");

    bench.features().update_one(by_id(id), damage.clone()).await.unwrap();
    let answers = bench.store.write_batch(vec![upsert(id, record([]))], soon()).await;
    assert_eq!(answers[0].as_ref().unwrap().outcome, Outcome::Written, "{what}");
    assert_eq!(bench.snapshot(id).await.features.len(), 0, "{what}");

    bench.write(upsert(id, whole())).await;
    bench.features().update_one(by_id(id), damage.clone()).await.unwrap();
    let was_read = bench.read(id).await;
    let (receipt, state) = bench.write(delete(id)).await;
    assert!(was_read.is_ok() || receipt.outcome == Outcome::Deleted, "{what}: {receipt:?}");
    assert_eq!(state, State::Tombstone(receipt.revision), "{what}");
    assert_eq!(bench.read(id).await, Ok(state), "{what}");
}

#[tokio::test]
async fn what_breaks_a_rule_is_data_loss_for_whoever_needs_it_and_a_replacement_mends_it() {
    let bench = Bench::new().await;
    let unset = ["rev", "features", "event_time", "write_time"].map(|field| (field, doc! { "$unset": { field: 1 } }));
    let name = ("features.a", doc! { "$set": { "features.mean radius": 1 } });
    let set = FIELDS.iter().flat_map(|field| values().into_iter().map(move |value| (*field, value)));
    let set = set.map(|(field, value)| (field, doc! { "$set": { field: value } }));
    let damages: Vec<(&str, Document)> = unset.into_iter().chain([name]).chain(set).collect();
    let cases = damages.len();
    let tries = damages.into_iter().enumerate().map(|(number, (field, damage))| {
        let bench = &bench;
        async move { usize::from(breaks(bench, &format!("broken {number}"), field, &damage).await) }
    });
    let broken: Vec<usize> = futures_util::stream::iter(tries).buffer_unordered(12).collect().await;
    let broken: usize = broken.into_iter().sum();
    assert!(broken > 200, "only {broken} of {cases} damages broke something");
}

/// Tries one damage, and says whether it broke a rule.
async fn breaks(bench: &Bench, id: &str, field: &str, damage: &Document) -> bool {
    let what = damage.to_string();
    bench.write(upsert(id, whole())).await;
    bench.features().update_one(by_id(id), damage.clone()).await.unwrap();
    let read = bench.read(id).await;
    assert!(read.is_ok() || is_corrupt(&read, id), "{what}: {read:?}");
    // Reads do without the memory of requests.
    let requests = bench.document(id).await.unwrap().get("requests").cloned();
    let forgets = field == "requests" && !matches!(requests, Some(Bson::Array(_)));
    if read.is_ok() && !forgets {
        return false;
    }
    let mut writes = dependent_writes(bench, id).await;
    // An event time is compared with the times that stand; the features do not matter to it.
    if !field.starts_with("features") && !field.starts_with("kinds") {
        writes.push(upsert(id, Record { event_time: Some(Millis(1)), ..record([]) }));
    }
    is_data_loss(bench, id, writes, &what).await;
    if !forgets {
        is_mended(bench, id, &what, damage).await;
    }
    true
}

/// A feature's value as somebody may type it, some of it no value of ours.
fn typed() -> impl Strategy<Value = Bson> {
    let leaf = prop_oneof![
        4 => any::<i32>().prop_map(Bson::from),
        2 => any::<f64>().prop_map(Bson::from),
        2 => "[a-z]{0,3}".prop_map(Bson::from),
        1 => any::<bool>().prop_map(Bson::from),
        1 => Just(Bson::Null),
        1 => any::<i64>().prop_map(Bson::from),
        1 => Just(Bson::DateTime(DateTime::from_millis(5))),
        1 => Just(Bson::ObjectId(ObjectId::from_bytes([7; 12]))),
        1 => Just(Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1] })),
    ];
    leaf.prop_recursive(7, 24, 3, |inner| {
        let fields = proptest::collection::vec(("[a-z$. ]{1,3}", inner.clone()), 0..3);
        prop_oneof![
            proptest::collection::vec(inner, 0..3).prop_map(Bson::Array),
            fields.prop_map(|fields| Bson::Document(fields.into_iter().collect())),
        ]
    })
}

#[test]
fn a_merge_goes_on_exactly_where_a_read_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new());
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let (readable, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    TestRunner::new(config)
        .run(&proptest::collection::vec(typed(), 1..3), |values| {
            runtime.block_on(async {
                bench.write(upsert("a", whole())).await;
                for (number, value) in values.iter().enumerate() {
                    let set = doc! { "$set": { format!("features.typed{number}"): value.clone() } };
                    bench.features().update_one(by_id("a"), set).await.unwrap();
                }
                let read = bench.read("a").await;
                let writes = [false, true].map(|batch| (batch, upsert("a", merge([("n", Kind::BoolVal(batch))]))));
                for (batch, write) in writes {
                    let answer = match batch {
                        false => bench.store.write(write, soon()).await.map(|(receipt, _)| receipt),
                        true => bench.store.write_batch(vec![write], soon()).await.remove(0),
                    };
                    match &read {
                        Ok(before) => {
                            assert_eq!(answer.unwrap().outcome, Outcome::Written, "{values:?}");
                            let (before, after) = (snapshot(before), bench.snapshot("a").await);
                            assert!(before.features.keys().all(|name| after.features.contains_key(name)), "{values:?}");
                        }
                        Err(_) => assert!(is_corrupt(&answer, "a"), "{values:?}: {answer:?}"),
                    }
                }
                if read.is_ok() { &readable } else { &broken }.fetch_add(1, Relaxed);
            });
            Ok(())
        })
        .unwrap();
    let (readable, broken) = (readable.into_inner(), broken.into_inner());
    assert!(readable > 20 && broken > 20, "{readable} readable, {broken} broken");
}
