//! Properties of the stored bytes, over random records with every kind of value.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::subsequence};
use prost::Message as _;

use super::*;
use crate::{
    fuzzing::client,
    proto::{
        BoolList, BytesList, DoubleList, EncodedRow, FloatList, Int32List, Int64List, RowStatus, Source, StringList,
        value::Kind,
    },
    record::FeatureName,
};

fn kinds() -> impl Strategy<Value = Kind> {
    let doubles = || prop_oneof![any::<f64>(), Just(f64::NAN), Just(-0.0), Just(f64::INFINITY)];
    let bytes = || vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let json = || {
        let number = doubles().prop_map(prost_types::value::Kind::NumberValue);
        vec((".{0,5}", number), 0..4).prop_map(|fields| prost_types::Struct {
            fields: fields.into_iter().map(|(k, v)| (k, prost_types::Value { kind: Some(v) })).collect(),
        })
    };
    prop_oneof![
        bytes().prop_map(Kind::BytesVal),
        ".{0,20}".prop_map(Kind::StringVal),
        any::<i32>().prop_map(Kind::Int32Val),
        any::<i64>().prop_map(Kind::Int64Val),
        doubles().prop_map(Kind::DoubleVal),
        any::<f32>().prop_map(Kind::FloatVal),
        any::<bool>().prop_map(Kind::BoolVal),
        any::<i64>().prop_map(Kind::UnixTimestampVal),
        vec(bytes(), 0..4).prop_map(|val| Kind::BytesListVal(BytesList { val })),
        vec(".{0,5}", 0..4).prop_map(|val| Kind::StringListVal(StringList { val })),
        vec(any::<i32>(), 0..4).prop_map(|val| Kind::Int32ListVal(Int32List { val })),
        vec(any::<i64>(), 0..4).prop_map(|val| Kind::Int64ListVal(Int64List { val })),
        vec(doubles(), 0..4).prop_map(|val| Kind::DoubleListVal(DoubleList { val })),
        vec(any::<f32>(), 0..4).prop_map(|val| Kind::FloatListVal(FloatList { val })),
        vec(any::<bool>(), 0..4).prop_map(|val| Kind::BoolListVal(BoolList { val })),
        vec(any::<i64>(), 0..4).prop_map(|val| Kind::UnixTimestampListVal(Int64List { val })),
        Just(Kind::NullVal(0)),
        json().prop_map(Kind::StructVal),
    ]
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    let features = vec(("[A-Za-z_][A-Za-z0-9_:-]{0,8}", kinds()), 0..12);
    let times = -62_135_596_800_000..253_402_300_799_999_i64;
    (features, ".{0,10}", 1..1_i64 << 53, times.clone(), times.clone(), proptest::option::of(times)).prop_map(
        |(features, model_version, revision, event_time, write_time, expire_at)| Snapshot {
            features: features
                .into_iter()
                .map(|(name, kind)| (FeatureName::parse(&name).unwrap(), Value { kind: Some(kind) }))
                .collect(),
            model_version,
            revision: Revision(revision),
            event_time: Millis(event_time),
            write_time: Millis(write_time),
            expire_at: expire_at.map(Millis),
        },
    )
}

fn empty() -> Snapshot {
    Snapshot {
        features: Features::new(),
        model_version: String::new(),
        revision: Revision(1),
        event_time: Millis(1),
        write_time: Millis(1),
        expire_at: None,
    }
}

fn named(names: &[&FeatureName]) -> Vec<FeatureName> {
    names.iter().map(|name| (*name).clone()).collect()
}

