//! Reading the documents of the collection `features`.
//!
//! People may have edited them: the BSON types win, and what makes no sense is `Corrupt`, never absence.

use std::collections::HashMap;

use bson::{Document, RawBsonRef, RawDocument, doc, spec::ElementType};

use super::value;
use crate::{
    record::{
        FeatureName, Millis, RecordKey, Revision, State,
        encoding::{Encoder, Head},
    },
    store::{Outcome, RequestId, StoreError},
};

/// The key as `_id`. MongoDB compares embedded documents byte by byte, so the order of the fields is part of the format.
pub(super) fn id(key: &RecordKey) -> Document {
    doc! { "view": key.view.as_str(), "entity_id": key.entity_id.as_str() }
}

/// The view and entity id of a document.
pub(super) fn key_of(document: &RawDocument) -> Option<(&str, &str)> {
    let id = document.get_document("_id").ok()?;
    Some((id.get_str("view").ok()?, id.get_str("entity_id").ok()?))
}

/// What a document says of its key. Its features go from BSON to stored bytes without anything between.
pub(super) fn state(document: &RawDocument) -> Result<State, StoreError> {
    let mut fields = Fields::default();
    for element in document {
        let (name, value) = element.map_err(|_| corrupt("the document's BSON"))?;
        fields.take(name.as_str(), value);
    }
    let revision = as_revision(fields.rev)?;
    if let Some(RawBsonRef::Boolean(true)) = fields.deleted {
        return Ok(State::Tombstone(revision));
    }
    let features = features(&fields, document.as_bytes().len())?;
    let model_version = match fields.model_version {
        None | Some(RawBsonRef::Null) => "",
        Some(RawBsonRef::String(text)) => text,
        Some(_) => return Err(corrupt("model_version")),
    };
    Ok(State::Record(features.finish(Head {
        model_version,
        revision,
        event_time: time(fields.event_time, "event_time")?.ok_or_else(|| corrupt("event_time"))?,
        write_time: time(fields.write_time, "write_time")?.ok_or_else(|| corrupt("write_time"))?,
        expire_at: time(fields.expire_at, "expire_at")?,
    })))
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
    fn take(&mut self, name: &str, value: RawBsonRef<'a>) {
        let field = match name {
            "rev" => &mut self.rev,
            "deleted" => &mut self.deleted,
            "features" => &mut self.features,
            "kinds" => &mut self.kinds,
            "model_version" => &mut self.model_version,
            "event_time" => &mut self.event_time,
            "write_time" => &mut self.write_time,
            "expire_at" => &mut self.expire_at,
            _ => return,
        };
        *field = Some(value);
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
    if number > 0 { Ok(Revision(number)) } else { Err(corrupt("rev")) }
}

/// What became of the write with this id, if the document remembers it.
pub(super) fn outcome_of(document: &RawDocument, request_id: &RequestId) -> Option<Outcome> {
    let requests = document.get_array("requests").ok()?;
    let remembered = requests
        .into_iter()
        .filter_map(|entry| entry.ok()?.as_document())
        .find(|entry| entry.get_str("id").is_ok_and(|id| id == &*request_id.0))?;
    let number = || remembered.get_i64("number").ok();
    Some(match remembered.get_str("outcome").ok()? {
        "written" => Outcome::Written,
        "skipped_stale" => Outcome::SkippedStale,
        "deleted" => Outcome::Deleted,
        "not_found" => Outcome::NotFound,
        "revision_mismatch" => Outcome::RevisionMismatch { stored: Revision(number()?) },
        "too_many_features" => Outcome::TooManyFeatures { count: usize::try_from(number()?).ok()? },
        "record_too_large" => Outcome::RecordTooLarge { bytes: usize::try_from(number()?).ok()? },
        _ => return None,
    })
}

/// The features in stored form; `room` is about how much they take.
fn features(fields: &Fields<'_>, room: usize) -> Result<Encoder, StoreError> {
    let Some(RawBsonRef::Document(stored)) = fields.features else {
        return Err(corrupt("features"));
    };
    let kinds: HashMap<&str, i32> = match fields.kinds {
        Some(RawBsonRef::Document(kinds)) => {
            kinds.iter().flatten().filter_map(|(name, kind)| Some((name.as_str(), kind_number(kind)?))).collect()
        }
        _ => HashMap::new(),
    };
    let mut features: Vec<(&str, RawBsonRef<'_>)> = Vec::with_capacity(32);
    if plain(stored, &mut features).is_none() {
        features.clear();
        for element in stored {
            let (name, value) = element.map_err(|_| corrupt("features"))?;
            features.push((name.as_str(), value));
        }
    }
    // Merges put new features last. Of equal names, which only people make, the last counts.
    if !features.is_sorted_by(|(one, _), (next, _)| one < next) {
        features.reverse();
        features.sort_by_key(|(name, _)| *name);
        features.dedup_by_key(|(name, _)| *name);
    }
    let (mut encoder, mut value) = (Encoder::with_capacity(room), Vec::with_capacity(32));
    for (name, bson) in features {
        if !FeatureName::is_allowed(name) {
            return Err(corrupt("the name of a feature"));
        }
        value.clear();
        let kind = if kinds.is_empty() { None } else { kinds.get(name).copied() };
        value::encode(bson, kind, &mut value).ok_or_else(|| corrupt(&format!("features.{name}")))?;
        encoder.put(name, &value);
    }
    Ok(encoder)
}

/// The elements of a document whose values are of the usual kinds, which most have: in half the time of the library's
/// iterator. None: it has others, or is not as it should be.
fn plain<'a>(document: &'a RawDocument, into: &mut Vec<(&'a str, RawBsonRef<'a>)>) -> Option<()> {
    let mut rest = document.as_bytes().get(4..)?; // its length
    loop {
        let (kind, tail) = rest.split_first()?;
        if *kind == 0 {
            return tail.is_empty().then_some(());
        }
        let (name, tail) = tail.split_at(tail.iter().position(|byte| *byte == 0)?);
        let name = std::str::from_utf8(name).ok()?;
        let tail = &tail[1..];
        let value;
        (value, rest) = match ElementType::from(*kind)? {
            ElementType::Double => {
                let (bytes, rest) = tail.split_first_chunk()?;
                (RawBsonRef::Double(f64::from_le_bytes(*bytes)), rest)
            }
            ElementType::Int64 => {
                let (bytes, rest) = tail.split_first_chunk()?;
                (RawBsonRef::Int64(i64::from_le_bytes(*bytes)), rest)
            }
            ElementType::Int32 => {
                let (bytes, rest) = tail.split_first_chunk()?;
                (RawBsonRef::Int32(i32::from_le_bytes(*bytes)), rest)
            }
            ElementType::String => {
                let (bytes, rest) = tail.split_first_chunk()?;
                let (text, rest) = rest.split_at_checked(usize::try_from(i32::from_le_bytes(*bytes)).ok()?)?;
                let text = text.strip_suffix(&[0])?;
                (RawBsonRef::String(std::str::from_utf8(text).ok()?), rest)
            }
            ElementType::Boolean => {
                let (flag @ (0 | 1), rest) = tail.split_first()? else { return None };
                (RawBsonRef::Boolean(*flag == 1), rest)
            }
            ElementType::Null => (RawBsonRef::Null, tail),
            _ => return None,
        };
        into.push((name, value));
    }
}

fn kind_number(kind: RawBsonRef<'_>) -> Option<i32> {
    match kind {
        RawBsonRef::Int32(number) => Some(number),
        RawBsonRef::Int64(number) => i32::try_from(number).ok(),
        RawBsonRef::Double(number) => Some(number as i32),
        _ => None,
    }
}

fn time(field: Option<RawBsonRef<'_>>, name: &str) -> Result<Option<Millis>, StoreError> {
    match field {
        None | Some(RawBsonRef::Null) => Ok(None),
        Some(RawBsonRef::DateTime(at)) => Ok(Some(Millis(at.timestamp_millis()))),
        Some(_) => Err(corrupt(name)),
    }
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} is not as it should be").into())
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

    #[test]
    fn plain_documents_are_read_as_the_library_reads_them() {
        let plain_one =
            doc! { "a": 1.5, "b": "text é", "": "", "c": true, "d": false, "e": null, "f": -1_i32, "g": -2_i64 };
        let read = |bytes: &[u8]| {
            let document = RawDocument::from_bytes(bytes).ok()?;
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            plain(document, &mut ours)?;
            for element in document {
                let (name, value) = element.expect("what is read here is read there");
                theirs.push((name.as_str(), value));
            }
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}")); // NaN too
            Some(ours.len())
        };
        let bytes = RawDocumentBuf::try_from(&plain_one).unwrap().into_bytes();
        assert_eq!(read(&bytes), Some(plain_one.len()));
        assert_eq!(read(&RawDocumentBuf::new().into_bytes()), Some(0));
        for other in [doc! { "a": 1, "b": [1] }, doc! { "a": {} }, doc! { "a": bson::DateTime::from_millis(1) }] {
            assert_eq!(read(&RawDocumentBuf::try_from(&other).unwrap().into_bytes()), None);
        }
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            read(&bad);
        }
        for len in 0..bytes.len() {
            let mut cut = [&bytes[..len], &[0]].concat();
            let length = cut.len() as i32;
            if let Some(head) = cut.first_chunk_mut() {
                *head = length.to_le_bytes();
            }
            read(&cut);
        }
    }
}
