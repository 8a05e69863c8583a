//! The pipeline on a real server does what `apply` does: random histories of one key, step by step.

use featurestore::{
    record::{Clock, Millis},
    store::apply::{Content, Document as Stored, apply},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::*;

#[derive(Clone, Debug)]
struct Step {
    request: u8,
    /// None; 0; the present revision; another.
    if_revision: Option<u8>,
    change: Option<Fields>,
    batch: bool,
}

#[derive(Clone, Debug)]
struct Fields {
    merge: bool,
    features: Vec<(u8, u8)>,
    model_version: &'static str,
    /// Seconds from the start.
    event_time: Option<i64>,
    lifetime: Option<Lifetime>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lifetime = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Lifetime::Forever)),
        1 => Just(Some(Lifetime::Ttl(Duration::from_millis(1)))),
        1 => Just(Some(Lifetime::Ttl(Duration::from_secs(60)))),
    ];
    let features = proptest::collection::vec((0..5_u8, 0..8_u8), 0..4);
    let fields = (any::<bool>(), features, prop_oneof![Just(""), Just("v1"), Just("v2")]);
    let fields = (fields, proptest::option::of(-3..3_i64), lifetime);
    let fields = fields.prop_map(|((merge, features, model_version), event_time, lifetime)| Fields {
        merge,
        features,
        model_version,
        event_time,
        lifetime,
    });
    let change = prop_oneof![5 => fields.prop_map(Some), 1 => Just(None)];
    let if_revision = prop_oneof![3 => Just(None), 1 => (0..3_u8).prop_map(Some)];
    let step = (0..14_u8, if_revision, change, any::<bool>());
    let step = step.prop_map(|(request, if_revision, change, batch)| Step { request, if_revision, change, batch });
    proptest::collection::vec(step, 1..16)
}

fn kind(number: u8) -> Kind {
    match number {
        0 => Kind::Int32Val(1),
        1 => Kind::FloatVal(0.1),
        2 => Kind::UnixTimestampVal(5),
        3 => Kind::StringVal("$rev".to_owned()),
        4 => Kind::DoubleVal(0.1),
        5 => Kind::FloatListVal(featurestore::proto::FloatList::default()),
        6 => Kind::NullVal(0),
        _ => Kind::Int64ListVal(featurestore::proto::Int64List { val: vec![1] }),
    }
}

fn to_write(step: &Step, stored: Option<&Stored>, start: Millis) -> Write {
    let change = step.change.as_ref().map_or(Change::Delete, |fields| {
        let feature = |(name, value): &(u8, u8)| {
            (FeatureName::parse(&format!("f{name}")).unwrap(), Value { kind: Some(kind(*value)) })
        };
        Change::Upsert(Record {
            mode: if fields.merge { WriteMode::Merge } else { WriteMode::Replace },
            features: fields.features.iter().map(feature).collect(),
            model_version: fields.model_version.into(),
            event_time: fields.event_time.map(|seconds| Millis(start.0 + seconds * 1000)),
            lifetime: fields.lifetime,
        })
    });
    let if_revision = step.if_revision.map(|which| match which {
        0 => Revision::NONE,
        1 => stored.map_or(Revision::NONE, Stored::revision),
        _ => Revision(12_345),
    });
    // A client's id stands for one operation; of others nobody looks what they stand for.
    let request_id = match step.request % 2 {
        0 => RequestId::of_client(&format!("r{}", step.request)),
        _ => RequestId(format!("r{}", step.request).into()),
    };
    Write { key: key("k"), request_id, if_revision, change }
}

async fn history(mongod: &Mongod, steps: &[Step]) {
    let rules = WriteRules { max_features: 4, max_record_bytes: 60, ..rules() };
    let bench = Bench::on(mongod, rules.clone()).await;
    let start = Clock::system().now();
    let mut model: Option<Stored> = None;
    for (number, step) in steps.iter().enumerate() {
        let write = to_write(step, model.as_ref(), start);
        let (receipt, state) = if step.batch {
            let receipt = bench.store.write_batch(vec![write.clone()], soon()).await.remove(0).unwrap();
            (receipt, bench.read("k").await.unwrap())
        } else {
            bench.write(write.clone()).await
        };
        // The server's clock is this machine's; a change tells exactly what it read.
        let document = bench.document("k").await;
        let changed = model.as_ref().map_or(Revision::NONE, Stored::revision) != receipt.revision;
        let written = document.as_ref().and_then(|document| document.get_datetime("write_time").ok());
        let now = match written {
            Some(at) if changed => Millis(at.timestamp_millis()),
            _ => Clock::system().now(),
        };
        let (expected, next) = apply(model.as_ref(), write.clone(), now, &rules);
        assert_eq!(receipt, expected, "step {number}");
        if next.is_some() {
            model = next;
        }
        check(model.as_ref(), document.as_ref(), &state, number);
        // What lives a millisecond has ended when the next step begins.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn check(model: Option<&Stored>, document: Option<&Document>, state: &State, step: usize) {
    let Some((model, document)) = model.zip(document) else {
        assert!(model.is_none() && document.is_none(), "step {step}");
        assert_eq!(*state, State::Absent);
        return;
    };
    match &model.content {
        Content::Record(expected) => assert_eq!(snapshot(state), expected.decode().unwrap(), "step {step}"),
        Content::Tombstone(revision) => assert_eq!(*state, State::Tombstone(*revision), "step {step}"),
    }
    let remembered: Vec<&str> = model.requests.iter().map(|request| &*request.id.0).collect();
    let requests = document.get_array("requests").unwrap();
    let stored: Vec<&str> = requests.iter().map(|r| r.as_document().unwrap().get_str("id").unwrap()).collect();
    assert_eq!(stored, remembered, "step {step}");
    let gc_at = document.get_datetime("gc_at").ok().map(|at| Millis(at.timestamp_millis()));
    assert_eq!(gc_at, model.collect_at, "step {step}");
    assert!(!document.contains_key("_attempt"));
}

#[test]
fn random_histories_equal_apply_on_a_replica_set() {
    random_histories(Mongod::shared_replica_set(), 40);
}

#[test]
fn random_histories_equal_apply_on_a_standalone_server() {
    random_histories(Mongod::shared_standalone(), 15);
}

fn random_histories(mongod: &Mongod, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(history(mongod, &steps));
        Ok(())
    });
    run.unwrap();
}
