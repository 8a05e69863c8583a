//! The lease and the position of the repairer: one document of the collection `meta`, `{_id:
//! "repairer", holder, until: <date>, position: <the change stream's token>, stored: <date>}`.
//!
//! Every change is one update by a pipeline, so the server's own clock decides, atomically.

use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use mongodb::options::ReturnDocument;
use tokio::time::Instant;

use super::{
    META, changes,
    connection::{Command, Connection, Lane},
    failure::Failure,
};
use crate::store::{
    StoreError,
    changes::{Leadership, Position},
};

/// Takes the lease if it is free, or extends it and stores a position. One try, because the
/// repairer asks again and again.
pub(super) async fn lead(
    connection: &Connection,
    me: &str,
    lease: Duration,
    position: Option<Position>,
    deadline: Instant,
) -> Result<Leadership, StoreError> {
    let mine = doc! { "$eq": ["$holder", me] };
    let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let if_granted =
        |granted: &Document, then: bson::Bson, name: &str| doc! { "$cond": [granted, then, format!("${name}")] };
    let until = doc! { "$add": ["$$NOW", lease] };
    let (change, upsert) = match &position {
        Some(position) => {
            let token = changes::document_of(position)
                .ok_or_else(|| StoreError::Internal("the position cannot be stored".into()))?;
            let change = doc! {
                "until": if_granted(&mine, until.into(), "until"),
                "position": if_granted(&mine, doc! { "$literal": token }.into(), "position"),
                "stored": if_granted(&mine, "$$NOW".into(), "stored"),
            };
            (change, false)
        }
        None => {
            let over = doc! { "$lte": [{ "$ifNull": ["$until", bson::DateTime::from_millis(0)] }, "$$NOW"] };
            let granted = doc! { "$or": [mine, over] };
            let change = doc! {
                "holder": if_granted(&granted, me.into(), "holder"),
                "until": if_granted(&granted, until.into(), "until"),
            };
            (change, true)
        }
    };
    let done = connection.run(Command::new("findAndModify", META), Lane::Reserved, deadline, |prepared, left| {
        let meta = prepared.majority(META);
        async move {
            let update = meta.find_one_and_update(doc! { "_id": "repairer" }, vec![doc! { "$set": change }]);
            let update = update.upsert(upsert).projection(with_age());
            update.max_time(left).return_document(ReturnDocument::After).await
        }
    });
    let found: Option<RawDocumentBuf> = done.await.map_err(|failure| failure.of_write(false))?;
    let Some(found) = found else { return Ok(Leadership { held: false, position: None, stored: None }) };
    let age = found.get_i64("age").ok().map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
    Ok(Leadership {
        held: found.get_str("holder").is_ok_and(|holder| holder == me),
        position: found.get_document("position").ok().map(changes::from_document),
        stored: age,
    })
}

/// The requested fields, and how long ago the position was stored, by the server's clock.
fn with_age() -> Document {
    doc! { "holder": 1, "position": 1, "age": { "$toLong": { "$subtract": ["$$NOW", "$stored"] } } }
}

/// Gives up the lease.
pub(super) async fn resign(connection: &Connection, me: &str, deadline: Instant) -> Result<(), StoreError> {
    let filter = doc! { "_id": "repairer", "holder": me };
    let done = connection.run(Command::new("findAndModify", META), Lane::Reserved, deadline, |prepared, left| {
        let meta = prepared.majority(META);
        let change = doc! { "$set": { "holder": "", "until": bson::DateTime::from_millis(0) } };
        async move { meta.find_one_and_update(filter, change).max_time(left).await }
    });
    done.await.map(drop).map_err(|failure: Failure| failure.of_write(false))
}
