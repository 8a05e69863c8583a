//! Reads documents of the collection `features`.
//!
//! People may have edited them. The BSON types have priority, and an invalid value is `Corrupt`,
//! never absent.

use std::{
    collections::HashMap,
    ops::{Range, RangeInclusive},
};

use bson::{Document, RawBsonRef, RawDocument, doc};
use bytes::BytesMut;

use super::{value, walk::walk};
use crate::{
    record::{
        FeatureName, Millis, RecordKey, Revision, State,
        encoding::{Encoder, Head},
    },
    store::StoreError,
};

/// The key as `_id`. MongoDB compares embedded documents byte by byte, so the order of the fields
/// is part of the format.
pub(super) fn id(key: &RecordKey) -> Document {
    doc! { "view": key.view.as_str(), "entity_id": key.entity_id.as_str() }
}

/// The view and entity id of a document.
pub(super) fn key_of(document: &RawDocument) -> Option<(&str, &str)> {
    let mut id = None;
    // It is the first field, unless it was moved. `walk` is faster; the library reads what `walk`
    // does not.
    walk(document, |name, value| {
        id = value.filter(|_| name == b"_id");
        None
    });
    let id = match id {
        Some(RawBsonRef::Document(id)) => id,
        _ => document.get_document("_id").ok()?,
    };
    let (mut view, mut entity_id) = (None, None);
    walk(id, |name, value| {
        match name {
            b"view" => view = value?.as_str(),
            b"entity_id" => entity_id = value?.as_str(),
            _ => {}
        }
        Some(())
    });
    Some((view.or_else(|| id.get_str("view").ok())?, entity_id.or_else(|| id.get_str("entity_id").ok())?))
}

/// Whether the remembered requests can be read. A write that needs the stored record must know
/// whether it was done before.
pub(super) fn requests_are_usable(document: &RawDocument) -> Result<(), StoreError> {
    match document.get("requests") {
        Ok(None | Some(RawBsonRef::Array(_))) => Ok(()),
        _ => Err(corrupt("requests")),
    }
}

/// The state in a document.
pub(super) fn state(document: &RawDocument) -> Result<State, StoreError> {
    Reader::new(document.as_bytes().len()).state(document)
}

/// The fields of a document beside its id. Each document that a server wrote has at least one.
pub(super) const FIELDS: [&str; 9] =
    ["rev", "features", "deleted", "requests", "event_time", "write_time", "expire_at", "model_version", "kinds"];
/// The revisions that a record may have: the scripts of L1 compute with doubles, which are exact
/// below 2^53.
pub(super) const REVISIONS: Range<i64> = 1..1 << 53;
/// The times that a record may have, in ms: the range of google.protobuf.Timestamp, which clients
/// can send and read.
pub(super) const TIMES: RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// About how many bytes of records share a buffer.
const CHUNK_BYTES: usize = 32 << 10;

/// Reads documents. Features go directly from BSON to stored bytes; the records share buffers.
pub(super) struct Reader {
    encoder: Encoder,
    /// The bytes of a value.
    value: Vec<u8>,
    chunk: BytesMut,
}

impl Reader {
    /// For documents of about this many bytes together.
    pub(super) fn new(bytes: usize) -> Self {
        let chunk = BytesMut::with_capacity(bytes.min(CHUNK_BYTES));
        Self { encoder: Encoder::with_capacity(bytes.min(CHUNK_BYTES)), value: Vec::with_capacity(64), chunk }
    }

    /// The state in a document.
    pub(super) fn state(&mut self, document: &RawDocument) -> Result<State, StoreError> {
        let fields = Fields::of(document)?;
        let revision = as_revision(fields.rev)?;
        match fields.deleted {
            Some(RawBsonRef::Boolean(true)) => return Ok(State::Tombstone(revision)),
            None | Some(RawBsonRef::Boolean(false)) => {}
            Some(_) => return Err(corrupt("deleted")),
        }
        self.put_features(&fields)?;
        let model_version = match fields.model_version {
            None | Some(RawBsonRef::Null) => "",
            Some(RawBsonRef::String(text)) => text,
            Some(_) => return Err(corrupt("model_version")),
        };
        let head = Head {
            model_version,
            revision,
            event_time: time(fields.event_time, "event_time")?.ok_or_else(|| corrupt("event_time"))?,
            write_time: time(fields.write_time, "write_time")?.ok_or_else(|| corrupt("write_time"))?,
            expire_at: time(fields.expire_at, "expire_at")?,
        };
        Ok(State::Record(self.encoder.finish_in(head, &mut self.chunk)))
    }

