//! Every kind of `Value`, with its edges, through both tiers of every pair, as rows and as matrices, to the bit.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{ListValue, Struct, value::Kind as Json};
use value::Kind;

use crate::harness::{client::*, process::temp_dir, server::Pair};

fn json(kind: Json) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

fn object<const N: usize>(fields: [(&str, Json); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, kind)| (key.to_owned(), json(kind))).collect() }
}

/// Kinds that a matrix shows as a number, with that number.
fn numbers() -> Vec<(Kind, f64)> {
    let doubles = [
        (0.0_f64).to_bits(),
        (-0.0_f64).to_bits(),
        f64::NAN.to_bits(),
        0xfff8_0000_0000_0001, // a NaN with a sign and a payload
        0x7ff0_0000_0000_0001, // a signalling one
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        f64::MAX.to_bits(),
        f64::MIN_POSITIVE.to_bits(),
        1, // the smallest subnormal
        (0.1_f64).to_bits(),
        (5.0_f64).to_bits(), // a whole number stays a double
    ];
    let floats = [
        0.0,
        -0.0,
        f32::NAN,
        f32::from_bits(0xffc0_0001),
        f32::from_bits(0x7f80_0001), // signalling NaNs
        f32::from_bits(0xffbf_ffff),
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x807f_ffff),
        0.1,
        5.0,
    ];
    // The last ones are beside the middle between two float32, and become that middle as a float64.
    let integers = [i64::MIN, i64::MAX, -1, 0, 1, 1 << 53, (1 << 53) + 1, -(1 << 53) - 1, i64::from(i32::MAX) + 1];
    let integers = [&integers[..], &[(1 << 60) + (1 << 36) + 1, -(1 << 60) - (1 << 36) - 1]].concat();
    let mut numbers = Vec::new();
    numbers.extend(doubles.map(f64::from_bits).map(|number| (Kind::DoubleVal(number), number)));
    numbers.extend(floats.map(|number| (Kind::FloatVal(number), wide(number))));
    numbers.extend([i32::MIN, i32::MAX, -1, 0, 1].map(|number| (Kind::Int32Val(number), f64::from(number))));
    numbers.extend(integers.iter().map(|number| (Kind::Int64Val(*number), *number as f64)));
    numbers.extend(integers.iter().map(|number| (Kind::UnixTimestampVal(*number), *number as f64)));
    numbers.extend([(Kind::BoolVal(false), 0.0), (Kind::BoolVal(true), 1.0)]);
    numbers
}

/// The same number or NaN, bit for bit; the machine's own conversion would make every NaN a quiet one.
fn wide(number: f32) -> f64 {
    let bits = u64::from(number.to_bits());
    let nan = (bits >> 31) << 63 | 0x7ff << 52 | (bits & 0x7f_ffff) << 29;
    if number.is_nan() { f64::from_bits(nan) } else { f64::from(number) }
}

/// What a matrix of float32 shows: each number is rounded once.
fn single(written: &Value, number: f64) -> f32 {
    match written.kind.as_ref().unwrap() {
        Kind::Int64Val(integer) | Kind::UnixTimestampVal(integer) => *integer as f32,
        Kind::FloatVal(float) => *float,
        _ => number as f32,
    }
}

