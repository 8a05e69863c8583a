//! How much memory the message of a read or a write takes when it is decoded, estimated from its
//! bytes before anything is built. An empty record has two bytes on the wire but over a hundred in
//! memory; the same is true of an empty text in a list, or a number in an object.
//!
//! The figures are upper bounds for what the decoder builds, including vectors that grow by
//! doubling. What takes about as much as on the wire, such as texts and packed numbers of fixed
//! width, is not counted again.

use std::any::TypeId;

use prost::encoding::{self, WireType};

use super::{BulkUpsertRequest, DeleteFeaturesRequest, GetFeaturesRequest, UpsertFeaturesRequest};

/// A record without features, and all that is made of it: its write, its keys, its result.
const RECORD: usize = 1536;
/// A feature: its name, its value and its slot in a map.
const FEATURE: usize = 192;
/// An item of a list of texts or bytes.
const ITEM: usize = 96;
/// A non-empty object: a node of its map has room for eleven fields.
const OBJECT: usize = 800;
/// A field of an object.
const FIELD: usize = 128;
/// A value in a list of an object.
const ELEMENT: usize = 96;
/// An entity id of a delete.
const ID: usize = 512;
/// An entity id or a feature name of a read.
const NAME: usize = 96;
/// A minimum revision of a read.
const REVISION: usize = 160;
/// Shorter messages of reads are not examined: they cannot grow to much, and most are short.
const SHORT_READ: usize = 16 << 10;
/// The decoder rejects objects that are nested deeper.
const MAX_DEPTH: usize = 100;

/// For a message of this type; 0 for other types.
pub(super) fn of<T: 'static>(message: &[u8]) -> usize {
    match TypeId::of::<T>() {
        of if of == TypeId::of::<BulkUpsertRequest>() => bulk_upsert(message),
        of if of == TypeId::of::<UpsertFeaturesRequest>() => upsert_features(message),
        of if of == TypeId::of::<DeleteFeaturesRequest>() => delete_features(message),
        of if of == TypeId::of::<GetFeaturesRequest>() => get_features(message),
        _ => 0,
    }
}

/// For a `BulkUpsertRequest`.
fn bulk_upsert(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 3).map(|(_, body)| RECORD + record(body)).sum()
}

/// For an `UpsertFeaturesRequest`.
fn upsert_features(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 2).map(|(_, body)| record(body)).sum()
}

/// For a `DeleteFeaturesRequest`.
fn delete_features(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 2).count() * ID
}

/// For a `GetFeaturesRequest`.
fn get_features(message: &[u8]) -> usize {
    if message.len() < SHORT_READ {
        return 0;
    }
    let of_field = |(tag, _)| match tag {
        2 | 3 => NAME,
        7 => REVISION,
        _ => 0,
    };
    fields(message).map(of_field).sum()
}

fn record(body: &[u8]) -> usize {
    fields(body)
        .filter(|(tag, _)| *tag == 2)
        .map(|(_, entry)| FEATURE.saturating_sub(entry.len()) + feature(entry))
        .sum()
}

fn feature(entry: &[u8]) -> usize {
    fields(entry).filter(|(tag, _)| *tag == 2).flat_map(|(_, value)| fields(value)).map(kind).sum()
}

/// For one kind of a value, beside the value itself.
fn kind((tag, body): (u32, &[u8])) -> usize {
    // A growing vector takes up to twice its content, and is copied from one of half that size.
    const GROWN: usize = 3;
    match tag {
        11 | 12 => fields(body).count() * ITEM,
        13 => GROWN * 4 * varints(body),
        14 | 18 => GROWN * 8 * varints(body),
        17 => GROWN * body.len(),
        40 => object(body, 0),
        _ => 0,
    }
}

/// The most numbers that these bytes can be.
fn varints(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte < 0x80).count()
}

fn object(body: &[u8], depth: usize) -> usize {
    if body.is_empty() || depth > MAX_DEPTH {
        return 0;
    }
    let values = |entry| fields(entry).filter(|(tag, _)| *tag == 2);
    let field = |(_, entry)| FIELD + values(entry).map(|(_, value)| json(value, depth)).sum::<usize>();
    OBJECT + body.len() + fields(body).map(field).sum::<usize>()
}

