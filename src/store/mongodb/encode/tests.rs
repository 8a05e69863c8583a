use bson::{Bson, Document, spec::BinarySubtype};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use prost_types::{ListValue, Struct, Value as JsonValue, value::Kind as JsonKind};

use super::*;
use crate::{
    proto::{BoolList, BytesList, DoubleList, FloatList, Int32List, Int64List, StringList, Value, value::Kind},
    record::{FeatureName, Features},
};

const FLOAT: i32 = 6;
const UNIX_TIMESTAMP: i32 = 8;
const BYTES_LIST: i32 = 11;
const STRING_LIST: i32 = 12;
const INT32_LIST: i32 = 13;
const INT64_LIST: i32 = 14;
const DOUBLE_LIST: i32 = 15;
const FLOAT_LIST: i32 = 16;
const BOOL_LIST: i32 = 17;
const UNIX_TIMESTAMP_LIST: i32 = 18;
const STRUCT: i32 = value::STRUCT;

/// The BSON of a value, and the number of its kind if the BSON type does not show it.
fn to_bson(value: &Value) -> (Bson, Option<i32>) {
    match value.kind.as_ref() {
        None | Some(Kind::NullVal(_)) => (Bson::Null, None),
        Some(Kind::BytesVal(bytes)) => (binary(bytes.to_vec()), None),
        Some(Kind::StringVal(text)) => (Bson::String(text.clone()), None),
        Some(Kind::Int32Val(number)) => (Bson::Int32(*number), None),
        Some(Kind::Int64Val(number)) => (Bson::Int64(*number), None),
        Some(Kind::DoubleVal(number)) => (Bson::Double(*number), None),
        Some(Kind::FloatVal(number)) => (Bson::Double(f64::from(*number)), Some(FLOAT)),
        Some(Kind::BoolVal(flag)) => (Bson::Boolean(*flag), None),
        Some(Kind::UnixTimestampVal(seconds)) => (Bson::Int64(*seconds), Some(UNIX_TIMESTAMP)),
        Some(Kind::BytesListVal(list)) => (array(&list.val, |item| binary(item.to_vec())), Some(BYTES_LIST)),
        Some(Kind::StringListVal(list)) => (array(&list.val, |item| Bson::String(item.clone())), Some(STRING_LIST)),
        Some(Kind::Int32ListVal(list)) => (array(&list.val, |item| Bson::Int32(*item)), Some(INT32_LIST)),
        Some(Kind::Int64ListVal(list)) => (array(&list.val, |item| Bson::Int64(*item)), Some(INT64_LIST)),
        Some(Kind::DoubleListVal(list)) => (array(&list.val, |item| Bson::Double(*item)), Some(DOUBLE_LIST)),
        Some(Kind::FloatListVal(list)) => (array(&list.val, |item| Bson::Double(f64::from(*item))), Some(FLOAT_LIST)),
        Some(Kind::BoolListVal(list)) => (array(&list.val, |item| Bson::Boolean(*item)), Some(BOOL_LIST)),
        Some(Kind::UnixTimestampListVal(list)) => {
            (array(&list.val, |item| Bson::Int64(*item)), Some(UNIX_TIMESTAMP_LIST))
        }
        Some(Kind::StructVal(object)) => match struct_to_document(object) {
            Some(document) => (Bson::Document(document), None),
            None => (binary(object.encode_to_vec()), Some(STRUCT)),
        },
    }
}

fn binary(bytes: Vec<u8>) -> Bson {
    Bson::Binary(bson::Binary { subtype: BinarySubtype::Generic, bytes })
}

fn array<T>(items: &[T], to_bson: impl Fn(&T) -> Bson) -> Bson {
    Bson::Array(items.iter().map(to_bson).collect())
}

/// None: a key is not safe in MongoDB, or a value has no kind. Depth does not matter, because the
/// limit of protobuf is half of MongoDB's.
fn struct_to_document(object: &Struct) -> Option<Document> {
    let entry = |(key, value): (&String, &JsonValue)| {
        let safe = !key.is_empty() && !key.starts_with('$') && !key.contains(['.', '\0']);
        if safe { Some((key.clone(), json_to_bson(value)?)) } else { None }
    };
    object.fields.iter().map(entry).collect()
}

fn json_to_bson(value: &JsonValue) -> Option<Bson> {
    Some(match value.kind.as_ref()? {
        JsonKind::NullValue(_) => Bson::Null,
        JsonKind::NumberValue(number) => Bson::Double(*number),
        JsonKind::StringValue(text) => Bson::String(text.clone()),
        JsonKind::BoolValue(flag) => Bson::Boolean(*flag),
        JsonKind::StructValue(object) => Bson::Document(struct_to_document(object)?),
        JsonKind::ListValue(list) => Bson::Array(list.values.iter().map(json_to_bson).collect::<Option<_>>()?),
    })
}

fn json() -> impl Strategy<Value = JsonValue> {
    let leaf = prop_oneof![
        Just(JsonKind::NullValue(0)),
        any::<f64>().prop_map(JsonKind::NumberValue),
        ".{0,5}".prop_map(JsonKind::StringValue),
        any::<bool>().prop_map(JsonKind::BoolValue),
    ];
    let value = leaf.prop_map(|kind| JsonValue { kind: Some(kind) });
    value.prop_recursive(4, 30, 12, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..12).prop_map(|values| JsonKind::ListValue(ListValue { values })),
            object(inner).prop_map(JsonKind::StructValue),
        ]
        .prop_map(|kind| JsonValue { kind: Some(kind) })
    })
}