/// Kinds that are no numbers.
fn others() -> Vec<Kind> {
    let texts = ["", "\0", "a\0b", "$x", "$$NOW", "a.b", "é 世界 🦀", "\u{10ffff}\u{fffd}\r\n\u{7f}", "null"];
    let mut kinds: Vec<Kind> = texts.map(|text| Kind::StringVal(text.to_owned())).into();
    kinds.extend([vec![], vec![0], vec![0xff, 0x00, 0xfe], (0..=255).collect()].map(Kind::BytesVal));
    kinds.extend([vec![], vec![vec![]], vec![vec![0, 255], vec![]]].map(|val| Kind::BytesListVal(BytesList { val })));
    kinds.push(Kind::StringListVal(StringList { val: vec![] }));
    kinds.push(Kind::StringListVal(StringList { val: texts.map(str::to_owned).into() }));
    kinds.extend([vec![], vec![i32::MIN, 0, i32::MAX]].map(|val| Kind::Int32ListVal(Int32List { val })));
    let integers = || [vec![], vec![i64::MIN, 0, i64::MAX], vec![1, 2]];
    kinds.extend(integers().map(|val| Kind::Int64ListVal(Int64List { val })));
    kinds.extend(integers().map(|val| Kind::UnixTimestampListVal(Int64List { val })));
    let doubles = vec![
        f64::NAN,
        f64::from_bits(0x7ff0_0000_0000_0001),
        -0.0,
        f64::NEG_INFINITY,
        f64::from_bits(1),
        f64::MAX,
        1.0,
    ];
    kinds.extend([vec![], doubles].map(|val| Kind::DoubleListVal(DoubleList { val })));
    let floats = vec![f32::NAN, f32::from_bits(0x7f80_0001), -0.0, f32::INFINITY, f32::from_bits(1), f32::MAX, 1.0];
    kinds.extend([vec![], floats].map(|val| Kind::FloatListVal(FloatList { val })));
    kinds.extend([vec![], vec![true, false, true]].map(|val| Kind::BoolListVal(BoolList { val })));
    kinds.extend(structs().map(Kind::StructVal));
    kinds
}

fn structs() -> [Struct; 6] {
    let list = |kinds: Vec<Json>| Json::ListValue(ListValue { values: kinds.into_iter().map(json).collect() });
    let nested = |keys: &[&str]| {
        let inner = object([("z", Json::NullValue(0)), ("a", Json::NumberValue(-0.0))]);
        keys.iter().fold(inner, |inner, key| object([(key, Json::StructValue(inner))]))
    };
    [
        Struct::default(),
        object([("n", Json::NullValue(0)), ("t", Json::BoolValue(true)), ("s", Json::StringValue("$s\0".into()))]),
        object([
            ("i", Json::NumberValue(5.0)),
            ("nan", Json::NumberValue(f64::from_bits(0xfff0_0000_0000_0001))),
            ("e", list(vec![])),
        ]),
        object([("l", list(vec![list(vec![Json::NullValue(0)]), Json::StructValue(Struct::default())]))]),
        // Keys that MongoDB does not hold safely.
        object([("", Json::NullValue(0)), ("a.b", Json::BoolValue(false)), ("$x", Json::NumberValue(f64::INFINITY))]),
        nested(&["$gt", "_id", "a.b", "", "plain", "x\0y"]),
    ]
}

/// All of them by a name each, and what a matrix shows.
fn table() -> BTreeMap<String, (Value, FieldStatus, f64)> {
    let numbers = numbers().into_iter().map(|(kind, number)| (kind, FieldStatus::Present, number));
    let others = others().into_iter().map(|kind| (kind, FieldStatus::NotNumeric, f64::NAN));
    let null = (Kind::NullVal(0), FieldStatus::NullValue, f64::NAN);
    let all = numbers.chain(others).chain([null]).enumerate();
    all.map(|(i, (kind, status, number))| (format!("v{i:03}"), (value(kind), status, number))).collect()
}

const IDS: [&str; 3] = ["REPLACED", "MERGED", "LOADED"];

async fn write(client: &mut Client) {
    let values: BTreeMap<String, Value> = table().into_iter().map(|(name, (value, ..))| (name, value)).collect();
    let of = |entity_id: &str, features| FeatureRecord { entity_id: entity_id.to_owned(), features, ..record("", []) };
    assert!(put(client, of(IDS[0], values.clone())).await.cached);
    // Every other one first, with another kind in the place of the rest, which a merge then replaces.
    let odd = |(i, (name, value)): (usize, (String, Value))| match i % 2 {
        0 => (name, value),
        _ => (name, self::value(Kind::FloatListVal(FloatList { val: vec![] }))),
    };
    put(client, of(IDS[1], values.clone().into_iter().enumerate().map(odd).collect())).await;
    let even = values.clone().into_iter().skip(1).step_by(2).collect();
    put(client, FeatureRecord { write_mode: WriteMode::Merge.into(), ..of(IDS[1], even) }).await;
    let message = BulkUpsertRequest { warm_cache: true, ..chunk(1, [of(IDS[2], values)]) };
    let (answers, ended) = bulk(client, [message]).await;
    assert!(ended.is_none() && answers[0].written == 1, "{answers:?} {ended:?}");
}

