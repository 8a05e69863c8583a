//! How much memory a write's message takes once it is decoded, told from its bytes before anything is built: an empty record
//! is two bytes on the wire and some hundred here, and so are an empty text of a list, or a number in an object.
//!
//! The figures are upper bounds for what the decoder builds, vectors that grow by doubling included. What goes from the message
//! to the stored bytes undecoded is counted all the same, as only the decoder knows whether it does.

use prost::encoding::{self, WireType};

/// A record without features, and what is made of it until it is answered: its write, its keys, its result.
const RECORD: usize = 1536;
/// A feature: its name, its value and its place in a map.
const FEATURE: usize = 192;
/// An item of a list of texts or bytes.
const ITEM: usize = 96;
/// An object that is not empty: a node of its map has room for eleven fields.
const OBJECT: usize = 800;
/// A field of an object.
const FIELD: usize = 128;
/// A value in a list of an object.
const ELEMENT: usize = 96;
/// An entity id of a delete.
const ID: usize = 512;
/// Objects within objects are decoded to this depth only.
const MAX_DEPTH: usize = 100;

/// Of a `BulkUpsertRequest`.
pub(super) fn bulk_upsert(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 3).map(|(_, body)| RECORD + record(body)).sum()
}

/// Of an `UpsertFeaturesRequest`.
pub(super) fn upsert_features(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 2).map(|(_, body)| record(body)).sum()
}

/// Of a `DeleteFeaturesRequest`.
pub(super) fn delete_features(message: &[u8]) -> usize {
    fields(message).filter(|(tag, _)| *tag == 2).count() * ID
}

fn record(body: &[u8]) -> usize {
    fields(body).filter(|(tag, _)| *tag == 2).map(|(_, entry)| FEATURE + feature(entry)).sum()
}

fn feature(entry: &[u8]) -> usize {
    fields(entry).filter(|(tag, _)| *tag == 2).flat_map(|(_, value)| fields(value)).map(value).sum()
}

/// Of one kind of a value, beside the value itself.
fn value((tag, body): (u32, &[u8])) -> usize {
    // A vector that grows is as large as what it holds up to twice, and copied from one half as large.
    const GROWN: usize = 3;
    match tag {
        11 | 12 => fields(body).count() * ITEM + body.len(),
        13 => GROWN * 4 * varints(body),
        14 | 18 => GROWN * 8 * varints(body),
        15..=17 => GROWN * body.len(),
        40 => object(body, 0),
        _ => body.len(),
    }
}

/// As many numbers as these bytes can be.
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

/// The fields of a message that have a length, up to where it cannot be read. The decoder tells what is wrong there.
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
