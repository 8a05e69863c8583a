//! Reads of the collection `features`.

use std::collections::HashMap;

use bson::{Document, RawBsonRef, RawDocument, doc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::time::Instant;

use super::{
    FEATURES,
    connection::{Command, Connection, Lane},
    document,
    failure::Failure,
};
use crate::{
    record::{RecordKey, State},
    store::{ReadConcern, StoreError},
};

/// How many single reads a linearizable batch makes at the same time.
const LINEARIZABLE_AT_ONCE: usize = 32;

/// Reads records, in the order of the keys.
pub(super) async fn read(
    connection: &Connection,
    keys: &[RecordKey],
    concern: ReadConcern,
    deadline: Instant,
) -> Vec<Result<State, StoreError>> {
    match concern {
        ReadConcern::Majority => read_majority(connection, keys, deadline).await,
        // Linearizable reads are defined for one document at a time.
        ReadConcern::Linearizable => {
            let reads = keys.iter().cloned().map(|key| read_linearizable(connection, key, deadline));
            futures_util::stream::iter(reads).buffered(LINEARIZABLE_AT_ONCE).collect().await
        }
    }
}

async fn read_majority(
    connection: &Connection,
    keys: &[RecordKey],
    deadline: Instant,
) -> Vec<Result<State, StoreError>> {
    let failed = |failure: Failure| {
        let error = failure.of_read();
        keys.iter().map(|_| Err(error.clone())).collect()
    };
    let batches = match find(connection, keys, None, deadline).await {
        Ok(batches) => batches,
        Err(failure) => return failed(failure),
    };
    let found = match by_key(&batches) {
        Ok(found) => found,
        Err(failure) => return failed(failure),
    };
    let mut reader = document::Reader::new(found.values().map(|document| document.as_bytes().len()).sum());
    keys.iter().map(|key| found.get(&name(key)).map_or(Ok(State::Absent), |document| reader.state(document))).collect()
}

async fn read_linearizable(connection: &Connection, key: RecordKey, deadline: Instant) -> Result<State, StoreError> {
    let filter = doc! { "_id": document::id(&key) };
    let found = connection
        .run(Command::new("find", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.linearizable(FEATURES);
            async move { features.find_one(filter).max_time(left).await }
        })
        .await
        .map_err(Failure::of_read)?;
    found.map_or(Ok(State::Absent), |document| document::state(&document))
}

/// The documents of these keys, in no order, in one query; all of their fields or those of the projection. They stay in
/// MongoDB's replies, see `by_key`.
pub(super) async fn find(
    connection: &Connection,
    keys: &[RecordKey],
    projection: Option<Document>,
    deadline: Instant,
) -> Result<Vec<RawBatch>, Failure> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Document> = keys.iter().map(document::id).collect();
    let batch_size = u32::try_from(ids.len()).unwrap_or(u32::MAX).saturating_add(1); // one more: no getMore for the end
    connection
        .run(Command::new("find", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.majority(FEATURES);
            async move {
                let mut find = features.find(doc! { "_id": { "$in": ids } }).batch_size(batch_size).max_time(left);
                if let Some(projection) = projection {
                    find = find.projection(projection);
                }
                find.batch().await?.try_collect().await
            }
        })
        .await
}

/// Documents by view and entity id. A reply that cannot be read is a failure: nothing in it may count as absent.
pub(super) fn by_key(batches: &[RawBatch]) -> Result<ByKey<'_>, Failure> {
    let mut found = ByKey::default();
    for batch in batches {
        for document in batch.doc_slices().map_err(Failure::from)? {
            let Ok(RawBsonRef::Document(document)) = document else {
                return Err(Failure::not_done("MongoDB's reply cannot be read"));
            };
            if let Some(key) = document::key_of(document) {
                found.insert(key, document);
            }
        }
    }
    Ok(found)
}

/// What `by_key` makes.
pub(super) type ByKey<'a> = HashMap<(&'a str, &'a str), &'a RawDocument, ahash::RandomState>;

/// A key as `by_key` has it.
pub(super) fn name(key: &RecordKey) -> (&str, &str) {
    (key.view.as_str(), key.entity_id.as_str())
}
