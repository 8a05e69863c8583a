//! Every kind of value reads back exactly as it was written.

use std::{collections::BTreeMap, sync::Arc};

use featurestore::{
    proto::{
        BoolList, BytesList, DoubleList, FloatList, Int32List, Int64List, StringList, Value,
        value::Kind::{self, *},
    },
    record::{EntityId, FeatureName, FeatureView, RecordKey},
    store::Store,
};
use prost_types::{ListValue, Struct, Value as Json, value::Kind as JsonKind};

use super::fixture::*;

pub(crate) async fn every_kind_of_value_reads_back_as_it_was_written(store: Arc<dyn Store>) {
    for (kind_name, kinds) in kinds() {
        let key = key(kind_name);
        let mut draft = put(&key);
        for (i, kind) in kinds.iter().enumerate() {
            draft = draft.kind(&format!("{kind_name}_{i}"), kind.clone());
        }
        draft.written(&store).await;
        let stored = record(&store, &key).await;
        assert_eq!(stored.features.len(), kinds.len());
        for (i, kind) in kinds.into_iter().enumerate() {
            let name = format!("{kind_name}_{i}");
            assert_same(&name, &stored.features[name.as_str()], &Value { kind: Some(kind) });
        }
        // A merge of something else leaves them as they are.
        merge(&key).int("other", 1).written(&store).await;
        let merged = record(&store, &key).await;
        for (name, value) in &stored.features {
            assert_same(name.as_str(), &merged.features[name.as_str()], value);
        }
    }
}

pub(crate) async fn names_and_texts_that_look_like_operators_are_only_texts(store: Arc<dyn Store>) {
    let ids = ["$set", "$$ROOT", "a.b", "a..b.", "CUST 1", "ключ \u{1F600}", "{\"a\":1}", "a:b{c}", &"é".repeat(256)];
    for (i, id) in ids.into_iter().enumerate() {
        let view = FeatureView::parse(&format!("odd_{i}_{:08x}", rand::random::<u32>())).unwrap();
        let key = RecordKey { view, entity_id: EntityId::parse(id).unwrap() };
        let mut draft = put(&key).version("$model.version").request(&format!("$$NOW {i}"));
        for name in ["_id", "rev", "features", "_:-", "constructor", "__proto__", &"n".repeat(128)] {
            draft = draft.kind(name, StringVal(format!("${name}.$$REMOVE")));
        }
        let written = draft.clone();
        draft.written(&store).await;
        merge(&key).kind("merged", StringVal("$features".to_owned())).version("$$ROOT").written(&store).await;
        let stored = record(&store, &key).await;
        assert_eq!(stored.model_version, "$$ROOT");
        assert_eq!(stored.features.len(), 8);
        let featurestore::store::Change::Upsert(written) = written.0.change else { unreachable!() };
        for (name, value) in &written.features.decode() {
            assert_same(name.as_str(), &stored.features[name.as_str()], value);
        }
        let repeated = put(&key).request(&format!("$$NOW {i}")).int("again", 1).on(&store).await;
        assert_eq!(repeated.1.revision(), stored.revision);
    }
}

pub(crate) async fn a_record_may_have_no_features(store: Arc<dyn Store>) {
    let key = key("empty");
    put(&key).version("v").written(&store).await;
    let stored = record(&store, &key).await;
    assert!(stored.features.is_empty());
    assert_eq!(stored.model_version, "v");
}

pub(crate) async fn views_with_the_same_entity_are_apart(store: Arc<dyn Store>) {
    let first = key("apart");
    let second = RecordKey { view: FeatureView::parse("contract_2").unwrap(), ..first.clone() };
    put(&first).int("a", 1).written(&store).await;
    put(&second).int("a", 2).written(&store).await;
    delete(&first).on(&store).await;
    assert_eq!(int_of(&record(&store, &second).await, "a"), 2);
}

pub(crate) async fn names_keep_their_order_in_the_stored_bytes(store: Arc<dyn Store>) {
    let key = key("sorted");
    let order = ["Z", "_", "a", "a-b", "a1", "a:b", "aa", "b"];
    let mut draft = put(&key);
    for name in order.iter().rev() {
        draft = draft.int(name, 1);
    }
    draft.written(&store).await;
    let featurestore::record::State::Record(stored) = read(&store, &key).await else { panic!("no record") };
    let name = |bytes: &[u8]| FeatureName::parse(std::str::from_utf8(bytes).unwrap()).unwrap();
    let names: Vec<_> = stored.entries().map(|entry| name(entry.unwrap().name)).collect();
    assert!(names.is_sorted());
    assert_eq!(names.len(), order.len());
}