proptest! {
    /// Compared as bytes, because NaN equals nothing.
    #[test]
    fn what_is_encoded_is_decoded(snapshot in snapshots()) {
        let stored = StoredRecord::encode(&snapshot);
        let parsed = StoredRecord::parse(stored.as_bytes().clone()).unwrap();
        let decoded = parsed.decode().unwrap();
        prop_assert_eq!(format!("{decoded:?}"), format!("{snapshot:?}"));
        prop_assert_eq!(StoredRecord::encode(&decoded), stored);
        prop_assert_eq!(features_len(&snapshot.features), parsed.into_features().len());
    }

    #[test]
    fn a_passed_through_row_is_what_a_client_expects(snapshot in snapshots()) {
        let stored = StoredRecord::encode(&snapshot);
        prop_assert_eq!([stored.clone().into_features(), stored.clone().into_metadata()].concat(), stored.clone().into_segments());
        let row = EncodedRow::new("id".into(), RowStatus::Found)
            .from_source(Source::L1)
            .at_revision(snapshot.revision.0)
            .with_stored(stored.into_segments());
        prop_assert_eq!(row.encode_to_vec().len(), row.encoded_len());
        let seen = client::FeatureRow::decode(&row.encode_to_vec()[..]).unwrap();
        prop_assert_eq!(&seen.model_version, &snapshot.model_version);
        prop_assert_eq!(seen.expire_time, snapshot.expire_at.map(timestamp));
        prop_assert_eq!((seen.event_time, seen.write_time),
            (Some(timestamp(snapshot.event_time)), Some(timestamp(snapshot.write_time))));
        prop_assert_eq!(seen.features.len(), snapshot.features.len());
        for (name, value) in &snapshot.features {
            prop_assert_eq!(seen.features[name.as_str()].encode_to_vec(), value.encode_to_vec());
        }
    }

    #[test]
    fn projection_equals_decode_filter_encode(
        (snapshot, wanted) in snapshots().prop_flat_map(|snapshot| {
            let names: Vec<FeatureName> = snapshot.features.keys().cloned().collect();
            let count = names.len();
            (Just(snapshot), subsequence(names, 0..=count).prop_shuffle())
        }),
        strange in vec("[a-c]{1,2}", 0..3),
    ) {
        let strange: Vec<_> = strange.iter().map(|name| FeatureName::parse(name).unwrap()).collect();
        let names = named(&wanted.iter().chain(&strange).collect::<Vec<_>>());
        let stored = StoredRecord::encode(&snapshot);
        let (features, missing) = Projection::new(&names).apply(&stored, &mut Scratch::default()).unwrap();

        let mut filtered = snapshot.clone();
        filtered.features.retain(|name, _| names.contains(name));
        prop_assert_eq!(features, StoredRecord::encode(&filtered).into_features());
        let mut lacked = Vec::new();
        for name in names {
            let name = name.as_str().to_owned();
            if !snapshot.features.contains_key(name.as_str()) && !lacked.contains(&name) {
                lacked.push(name);
            }
        }
        prop_assert_eq!(projection::missing_names(&missing.unwrap_or_default()), lacked);
    }

    /// Whether the records have the same features or not.
    #[test]
    fn a_row_of_a_batch_is_read_as_if_it_were_alone(
        (snapshots, names) in vec(snapshots(), 1..4).prop_flat_map(|snapshots| {
            let names: Vec<FeatureName> = snapshots[0].features.keys().cloned().collect();
            let count = names.len();
            (Just(snapshots), subsequence(names, 0..=count))
        }),
        order in vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let (projection, columns) = (Projection::new(&names), Columns::new(&names));
        let (mut scratch, mut places) = (Scratch::for_rows(order.len()), Places::default());
        let (mut cells, mut cells_alone) = (vec![Cell::Missing; names.len()], vec![Cell::Missing; names.len()]);
        for index in order {
            let record = StoredRecord::encode(index.get(&snapshots));
            columns.read(&record, &mut places, &mut cells).unwrap();
            columns.read(&record, &mut Places::default(), &mut cells_alone).unwrap();
            prop_assert_eq!(format!("{cells:?}"), format!("{cells_alone:?}")); // as texts, as NaN equals nothing
            let alone = projection.apply(&record, &mut Scratch::default()).unwrap();
            prop_assert_eq!(projection.apply(&record, &mut scratch).unwrap(), alone);
        }
    }

    /// Cut anywhere, with a header that claims to be complete.
    #[test]
    fn an_unreadable_row_leaves_nothing_to_the_next(snapshot in snapshots(), at in any::<prop::sample::Index>()) {
        let stored = StoredRecord::encode(&snapshot);
        let names: Vec<FeatureName> = snapshot.features.keys().cloned().collect();
        let projection = Projection::new(&names);
        let expected = projection.apply(&stored, &mut Scratch::default()).unwrap();
        let mut broken = stored.as_bytes().to_vec();
        let end = HEADER_BYTES + at.index(stored.clone().into_features().len() + 1);
        broken[32..36].copy_from_slice(&(end as u32).to_le_bytes());
        let broken = StoredRecord::parse_summed(broken.into()).unwrap();
        let mut scratch = Scratch::for_rows(3);
        for record in [&broken, &stored, &broken, &stored] {
            let row = projection.apply(record, &mut scratch);
            if record == &stored {
                prop_assert_eq!(row.unwrap(), expected.clone());
            }
        }
    }

    #[test]
    fn bytes_from_anywhere_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(record) = StoredRecord::parse_summed(bytes.into()) {
            let _ = record.decode();
            let _ = record.model_version();
            let names = [FeatureName::parse("a").unwrap()];
            let projection = Projection::new(&names);
            let _ = projection.apply(&record, &mut Scratch::default());
            // Also after another record had it.
            let features = [(names[0].clone(), Value { kind: Some(Kind::NullVal(0)) })].into();
            let mut scratch = Scratch::default();
            let stored = StoredRecord::encode(&Snapshot { features, ..empty() });
            projection.apply(&stored, &mut scratch).unwrap();
            let _ = projection.apply(&record, &mut scratch);
            let (columns, mut places) = (Columns::new(&names), Places::default());
            columns.read(&stored, &mut places, &mut [Cell::Missing]).unwrap();
            let _ = columns.read(&record, &mut places, &mut [Cell::Missing]);
        }
    }
}