    /// Puts the features into the encoder.
    fn put_features(&mut self, fields: &Fields<'_>) -> Result<(), StoreError> {
        let Some(RawBsonRef::Document(stored)) = fields.features else {
            return Err(corrupt("features"));
        };
        let kinds = kinds(fields.kinds)?;
        let kind_of = |name: &str| if kinds.is_empty() { None } else { kinds.get(name).copied() };
        // Most documents are sorted and have the usual kinds.
        self.encoder.clear();
        let mut last: &[u8] = &[];
        let put_all = walk(stored, |name, value| {
            if name <= last || !FeatureName::is_allowed(name) {
                return None;
            }
            last = name;
            let name = std::str::from_utf8(name).ok()?;
            self.value.clear();
            value::encode(value?, kind_of(name), &mut self.value)?;
            self.encoder.put(name, &self.value);
            Some(())
        });
        if put_all.is_some() {
            return Ok(());
        }
        self.encoder.clear();
        for (name, bson) in sorted(stored)? {
            if !FeatureName::is_allowed(name.as_bytes()) {
                return Err(corrupt("the name of a feature"));
            }
            self.value.clear();
            value::encode(bson, kind_of(name), &mut self.value).ok_or_else(|| corrupt(&format!("features.{name}")))?;
            self.encoder.put(name, &self.value);
        }
        Ok(())
    }
}

/// The numbers of the kinds for which BSON has no type, by feature name.
fn kinds(field: Option<RawBsonRef<'_>>) -> Result<HashMap<&str, i32>, StoreError> {
    let kinds = match field {
        None | Some(RawBsonRef::Null) => return Ok(HashMap::new()),
        Some(RawBsonRef::Document(kinds)) => kinds,
        Some(_) => return Err(corrupt("kinds")),
    };
    let mut numbers = HashMap::new();
    for element in kinds {
        let (name, kind) = element.map_err(|_| corrupt("kinds"))?;
        numbers.insert(name.as_str(), kind_number(kind).ok_or_else(|| corrupt("kinds"))?);
    }
    Ok(numbers)
}

/// The fields of a document that make its state.
#[derive(Default)]
struct Fields<'a> {
    rev: Option<RawBsonRef<'a>>,
    deleted: Option<RawBsonRef<'a>>,
    features: Option<RawBsonRef<'a>>,
    kinds: Option<RawBsonRef<'a>>,
    model_version: Option<RawBsonRef<'a>>,
    event_time: Option<RawBsonRef<'a>>,
    write_time: Option<RawBsonRef<'a>>,
    expire_at: Option<RawBsonRef<'a>>,
}

impl<'a> Fields<'a> {
    fn of(document: &'a RawDocument) -> Result<Self, StoreError> {
        let mut fields = Self::default();
        let taken = walk(document, |name, value| {
            if let Some(field) = fields.named(name) {
                *field = Some(value?);
            }
            Some(())
        });
        if taken.is_none() {
            fields = Self::default();
            for element in document {
                let (name, value) = element.map_err(|_| corrupt("the document's BSON"))?;
                if let Some(field) = fields.named(name.as_str().as_bytes()) {
                    *field = Some(value);
                }
            }
        }
        Ok(fields)
    }

    fn named(&mut self, name: &[u8]) -> Option<&mut Option<RawBsonRef<'a>>> {
        Some(match name {
            b"rev" => &mut self.rev,
            b"deleted" => &mut self.deleted,
            b"features" => &mut self.features,
            b"kinds" => &mut self.kinds,
            b"model_version" => &mut self.model_version,
            b"event_time" => &mut self.event_time,
            b"write_time" => &mut self.write_time,
            b"expire_at" => &mut self.expire_at,
            _ => return None,
        })
    }
}

/// The revision of the record or tombstone in a document.
pub(super) fn revision(document: &RawDocument) -> Result<Revision, StoreError> {
    as_revision(document.get("rev").map_err(|_| corrupt("the document's BSON"))?)
}