/// MongoDB can hold most of them.
fn object(value: impl Strategy<Value = JsonValue>) -> impl Strategy<Value = Struct> {
    let key = prop_oneof![30 => "[a-zé$]{1,3}", 1 => Just("a.b".to_owned()), 1 => Just(String::new())];
    let missing = prop_oneof![40 => Just(true), 1 => Just(false)];
    proptest::collection::btree_map(key, (value, missing), 0..4).prop_map(|fields| {
        let field = |(key, (value, is_there))| (key, if is_there { value } else { JsonValue { kind: None } });
        Struct { fields: fields.into_iter().map(field).collect() }
    })
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        any::<f64>().prop_map(Kind::DoubleVal),
        vec(any::<u8>(), 0..20).prop_map(|bytes| Kind::BytesVal(bytes.into())),
        ".{0,9}".prop_map(Kind::StringVal),
        any::<i32>().prop_map(Kind::Int32Val),
        any::<i64>().prop_map(Kind::Int64Val),
        any::<f32>().prop_map(Kind::FloatVal),
        any::<bool>().prop_map(Kind::BoolVal),
        any::<i64>().prop_map(Kind::UnixTimestampVal),
        vec(vec(any::<u8>(), 0..4), 0..12)
            .prop_map(|list| { Kind::BytesListVal(BytesList { val: list.into_iter().map(Into::into).collect() }) }),
        vec(".{0,3}", 0..12).prop_map(|val| Kind::StringListVal(StringList { val })),
        vec(any::<i32>(), 0..120).prop_map(|val| Kind::Int32ListVal(Int32List { val })),
        vec(any::<i64>(), 0..12).prop_map(|val| Kind::Int64ListVal(Int64List { val })),
        vec(any::<f64>(), 0..12).prop_map(|val| Kind::DoubleListVal(DoubleList { val })),
        vec(any::<f32>(), 0..12).prop_map(|val| Kind::FloatListVal(FloatList { val })),
        vec(any::<bool>(), 0..1200).prop_map(|val| Kind::BoolListVal(BoolList { val })),
        vec(any::<i64>(), 0..12).prop_map(|val| Kind::UnixTimestampListVal(Int64List { val })),
        Just(Kind::NullVal(0)),
        object(json()).prop_map(Kind::StructVal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_written_is_what_the_library_writes_and_as_large_as_was_measured(
        given in proptest::collection::btree_map("[a-z]{1,4}", kinds(), 0..5),
    ) {
        let feature = |(name, kind): (String, Kind)| (FeatureName::parse(&name).unwrap(), Value { kind: Some(kind) });
        let features: Features = given.into_iter().map(feature).collect();
        let (mut tree, mut all_kinds) = (Document::new(), Document::new());
        for (name, value) in &features {
            let (value, kind) = to_bson(value);
            tree.insert(name.as_str(), value);
            all_kinds.insert(name.as_str(), kind.unwrap_or(0));
        }
        let encoded = EncodedFeatures::from(&features);
        let (mut bytes, mut size) = (Vec::new(), Size::default());
        put_features(&encoded, &mut bytes);
        put_features(&encoded, &mut size);
        prop_assert_eq!(size.0, bytes.len());
        prop_assert_eq!(bytes, tree.to_vec().unwrap());
        let (mut bytes, mut size) = (Vec::new(), Size::default());
        put_kinds(&encoded, true, &mut bytes);
        put_kinds(&encoded, true, &mut size);
        prop_assert_eq!(size.0, bytes.len());
        prop_assert_eq!(bytes, all_kinds.to_vec().unwrap());
        let mut bytes = Vec::new();
        put_kinds(&encoded, false, &mut bytes);
        let told: Document = all_kinds.into_iter().filter(|(_, kind)| kind.as_i32() != Some(0)).collect();
        prop_assert_eq!(bytes, told.to_vec().unwrap());
        // `pipeline` relies on this to separate merges that certainly fit from others.
        prop_assert!(encoded.as_bytes().len() <= 4 * size_of_features(&encoded));
    }
}

fn size_of_features(features: &EncodedFeatures) -> usize {
    let mut size = Size::default();
    put_features(features, &mut size);
    size.0
}

#[test]
fn the_names_of_an_arrays_elements_count_up() {
    let mut index = Index::default();
    for i in 0..100_100 {
        assert_eq!(index.next(), i.to_string().as_bytes());
    }
}

#[test]
fn no_value_is_larger_in_stored_form_than_four_times_its_bson() {
    let json = |kind| JsonValue { kind: Some(kind) };
    let nested = |depth: usize| {
        let mut value = json(JsonKind::NullValue(0));
        for _ in 0..depth {
            value = json(JsonKind::StructValue(Struct { fields: [("a".to_owned(), value)].into_iter().collect() }));
        }
        Kind::StructVal(Struct { fields: [("a".to_owned(), value)].into_iter().collect() })
    };
    let extremes = [
        Kind::NullVal(0),
        Kind::BoolVal(false),
        Kind::Int32Val(-1),
        Kind::Int64Val(i64::MIN),
        Kind::StringVal(String::new()),
        Kind::Int32ListVal(Int32List { val: vec![-1; 100_000] }),
        Kind::UnixTimestampListVal(Int64List { val: vec![i64::MIN; 10] }),
        nested(0),
        nested(1),
        nested(30),
        Kind::StructVal(Struct {
            fields: [(
                "a".to_owned(),
                json(JsonKind::ListValue(ListValue { values: vec![json(JsonKind::NullValue(0)); 1000] })),
            )]
            .into_iter()
            .collect(),
        }),
    ];
    for kind in extremes {
        let feature = [(FeatureName::parse("a").unwrap(), Value { kind: Some(kind.clone()) })];
        let encoded = EncodedFeatures::from_iter(feature);
        assert!(encoded.as_bytes().len() <= 4 * (size_of_features(&encoded) - 5), "{kind:?}");
    }
}
