//! Reading the documents of the collection `features`.
//!
//! People may have edited them: the BSON types win, and what makes no sense is `Corrupt`, never absence.

use std::collections::HashMap;

use bson::{Document, RawBsonRef, RawDocument, doc};

use super::value;
use crate::{
    record::{FeatureName, Features, Millis, RecordKey, Revision, Snapshot, State, encoding::StoredRecord},
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

/// What a document says of its key.
pub(super) fn state(document: &RawDocument) -> Result<State, StoreError> {
    let revision = revision(document)?;
    if let Some(RawBsonRef::Boolean(true)) = field(document, "deleted")? {
        return Ok(State::Tombstone(revision));
    }
    let snapshot = Snapshot {
        features: features(document)?,
        model_version: match field(document, "model_version")? {
            None | Some(RawBsonRef::Null) => String::new(),
            Some(RawBsonRef::String(text)) => text.to_owned(),
            Some(_) => return Err(corrupt("model_version")),
        },
        revision,
        event_time: time(document, "event_time")?.ok_or_else(|| corrupt("event_time"))?,
        write_time: time(document, "write_time")?.ok_or_else(|| corrupt("write_time"))?,
        expire_at: time(document, "expire_at")?,
    };
    Ok(State::Record(StoredRecord::encode(&snapshot)))
}

/// The revision of the record or tombstone in a document.
pub(super) fn revision(document: &RawDocument) -> Result<Revision, StoreError> {
    let number = match field(document, "rev")? {
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

fn features(document: &RawDocument) -> Result<Features, StoreError> {
    let Some(RawBsonRef::Document(stored)) = field(document, "features")? else {
        return Err(corrupt("features"));
    };
    let kinds: HashMap<&str, i32> = match field(document, "kinds")? {
        Some(RawBsonRef::Document(kinds)) => {
            kinds.iter().flatten().filter_map(|(name, kind)| Some((name.as_str(), kind_number(kind)?))).collect()
        }
        _ => HashMap::new(),
    };
    let mut features = Features::new();
    for element in stored {
        let (name, bson) = element.map_err(|_| corrupt("features"))?;
        let name = name.as_str();
        let feature = FeatureName::parse(name).map_err(|_| corrupt("the name of a feature"))?;
        let value = value::from_bson(bson, kinds.get(name).copied());
        features.insert(feature, value.ok_or_else(|| corrupt(&format!("features.{name}")))?);
    }
    Ok(features)
}

fn kind_number(kind: RawBsonRef<'_>) -> Option<i32> {
    match kind {
        RawBsonRef::Int32(number) => Some(number),
        RawBsonRef::Int64(number) => i32::try_from(number).ok(),
        RawBsonRef::Double(number) => Some(number as i32),
        _ => None,
    }
}

fn time(document: &RawDocument, name: &str) -> Result<Option<Millis>, StoreError> {
    match field(document, name)? {
        None | Some(RawBsonRef::Null) => Ok(None),
        Some(RawBsonRef::DateTime(at)) => Ok(Some(Millis(at.timestamp_millis()))),
        Some(_) => Err(corrupt(name)),
    }
}

fn field<'a>(document: &'a RawDocument, name: &str) -> Result<Option<RawBsonRef<'a>>, StoreError> {
    document.get(name).map_err(|_| corrupt("the document's BSON"))
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} is not as it should be").into())
}