/// Reads rows, twice: whole, and by all names. The first may come from L2; the second comes from where it then is.
async fn check_rows(client: &mut Client, request: GetFeaturesRequest, from: Source, what: &str) {
    let table = table();
    let named = GetFeaturesRequest { feature_names: table.keys().cloned().collect(), ..request.clone() };
    for (request, from) in [(request, Some(from)), (named, None)] {
        for row in rows(client, request).await {
            let what = format!("{what}, {}", row.entity_id);
            assert_eq!(row.status(), RowStatus::Found, "{what}");
            assert!(from.is_none_or(|from| row.source() == from), "{what}: {:?}", row.source());
            assert_eq!(row.features.keys().collect::<Vec<_>>(), table.keys().collect::<Vec<_>>(), "{what}");
            for (name, read) in &row.features {
                let written = &table[name].0;
                // Encoded, as NaN equals nothing.
                assert_eq!(read.encode_to_vec(), written.encode_to_vec(), "{what}: {written:?} came back as {read:?}");
            }
        }
    }
}

async fn check_matrices(client: &mut Client, request: GetFeaturesRequest, what: &str) {
    let table = table();
    for format in [ResponseFormat::MatrixFloat64, ResponseFormat::MatrixFloat32] {
        let names = table.keys().cloned().collect();
        let request = GetFeaturesRequest { feature_names: names, format: format.into(), ..request.clone() };
        let matrix = client.get_features(request).await.unwrap().into_inner().matrix.unwrap();
        let width = if format == ResponseFormat::MatrixFloat64 { 8 } else { 4 };
        assert_eq!(matrix.values.len(), IDS.len() * table.len() * width);
        let cells = matrix.values.chunks(width).zip(&matrix.field_statuses).enumerate();
        for (i, (bytes, status)) in cells {
            let (written, wanted_status, number) = table.values().nth(i % table.len()).unwrap();
            let what = format!("{what}, {format:?}, {}: {written:?}", IDS[i / table.len()]);
            assert_eq!(i32::from(*status), *wanted_status as i32, "{what}");
            let (bits, is_nan) = match <[u8; 8]>::try_from(bytes) {
                Ok(bytes) => {
                    (f64::from_le_bytes(bytes).to_bits() == number.to_bits(), f64::from_le_bytes(bytes).is_nan())
                }
                Err(_) => {
                    let read = f32::from_le_bytes(bytes.try_into().unwrap());
                    (read.to_bits() == single(written, *number).to_bits(), read.is_nan())
                }
            };
            let fits = if *wanted_status == FieldStatus::Present { bits } else { is_nan };
            assert!(fits, "{what}: {bytes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_value_reads_back_as_it_was_written_from_both_tiers_of_every_pair() {
    for pair in Pair::all() {
        let (name, folder) = (pair.name(), temp_dir());
        let settings = [("FEATURESTORE_DATA_DIR", folder.path().to_str().unwrap())];
        let server = pair.serve_with(&settings).await;
        let mut client = server.client().await;
        write(&mut client).await;
        check_rows(&mut client, get(IDS), Source::L1, &name).await;
        check_matrices(&mut client, get(IDS), &format!("{name}, L1")).await;
        check_rows(&mut client, strong(IDS), Source::L2, &name).await;
        check_matrices(&mut client, strong(IDS), &format!("{name}, L2")).await;
        // What L2 kept, by way of an empty L1, and what it was then filled with.
        server.stop().await;
        IDS.iter().for_each(|id| pair.evict(id));
        let server = pair.serve_with(&settings).await;
        let mut client = server.client().await;
        check_rows(&mut client, get(IDS), Source::L2, &name).await;
        check_rows(&mut client, get(IDS), Source::L1, &name).await;
        check_matrices(&mut client, get(IDS), &format!("{name}, L1 again")).await;
        server.stop().await;
    }
}
