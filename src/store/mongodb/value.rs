//! Values as BSON: natural types, so that people can query them, and the number of the kind if BSON
//! has no type for it.
//!
//! On reading, the BSON type has priority, because people edit documents by hand. A kind counts
//! only if it fits.

use bson::{RawArray, RawBsonRef, RawDocument};
use prost::{
    Message as _,
    encoding::{WireType, bool, double, encode_key, encode_varint, float, int32, int64},
};
use prost_types::{ListValue, Struct, Value as JsonValue, value::Kind as JsonKind};

use crate::{
    proto::{self, Value, value::Kind},
    record::float32::narrow,
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
pub(super) const STRUCT: i32 = 40;

/// Reads a value and appends its encoded form. None: no kind of value fits. Most values are not
/// converted to a `Value` between.
pub(super) fn encode(bson: RawBsonRef<'_>, kind: Option<i32>, into: &mut Vec<u8>) -> Option<()> {
    match (bson, kind) {
        (RawBsonRef::Null, _) => int32::encode(19, &0, into),
        (RawBsonRef::Double(number), Some(FLOAT)) if fits_float(number) => float::encode(6, &narrow(number), into),
        (RawBsonRef::Double(number), _) => double::encode(5, &number, into),
        (RawBsonRef::Int32(number), None) => int32::encode(3, &number, into),
        (RawBsonRef::Int64(number), None) => int64::encode(4, &number, into),
        (RawBsonRef::Boolean(flag), _) => bool::encode(7, &flag, into),
        (RawBsonRef::String(text), _) => {
            encode_key(2, WireType::LengthDelimited, into);
            encode_varint(text.len() as u64, into);
            into.extend_from_slice(text.as_bytes());
        }
        (bson, kind) => from_bson(bson, kind)?.encode_raw(into),
    }
    Some(())
}

/// Reads a value. None: no kind of value fits.
fn from_bson(bson: RawBsonRef<'_>, kind: Option<i32>) -> Option<Value> {
    let kind = match (bson, kind) {
        (RawBsonRef::Null, _) => Kind::NullVal(0),
        (RawBsonRef::Double(number), Some(FLOAT)) if fits_float(number) => Kind::FloatVal(narrow(number)),
        (RawBsonRef::Double(number), _) => Kind::DoubleVal(number),
        (RawBsonRef::Int32(seconds), Some(UNIX_TIMESTAMP)) => Kind::UnixTimestampVal(i64::from(seconds)),
        (RawBsonRef::Int64(seconds), Some(UNIX_TIMESTAMP)) => Kind::UnixTimestampVal(seconds),
        (RawBsonRef::Int32(number), _) => Kind::Int32Val(number),
        (RawBsonRef::Int64(number), _) => Kind::Int64Val(number),
        (RawBsonRef::Boolean(flag), _) => Kind::BoolVal(flag),
        (RawBsonRef::String(text), _) => Kind::StringVal(text.to_owned()),
        (RawBsonRef::DateTime(at), _) => Kind::UnixTimestampVal(seconds(at)),
        (RawBsonRef::Binary(binary), Some(STRUCT)) => {
            Kind::StructVal(Struct::decode(binary.bytes).ok().filter(|object| struct_fits(object, MESSAGES))?)
        }
        (RawBsonRef::Binary(binary), _) => Kind::BytesVal(binary.bytes.to_vec().into()),
        (RawBsonRef::Document(document), _) => Kind::StructVal(document_to_struct(document, MESSAGES)?),
        (RawBsonRef::Array(items), kind) => list(items, kind)?,
        _ => return None,
    };
    Some(Value { kind: Some(kind) })
}

/// A number typed by hand may be too large for a float; then it stays a double.
fn fits_float(number: f64) -> bool {
    !number.is_finite() || (number as f32).is_finite()
}

fn seconds(at: bson::DateTime) -> i64 {
    at.timestamp_millis().div_euclid(1000)
}

fn list(items: &RawArray, kind: Option<i32>) -> Option<Kind> {
    kind.and_then(|kind| typed_list(items, kind)).or_else(|| {
        // Written by hand: the first type that fits every item.
        let inferred = [STRING_LIST, INT32_LIST, INT64_LIST, DOUBLE_LIST, BOOL_LIST, BYTES_LIST, UNIX_TIMESTAMP_LIST];
        inferred.into_iter().find_map(|kind| typed_list(items, kind))
    })
}

/// None: some item has another type.
fn typed_list(items: &RawArray, kind: i32) -> Option<Kind> {
    Some(match kind {
        BYTES_LIST => Kind::BytesListVal(proto::BytesList { val: all(items, bytes_of)? }),
        STRING_LIST => Kind::StringListVal(proto::StringList { val: all(items, |i| i.as_str().map(str::to_owned))? }),
        INT32_LIST => Kind::Int32ListVal(proto::Int32List { val: all(items, RawBsonRef::as_i32)? }),
        INT64_LIST => Kind::Int64ListVal(proto::Int64List { val: all(items, integer)? }),
        DOUBLE_LIST => Kind::DoubleListVal(proto::DoubleList { val: all(items, number)? }),
        FLOAT_LIST => Kind::FloatListVal(proto::FloatList { val: all(items, float32)? }),
        BOOL_LIST => Kind::BoolListVal(proto::BoolList { val: all(items, RawBsonRef::as_bool)? }),
        UNIX_TIMESTAMP_LIST => {
            let time = |item: RawBsonRef<'_>| integer(item).or_else(|| item.as_datetime().map(seconds));
            Kind::UnixTimestampListVal(proto::Int64List { val: all(items, time)? })
        }
        _ => return None,
    })
}

/// Item by item, because a list of all of them would be larger than the array.
fn all<'a, T>(items: &'a RawArray, read: impl Fn(RawBsonRef<'a>) -> Option<T>) -> Option<Vec<T>> {
    items.into_iter().map(|item| read(item.ok()?)).collect()
}

fn bytes_of(item: RawBsonRef<'_>) -> Option<bytes::Bytes> {
    item.as_binary().map(|binary| binary.bytes.to_vec().into())
}

fn integer(item: RawBsonRef<'_>) -> Option<i64> {
    item.as_i64().or_else(|| item.as_i32().map(i64::from))
}

fn number(item: RawBsonRef<'_>) -> Option<f64> {
    item.as_f64().or_else(|| integer(item).map(|number| number as f64))
}

/// A number that was typed by hand is rounded once, whatever its type.
fn float32(item: RawBsonRef<'_>) -> Option<f32> {
    match item.as_f64() {
        Some(number) => fits_float(number).then(|| narrow(number)),
        None => integer(item).map(|number| number as f32),
    }
}

/// How deeply messages may be nested in a struct, itself included. Clients and this server accept
/// 100 in all, and around a struct are a request or response, a record or row, and the entry of a
/// feature.
const MESSAGES: u32 = 97;

/// `left`: how many levels of messages are allowed. None also if there are more, because no client
/// could have sent or can read that.
fn document_to_struct(document: &RawDocument, left: u32) -> Option<Struct> {
    let inner = left.checked_sub(1)?;
    let entry = |element: bson::error::Result<(&bson::raw::CStr, RawBsonRef<'_>)>| {
        let (key, value) = element.ok()?;
        // Each entry is a message, and so is its value.
        Some((key.as_str().to_owned(), bson_to_json(value, inner.checked_sub(2)?)?))
    };
    Some(Struct { fields: document.iter().map(entry).collect::<Option<_>>()? })
}

/// Whether a struct that is stored as bytes is not nested too deeply.
fn struct_fits(object: &Struct, left: u32) -> bool {
    let Some(inner) = left.checked_sub(1) else { return false };
    object.fields.values().all(|value| inner.checked_sub(2).is_some_and(|inner| json_fits(value, inner)))
}

fn json_fits(value: &JsonValue, left: u32) -> bool {
    match &value.kind {
        Some(JsonKind::StructValue(object)) => struct_fits(object, left),
        Some(JsonKind::ListValue(list)) => {
            let Some(inner) = left.checked_sub(1) else { return false };
            list.values.iter().all(|value| inner.checked_sub(1).is_some_and(|inner| json_fits(value, inner)))
        }
        // Clients do not send values without a kind.
        kind => kind.is_some(),
    }
}

fn bson_to_json(value: RawBsonRef<'_>, left: u32) -> Option<JsonValue> {
    let kind = match value {
        RawBsonRef::Null => JsonKind::NullValue(0),
        RawBsonRef::Boolean(flag) => JsonKind::BoolValue(flag),
        RawBsonRef::String(text) => JsonKind::StringValue(text.to_owned()),
        RawBsonRef::Document(document) => JsonKind::StructValue(document_to_struct(document, left)?),
        RawBsonRef::Array(items) => {
            let inner = left.checked_sub(1)?;
            let items = items.into_iter().map(|item| bson_to_json(item.ok()?, inner.checked_sub(1)?));
            JsonKind::ListValue(ListValue { values: items.collect::<Option<_>>()? })
        }
        other => JsonKind::NumberValue(number(other)?),
    };
    Some(JsonValue { kind: Some(kind) })
}