fn json(value: &[u8], depth: usize) -> usize {
    let kind = |(tag, body)| match tag {
        5 => object(body, depth + 1),
        6 if depth > MAX_DEPTH => 0,
        6 => fields(body).map(|(_, element)| ELEMENT + json(element, depth + 1)).sum(),
        _ => 0,
    };
    fields(value).map(kind).sum()
}

/// The fields that have a length, up to the first invalid one, which the decoder will reject.
fn fields(message: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = message;
    std::iter::from_fn(move || {
        loop {
            let (tag, wire_type) = encoding::decode_key(&mut rest).ok()?;
            let width = match wire_type {
                WireType::Varint => {
                    encoding::decode_varint(&mut rest).ok()?;
                    continue;
                }
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                WireType::LengthDelimited => {
                    let length = usize::try_from(encoding::decode_varint(&mut rest).ok()?).ok()?;
                    let (body, tail) = rest.split_at_checked(length)?;
                    rest = tail;
                    return Some((tag, body));
                }
                WireType::StartGroup | WireType::EndGroup => continue,
            };
            rest = rest.get(width..)?;
        }
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value as JsonValue, value::Kind as JsonKind};

    use super::*;
    use crate::proto::{BoolList, Int64List, StringList, Value, value::Kind};
    use crate::record::FeatureRecord;

    fn bulk(records: Vec<FeatureRecord>) -> Vec<u8> {
        BulkUpsertRequest { records, ..BulkUpsertRequest::default() }.encode_to_vec()
    }

    fn one(kind: Kind) -> Vec<u8> {
        let features = [("a".to_owned(), Value { kind: Some(kind) })].into_iter().collect();
        bulk(vec![FeatureRecord { features, ..FeatureRecord::default() }])
    }

    #[test]
    fn what_is_small_on_the_wire_is_counted_as_what_it_becomes() {
        let json = |kind| JsonValue { kind: Some(kind) };
        let object = |value| Struct { fields: [("a".to_owned(), value)].into_iter().collect() };
        let list = |value: JsonValue| object(json(JsonKind::ListValue(ListValue { values: vec![value; 1000] })));
        let null = || json(JsonKind::NullValue(0));
        for (message, at_least) in [
            (bulk(vec![FeatureRecord::default(); 1000]), 1000 * size_of::<FeatureRecord>()),
            (one(Kind::Int64ListVal(Int64List { val: vec![0; 1000] })), 8000),
            (one(Kind::BoolListVal(BoolList { val: vec![true; 1000] })), 1000),
            (one(Kind::StringListVal(StringList { val: vec![String::new(); 1000] })), 1000 * size_of::<String>()),
            (one(Kind::StructVal(list(null()))), 1000 * size_of::<JsonValue>()),
            (
                one(Kind::StructVal(list(json(JsonKind::StructValue(object(null())))))),
                1000 * 11 * size_of::<JsonValue>(),
            ),
            (DeleteFeaturesRequest { entity_ids: vec![String::new(); 1000], ..Default::default() }.encode_to_vec(), 0),
        ] {
            let unfolded = bulk_upsert(&message).max(delete_features(&message));
            assert!(unfolded > at_least && unfolded > 2 * message.len(), "{unfolded} of {} bytes", message.len());
        }
        let large = one(Kind::StringVal("x".repeat(100_000)));
        assert!(bulk_upsert(&large) < large.len() + 4000, "a text takes what it is");
    }

    #[test]
    fn what_cannot_be_read_is_counted_as_far_as_it_can() {
        let message = one(Kind::Int64ListVal(Int64List { val: vec![0; 1000] }));
        for length in 0..message.len() {
            assert!(bulk_upsert(&message[..length]) <= bulk_upsert(&message));
        }
        for byte in 0..=255 {
            upsert_features(&[byte; 100]);
        }
    }
}
