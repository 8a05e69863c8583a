//! Reads of the collection `features`.
//!
//! A reply of MongoDB has up to 16 MiB. So a read asks for as many documents at a time as have
//! `READ_BYTES` together by their recent size, and stops when it has these bytes.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bson::{Document, RawBsonRef, RawDocument, doc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::{options::Collation, raw_batch_cursor::RawBatch};
use tokio::time::Instant;

use super::{
    FEATURES,
    connection::{Command, Connection, Lane},
    document,
    failure::Failure,
};
use crate::{
    record::{RecordKey, State, TypicalSize},
    store::{READ_BYTES, ReadConcern, StoreError},
};

/// The most single reads that a linearizable batch makes at the same time.
const LINEARIZABLE_AT_ONCE: usize = 32;
/// The assumed size of a document before any was seen: a usual batch is one reply.
pub(super) const UNSEEN_BYTES: usize = 4 << 10;

/// Compares ids byte by byte, even in a collection with another collation, until that is found.
pub(super) fn simple() -> Collation {
    Collation::builder().locale("simple").build()
}

/// Reads records, in the order of the keys. `size`: the recent size of documents.
pub(super) async fn read(
    connection: &Connection,
    size: &TypicalSize,
    keys: &[RecordKey],
    concern: ReadConcern,
    deadline: Instant,
) -> Vec<Result<State, StoreError>> {
    match concern {
        ReadConcern::Majority => read_majority(connection, size, keys, deadline).await,
        // Linearizable reads are defined for one document at a time.
        ReadConcern::Linearizable => {
            let brought = AtomicUsize::new(0);
            let at_once = size.records_in(READ_BYTES).min(LINEARIZABLE_AT_ONCE);
            let brought = &brought;
            let reads = keys.iter().cloned().map(|key| async move {
                if brought.load(Relaxed) >= READ_BYTES {
                    return Err(StoreError::LeftOut);
                }
                let state = read_linearizable(connection, key, deadline).await;
                if let Ok(State::Record(record)) = &state {
                    let bytes = record.as_bytes().len();
                    size.saw(1, bytes);
                    brought.fetch_add(bytes, Relaxed);
                }
                state
            });
            futures_util::stream::iter(reads).buffered(at_once).collect().await
        }
    }
}

async fn read_majority(
    connection: &Connection,
    size: &TypicalSize,
    keys: &[RecordKey],
    deadline: Instant,
) -> Vec<Result<State, StoreError>> {
    let failed = |failure: Failure| {
        let error = failure.of_read();
        keys.iter().map(|_| Err(error.clone())).collect()
    };
    let (batches, is_whole) = match find_at_most(connection, keys, None, Some(size), deadline).await {
        Ok(found) => found,
        Err(failure) => return failed(failure),
    };
    let found = match by_key(&batches) {
        Ok(found) => found,
        Err(failure) => return failed(failure),
    };
    let bytes = found.values().map(|document| document.as_bytes().len()).sum();
    size.saw(found.len(), bytes);
    let (mut reader, mut brought) = (document::Reader::new(bytes), 0);
    let mut state = |key: &RecordKey| match found.get(&name(key)) {
        Some(_) if brought >= READ_BYTES => Err(StoreError::LeftOut),
        Some(document) => {
            brought += document.as_bytes().len();
            reader.state(document).map_err(|error| error.of_record(key))
        }
        None if is_whole => Ok(State::Absent),
        // It may be in the part that was not read.
        None => Err(StoreError::LeftOut),
    };
    keys.iter().map(&mut state).collect()
}

async fn read_linearizable(connection: &Connection, key: RecordKey, deadline: Instant) -> Result<State, StoreError> {
    let filter = doc! { "_id": document::id(&key) };
    let found = connection
        .run(Command::new("find", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.linearizable(FEATURES);
            async move { features.find_one(filter).collation(simple()).max_time(left).await }
        })
        .await
        .map_err(Failure::of_read)?;
    found.map_or(Ok(State::Absent), |document| document::state(&document)).map_err(|error| error.of_record(&key))
}

/// The documents of these keys, unordered, in one query, with all fields or those of the
/// projection. They stay in MongoDB's replies, see `by_key`.
pub(super) async fn find(
    connection: &Connection,
    keys: &[RecordKey],
    projection: Option<Document>,
    deadline: Instant,
) -> Result<Vec<RawBatch>, Failure> {
    Ok(find_at_most(connection, keys, projection, None, deadline).await?.0)
}

/// As `find`. With `size`, only about `READ_BYTES` of documents, and whether these were all.
async fn find_at_most(
    connection: &Connection,
    keys: &[RecordKey],
    projection: Option<Document>,
    size: Option<&TypicalSize>,
    deadline: Instant,
) -> Result<(Vec<RawBatch>, bool), Failure> {
    if keys.is_empty() {
        return Ok((Vec::new(), true));
    }
    let ids: Vec<Document> = keys.iter().map(document::id).collect();
    let (count, enough) = (ids.len(), size.map_or(usize::MAX, |_| READ_BYTES));
    // One more, to avoid a getMore for the end.
    let batch_size = size.map_or(usize::MAX, |size| size.records_in(READ_BYTES)).min(count + 1);
    let batch_size = u32::try_from(batch_size).unwrap_or(u32::MAX);
    connection
        .run(Command::new("find", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.majority(FEATURES);
            async move {
                let mut find = features.find(doc! { "_id": { "$in": ids } }).batch_size(batch_size).max_time(left);
                find = find.collation(simple());
                if let Some(projection) = projection {
                    find = find.projection(projection);
                }
                let mut cursor = find.batch().await?;
                let (mut batches, mut bytes) = (Vec::<RawBatch>::new(), 0);
                while let Some(batch) = cursor.try_next().await? {
                    bytes += batch.doc_slices()?.as_bytes().len();
                    batches.push(batch);
                    if bytes >= enough {
                        let documents = batches.iter().flat_map(RawBatch::doc_slices).flatten().count();
                        return Ok((batches, documents == count));
                    }
                }
                Ok((batches, true))
            }
        })
        .await
}

/// Documents by view and entity id. An unreadable reply is a failure: nothing in it may count as
/// absent.
pub(super) fn by_key(batches: &[RawBatch]) -> Result<ByKey<'_>, Failure> {
    let mut found = ByKey::default();
    for batch in batches {
        for document in batch.doc_slices().map_err(Failure::from)? {
            let Ok(RawBsonRef::Document(document)) = document else {
                return Err(Failure::not_done("the reply of MongoDB cannot be read"));
            };
            if let Some(key) = document::key_of(document) {
                found.insert(key, document);
            }
        }
    }
    Ok(found)
}

/// The result of `by_key`.
pub(super) type ByKey<'a> = HashMap<(&'a str, &'a str), &'a RawDocument, ahash::RandomState>;

/// A key in the form of `by_key`.
pub(super) fn name(key: &RecordKey) -> (&str, &str) {
    (key.view.as_str(), key.entity_id.as_str())
}