/// All kinds, each with the values at its edges.
pub(crate) fn kinds() -> Vec<(&'static str, Vec<Kind>)> {
    let texts = ["", "a", "\u{0}", "a\u{0}b", "$features", "ключ \u{1F600} \u{FEFF}", "\u{7f}\u{2028}\"\\"];
    let texts = texts.map(str::to_owned);
    let bytes = [vec![], vec![0], vec![0xff, 0xfe, 0x00, 0x80], (0..=255).collect::<Vec<u8>>()];
    let doubles = [
        0.0,
        -0.0,
        1.5,
        f64::MIN,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        f64::EPSILON,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        9_007_199_254_740_993.0,
    ];
    let floats = [
        0.0,
        -0.0,
        0.1,
        f32::MIN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-45,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_217.0,
    ];
    let ints = [0, -1, 1, i32::MIN, i32::MAX];
    let longs = [0, -1, i64::MIN, i64::MAX, (1 << 53) + 1, i64::from(i32::MAX), i64::from(i32::MIN) - 1];
    let times = [0, -1, i64::MIN, i64::MAX, 253_402_300_800, -62_135_596_801];
    vec![
        ("bytes", bytes.iter().cloned().map(|v| BytesVal(v.into())).collect()),
        ("string", texts.iter().cloned().map(StringVal).chain([StringVal("x".repeat(5_000))]).collect()),
        ("int32", ints.map(Int32Val).to_vec()),
        ("int64", longs.map(Int64Val).to_vec()),
        ("double", doubles.map(DoubleVal).to_vec()),
        ("float", floats.map(FloatVal).to_vec()),
        ("bool", vec![BoolVal(true), BoolVal(false)]),
        ("unix_timestamp", times.map(UnixTimestampVal).to_vec()),
        ("bytes_list", lists(&bytes, |val| BytesListVal(BytesList { val: val.into_iter().map(Into::into).collect() }))),
        ("string_list", lists(&texts, |val| StringListVal(StringList { val }))),
        ("int32_list", lists(&ints, |val| Int32ListVal(Int32List { val }))),
        ("int64_list", lists(&longs, |val| Int64ListVal(Int64List { val }))),
        ("double_list", lists(&doubles, |val| DoubleListVal(DoubleList { val }))),
        ("float_list", lists(&floats, |val| FloatListVal(FloatList { val }))),
        ("bool_list", lists(&[true, false, true], |val| BoolListVal(BoolList { val }))),
        ("unix_timestamp_list", lists(&times, |val| UnixTimestampListVal(Int64List { val }))),
        ("null", vec![NullVal(0)]),
        ("struct", vec![StructVal(Struct::default()), StructVal(odd_struct(3))]),
    ]
}

/// Empty, each item alone, all together.
fn lists<T: Clone>(items: &[T], list: impl Fn(Vec<T>) -> Kind) -> Vec<Kind> {
    let alone = items.iter().map(|item| list(vec![item.clone()]));
    [list(vec![]), list(items.to_vec())].into_iter().chain(alone).collect()
}

fn odd_struct(depth: usize) -> Struct {
    let json = |kind| Json { kind: Some(kind) };
    let list = |values| json(JsonKind::ListValue(ListValue { values }));
    let numbers = [0.0, -0.0, 1.0, 0.1, f64::NAN, f64::INFINITY, 1e300, 9_007_199_254_740_993.0, -5.0];
    let mut fields = BTreeMap::from([
        (String::new(), json(JsonKind::StringValue(String::new()))),
        ("a.b".to_owned(), json(JsonKind::NumberValue(-0.0))),
        ("$x".to_owned(), json(JsonKind::StringValue("$$ROOT".to_owned()))),
        ("$$NOW".to_owned(), json(JsonKind::NullValue(0))),
        ("ключ \u{1F600}".to_owned(), json(JsonKind::BoolValue(false))),
        ("0".to_owned(), list(vec![])),
        ("_id".to_owned(), list(numbers.map(|n| json(JsonKind::NumberValue(n))).to_vec())),
        ("empty".to_owned(), json(JsonKind::StructValue(Struct::default()))),
        ("nulls".to_owned(), list(vec![json(JsonKind::NullValue(0)); 3])),
    ]);
    if depth > 0 {
        fields.insert("$nested.".to_owned(), json(JsonKind::StructValue(odd_struct(depth - 1))));
        fields.insert("list".to_owned(), list(vec![json(JsonKind::StructValue(odd_struct(depth - 1)))]));
    }
    Struct { fields }
}
