//! Fuzzes the stored bytes of records: no stored bytes may make a reader panic, and for a record in
//! our encoding all ways to read it must agree.

use prost::Message as _;

use super::*;
use crate::{
    fuzzing::{Input, client},
    proto::{EncodedRow, RowStatus, value::Kind},
    record::float32::widen,
};

/// Two records, read one after the other like the rows of a batch. The version is corrected and the
/// checksum is not checked, so that the input reaches the code behind them.
pub fn stored(data: &[u8]) {
    let mut input = Input::new(data);
    let (selection, strange) = (input.byte(), input.flag());
    let first = input.piece();
    let records = [first, input.rest()].map(|bytes| {
        let mut bytes = bytes.to_vec();
        if let Some(version) = bytes.first_mut() {
            *version = FORMAT_VERSION;
        }
        let bytes = Bytes::from(bytes);
        let _ = StoredRecord::parse(bytes.clone());
        StoredRecord::parse_summed(bytes).ok()
    });

    let mut names = Vec::new();
    for record in records.iter().flatten() {
        let readable = record.entries().map_while(Result::ok);
        let named = readable.filter_map(|entry| FeatureName::parse(std::str::from_utf8(entry.name).ok()?).ok());
        names.extend(named.take(8).enumerate().filter(|(at, _)| selection >> at & 1 == 1).map(|(_, name)| name));
    }
    if strange {
        names.extend(["a", "m", "zz"].map(|name| FeatureName::parse(name).expect("a good name")));
    }

    let projection = Projection::new(&names);
    let (mut shared, mut places) = (Scratch::for_rows(4), Places::default());
    // Each row after itself, and after the other one.
    for record in [&records[0], &records[0], &records[1], &records[0], &records[1]].into_iter().flatten() {
        let row = projection.apply(record, &mut shared);
        read_all(record, &names, &projection, row, &mut places);
    }
}

/// Reads a record in every way.
fn read_all(
    record: &StoredRecord,
    names: &[FeatureName],
    projection: &Projection,
    row: Result<(Bytes, Option<Bytes>), Corrupt>,
    places: &mut Places,
) {
    let snapshot = record.decode();
    let mut cells = vec![Cell::Missing; names.len()];
    let columns = Columns::new(names).read(record, places, &mut cells);
    let _ = (record.is_expired(Millis(0)), record.event_time(), record.revision(), record.expire_at());
    let is_ours = snapshot.as_ref().is_ok_and(|snapshot| is_storable(snapshot) && is_as_encoded(record, snapshot));
    if !is_ours {
        return;
    }
    let snapshot = snapshot.expect("it is ours");

    let (features, missing) = row.expect("a record of ours is projected");
    let alone = projection.apply(record, &mut Scratch::default()).expect("alone too");
    assert_eq!((&features, &missing), (&alone.0, &alone.1), "a row is the same in a batch");
    let mut filtered = snapshot.clone();
    filtered.features.retain(|name, _| names.contains(name));
    assert_eq!(features, StoredRecord::encode(&filtered).into_features());
    let missing = projection::missing_names(&missing.unwrap_or_default());
    for name in names {
        let is_missing = !snapshot.features.contains_key(name);
        assert_eq!(missing.iter().filter(|missed| **missed == name.as_str()).count(), usize::from(is_missing));
    }

    columns.expect("a record of ours has cells");
    for (name, cell) in names.iter().zip(&cells) {
        let expected = snapshot.features.get(name).map_or(Cell::Missing, expected_cell);
        assert_eq!(format!("{cell:?}"), format!("{expected:?}"), "{name:?}"); // as texts, as NaN equals nothing
    }

    assert_eq!(record.model_version(), Ok(snapshot.model_version.as_str()));
    let encoded = EncodedRow::new("id".into(), RowStatus::Found)
        .at_revision(snapshot.revision.0)
        .with_stored(record.clone().into_segments());
    let wire = encoded.encode_to_vec();
    assert_eq!(wire.len(), encoded.encoded_len());
    let seen = client::FeatureRow::decode(&wire[..]).expect("clients read it");
    assert_eq!((&seen.model_version, seen.revision), (&snapshot.model_version, snapshot.revision.0));
    assert_eq!(seen.expire_time, snapshot.expire_at.map(timestamp));
    assert_eq!(seen.features.len(), snapshot.features.len());
    for (name, value) in &snapshot.features {
        assert_eq!(seen.features[name.as_str()].encode_to_vec(), value.encode_to_vec());
    }
}

/// Whether a write could store the record: its times are valid, and its values have kinds.
fn is_storable(snapshot: &Snapshot) -> bool {
    let years = -62_135_596_800_000..=253_402_300_799_999_i64;
    [Some(snapshot.event_time), Some(snapshot.write_time), snapshot.expire_at]
        .into_iter()
        .flatten()
        .all(|at| years.contains(&at.0))
        && snapshot.features.values().all(|value| value.kind.is_some())
}

fn is_as_encoded(record: &StoredRecord, snapshot: &Snapshot) -> bool {
    let again = StoredRecord::encode(snapshot);
    // Without the checksum, which was not checked.
    again.0.len() == record.0.len() && again.0[..4] == record.0[..4] && again.0[8..] == record.0[8..]
}

fn expected_cell(value: &Value) -> Cell {
    match value.kind.as_ref().expect("it has a kind") {
        Kind::Int32Val(number) => Cell::Integer(i64::from(*number)),
        Kind::Int64Val(number) | Kind::UnixTimestampVal(number) => Cell::Integer(*number),
        Kind::DoubleVal(number) => Cell::Number(*number),
        Kind::FloatVal(number) => Cell::Number(widen(*number)),
        Kind::BoolVal(flag) => Cell::Number(f64::from(*flag)),
        Kind::NullVal(_) => Cell::Null,
        _ => Cell::NotNumeric,
    }
}
