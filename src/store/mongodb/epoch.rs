//! The epoch: one document of the collection `meta`, `{_id: "epoch", epoch: <16 hex digits>, dirty: <bool>, since: <date>}`.
//!
//! These operations do not queue behind the users': a server that learns of the epoch too late must leave L1 alone, which
//! would make a busy L2 busier.

use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use mongodb::options::ReturnDocument;
use tokio::time::Instant;

use super::{
    META,
    connection::{Command, Connection, Lane},
    failure::Failure,
    write::TRIES,
};
use crate::{
    cache::Epoch,
    store::{EpochState, StoreError},
};

/// The epoch as it stands; the first call ever makes one.
///
/// Linearizable: a server trusts L1 by what it read here less than 2 s ago, and a deposed primary may go on answering
/// majority reads with what was true before it lost its majority.
pub(super) async fn read(connection: &Connection, deadline: Instant) -> Result<EpochState, StoreError> {
    let found = connection
        .run(Command::new("find", META), Lane::Reserved, deadline, |prepared, left| {
            let meta = prepared.linearizable(META);
            async move { meta.find_one(filter()).projection(with_age()).max_time(left).await }
        })
        .await
        .map_err(Failure::of_read)?;
    match found {
        Some(document) => state(&document),
        None => update(connection, filter(), missing(), true, deadline).await?.ok_or_else(lost),
    }
}

/// Replaces the epoch if it is still `seen`.
pub(super) async fn renew(connection: &Connection, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
    let mut still_seen = filter();
    still_seen.insert("epoch", seen.to_string());
    match update(connection, still_seen, fresh(), false, deadline).await? {
        Some(renewed) => Ok(renewed),
        None => read(connection, deadline).await,
    }
}

/// Marks the present epoch as dirty.
pub(super) async fn mark_dirty(connection: &Connection, deadline: Instant) -> Result<EpochState, StoreError> {
    let mut change = missing();
    change.insert("dirty", true);
    update(connection, filter(), change, true, deadline).await?.ok_or_else(lost)
}

fn filter() -> Document {
    doc! { "_id": "epoch" }
}

/// A new epoch, from now on.
fn fresh() -> Document {
    doc! { "epoch": Epoch(rand::random()).to_string(), "dirty": false, "since": "$$NOW" }
}

/// What is not there yet.
fn missing() -> Document {
    fresh().into_iter().map(|(name, value)| (name.clone(), doc! { "$ifNull": [format!("${name}"), value] })).fold(
        Document::new(),
        |mut change, (name, value)| {
            change.insert(name, value);
            change
        },
    )
}

/// The document, and how long its epoch has stood by the server's clock.
fn with_age() -> Document {
    doc! { "epoch": 1, "dirty": 1, "age": { "$toLong": { "$subtract": ["$$NOW", "$since"] } } }
}

fn lost() -> StoreError {
    StoreError::Internal("an upsert answered no document".into())
}

/// Every change made here may be repeated: it is done again, or finds that it was done.
async fn update(
    connection: &Connection,
    filter: Document,
    change: Document,
    upsert: bool,
    deadline: Instant,
) -> Result<Option<EpochState>, StoreError> {
    let mut may_be_done = false;
    for tries_left in (0..TRIES).rev() {
        let (filter, change) = (filter.clone(), change.clone());
        let done = connection.run(Command::new("findAndModify", META), Lane::Reserved, deadline, |prepared, left| {
            let meta = prepared.majority(META);
            async move {
                let update = meta.find_one_and_update(filter, vec![doc! { "$set": change }]).upsert(upsert);
                let update = update.projection(with_age()).max_time(left);
                update.return_document(ReturnDocument::After).await
            }
        });
        match done.await {
            Ok(found) => return found.map(|document: RawDocumentBuf| state(&document)).transpose(),
            Err(failure) if failure.worth_repeating && tries_left > 0 => may_be_done |= failure.may_be_done(),
            Err(failure) => return Err(failure.of_write(may_be_done)),
        }
    }
    Err(lost())
}

fn state(document: &RawDocumentBuf) -> Result<EpochState, StoreError> {
    let epoch = document.get_str("epoch").ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let epoch = epoch.ok_or_else(|| StoreError::Corrupt("the epoch in meta is not 16 hex digits".into()))?;
    // What cannot be read is dirty: then L1 is trusted only under a new epoch, which mends it.
    let dirty = document.get_bool("dirty").unwrap_or(true);
    let age = document.get_i64("age").ok().and_then(|millis| u64::try_from(millis).ok());
    Ok(EpochState { epoch: Epoch(epoch), dirty, age: Duration::from_millis(age.unwrap_or(0)) })
}