fn as_revision(rev: Option<RawBsonRef<'_>>) -> Result<Revision, StoreError> {
    let number = match rev {
        Some(RawBsonRef::Int64(number)) => number,
        Some(RawBsonRef::Int32(number)) => i64::from(number),
        // A shell writes every number that is typed into it as a double.
        Some(RawBsonRef::Double(number)) if number.fract() == 0.0 => number as i64,
        _ => return Err(corrupt("rev")),
    };
    if REVISIONS.contains(&number) { Ok(Revision(number)) } else { Err(corrupt("rev")) }
}

/// The features by name.
fn sorted(stored: &RawDocument) -> Result<Vec<(&str, RawBsonRef<'_>)>, StoreError> {
    let mut features: Vec<(&str, RawBsonRef<'_>)> = Vec::with_capacity(32);
    let all = walk(stored, |name, value| {
        features.push((std::str::from_utf8(name).ok()?, value?));
        Some(())
    });
    if all.is_none() {
        features.clear();
        for element in stored {
            let (name, value) = element.map_err(|_| corrupt("features"))?;
            features.push((name.as_str(), value));
        }
    }
    // Merges put new features last. Of equal names, which only edits by hand make, the last counts.
    if !features.is_sorted_by(|(one, _), (next, _)| one < next) {
        features.reverse();
        features.sort_by_key(|(name, _)| *name);
        features.dedup_by_key(|(name, _)| *name);
    }
    Ok(features)
}

fn kind_number(kind: RawBsonRef<'_>) -> Option<i32> {
    match kind {
        RawBsonRef::Int32(number) => Some(number),
        RawBsonRef::Int64(number) => i32::try_from(number).ok(),
        RawBsonRef::Double(number) if number.fract() == 0.0 => Some(number as i32),
        _ => None,
    }
}

fn time(field: Option<RawBsonRef<'_>>, name: &str) -> Result<Option<Millis>, StoreError> {
    match field {
        None | Some(RawBsonRef::Null) => Ok(None),
        Some(RawBsonRef::DateTime(at)) if TIMES.contains(&at.timestamp_millis()) => {
            Ok(Some(Millis(at.timestamp_millis())))
        }
        Some(_) => Err(corrupt(name)),
    }
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} is invalid in the document").into())
}

#[cfg(test)]
mod tests {
    use bson::RawDocumentBuf;

    use super::*;
    use crate::{
        proto::{Value, value::Kind},
        record::encoding::StoredRecord,
    };

    #[test]
    fn features_are_sorted_whatever_their_order_in_the_document() {
        let times = bson::DateTime::from_millis(5);
        let features = doc! { "zeta": 1.5, "alpha": 1_i32, "b-c": "text", "b:c": 2_i64, "flag": true, "none": null };
        let mut stored =
            RawDocumentBuf::try_from(&doc! { "rev": 7_i64, "event_time": times, "write_time": times }).unwrap();
        let mut twice = RawDocumentBuf::new();
        for (name, value) in doc! { "zeta": 9.5, "time": 3_i64 }.iter().chain(&features) {
            twice.append(
                bson::raw::CString::try_from(name.as_str()).unwrap(),
                bson::RawBson::try_from(value.clone()).unwrap(),
            );
        }
        stored.append(bson::raw::cstr!("features"), twice);
        stored.append(
            bson::raw::cstr!("kinds"),
            RawDocumentBuf::try_from(&doc! { "time": 8_i32, "zeta": 6_i32 }).unwrap(),
        );

        let State::Record(record) = state(&stored).unwrap() else { panic!("a record") };
        let decoded = record.decode().unwrap();
        let value = |kind| Value { kind: Some(kind) };
        let expected = [
            ("alpha", Kind::Int32Val(1)),
            ("b-c", Kind::StringVal("text".to_owned())),
            ("b:c", Kind::Int64Val(2)),
            ("flag", Kind::BoolVal(true)),
            ("none", Kind::NullVal(0)),
            ("time", Kind::UnixTimestampVal(3)),
            ("zeta", Kind::FloatVal(1.5)),
        ];
        let expected = expected.map(|(name, kind)| (FeatureName::parse(name).unwrap(), value(kind)));
        assert_eq!(decoded.features, expected.into_iter().collect());
        assert_eq!(StoredRecord::encode(&decoded), record);
    }
}
