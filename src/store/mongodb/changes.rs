//! The change stream of the collection `features`. A task of its own reads it, because a future of
//! the driver must not be dropped half way, and a follower may be. The task ends when the follower
//! is gone.

use std::time::Duration;

use async_trait::async_trait;
use bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use mongodb::{
    change_stream::{ChangeStream, event::ResumeToken},
    error::{Error, ErrorKind},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{FEATURES, connection::Connection, document, failure::Failure, prepared::Prepared, recent::Recent};
use crate::{
    record::{EntityId, FeatureView, Millis, RecordKey, Revision},
    store::{
        StoreError,
        changes::{Batch, Change, Changes, Event, FollowError, MAX_BATCH, Position},
    },
};

/// How long the server waits for a change before it answers that there is none.
const QUIET: Duration = Duration::from_millis(500);

/// A change, or none for a while, and the position after it.
type Word = Result<(Option<Change>, Position), FollowError>;

/// ChangeStreamHistoryLost, ChangeStreamFatalError, CappedPositionLost, InvalidResumeToken,
/// BSONObjectTooLarge: another try from the same position does not help.
const LOST: [i32; 5] = [286, 280, 136, 260, 10334];

/// Opens the stream. None: a standalone server has none.
pub(super) async fn follow(
    connection: &Connection,
    after: Option<Position>,
    deadline: Instant,
) -> Result<Option<Box<dyn Changes>>, FollowError> {
    let resumed = after.is_some();
    let token = match after.map(|position| token_of(&position)) {
        None => None,
        Some(Some(token)) => Some(token),
        Some(None) => return Err(FollowError::HistoryLost("the stored position cannot be read".into())),
    };
    let (words, heard) = mpsc::channel(MAX_BATCH);
    let (opening, opened) = oneshot::channel();
    if connection.is_standalone() == Some(true) {
        return Ok(None);
    }
    let started = connection.run_on(deadline, |prepared, closing| stream(prepared, token, opening, words, closing));
    started.await.map_err(Failure::of_read)?;
    if connection.is_standalone() == Some(true) {
        return Ok(None);
    }
    match timeout_at(deadline, opened).await {
        Ok(Ok(Ok(position))) => Ok(Some(Box::new(Stream { heard, position, end: None }))),
        // The server works, but does not continue from there.
        Ok(Ok(Err(failure))) if resumed && failure.is_refusal() => {
            Err(FollowError::HistoryLost(failure.to_string().into()))
        }
        Ok(Ok(Err(failure))) => Err(failure.of_read().into()),
        Ok(Err(_)) => Err(StoreError::Unavailable("the change stream ended while it was opened".into()).into()),
        Err(_) => Err(StoreError::Timeout("the change stream did not open in time".into()).into()),
    }
}

struct Stream {
    heard: mpsc::Receiver<Word>,
    position: Position,
    end: Option<FollowError>,
}

#[async_trait]
impl Changes for Stream {
    async fn next(&mut self, deadline: Instant) -> Result<Batch, FollowError> {
        let mut word = match timeout_at(deadline, self.heard.recv()).await {
            Ok(word) => word,
            Err(_) => return Err(StoreError::Timeout("the change stream does not answer".into()).into()),
        };
        // Nothing is awaited from here on, so no change that was received is lost.
        let mut changes = Vec::new();
        loop {
            match word {
                Some(Ok((change, position))) => {
                    changes.extend(change);
                    self.position = position;
                }
                Some(Err(error)) => {
                    self.end = Some(error);
                    break;
                }
                None => {
                    self.end.get_or_insert(StoreError::Unavailable("the change stream ended".into()).into());
                    break;
                }
            }
            if changes.len() >= MAX_BATCH {
                break;
            }
            match self.heard.try_recv() {
                Ok(next) => word = Some(next),
                Err(_) => break,
            }
        }
        match &self.end {
            Some(error) if changes.is_empty() => Err(error.clone()),
            // Changes before the end are returned first; the next call returns the end.
            _ => Ok(Batch { changes, position: self.position.clone() }),
        }
    }

    fn position(&self) -> &Position {
        &self.position
    }
}

fn broken(error: Error) -> FollowError {
    let lost = matches!(error.kind.as_ref(), ErrorKind::Command(answer) if LOST.contains(&answer.code));
    let failure = Failure::from(error);
    if lost { FollowError::HistoryLost(failure.to_string().into()) } else { failure.of_read().into() }
}

/// Reads the stream until it breaks or the follower is gone.
async fn stream(
    prepared: Prepared,
    after: Option<ResumeToken>,
    opening: oneshot::Sender<Result<Position, Failure>>,
    words: mpsc::Sender<Word>,
    closing: CancellationToken,
) {
    let features = prepared.majority(FEATURES);
    // start_after, because resume_after does not continue past a dropped collection.
    let mut watch = features.watch().pipeline([projection()]).max_await_time(QUIET).batch_size(MAX_BATCH as u32);
    if let Some(token) = after {
        watch = watch.start_after(token);
    }
    let mut stream = match watch.await {
        Ok(stream) => stream.with_type::<RawDocumentBuf>(),
        Err(error) => {
            let _ = opening.send(Err(error.into()));
            return;
        }
    };
    let Some(position) = position_of(&stream) else {
        let _ = opening.send(Err(Failure::unknown("the change stream has no position")));
        return;
    };
    if opening.send(Ok(position)).is_err() {
        return;
    }
    let (mut ended, mut recent) = (false, Recent::default());
    while !closing.is_cancelled() && !words.is_closed() {
        let word = match stream.next_if_any().await {
            Ok(found) => {
                let change = found.as_deref().and_then(|event| change(event, &mut ended, &mut recent));
                let over = found.is_none() && !stream.is_alive();
                match position_of(&stream) {
                    Some(_) if over => return,
                    Some(position) => Ok((change, position)),
                    None => Err(Failure::unknown("the change stream has no position").of_read().into()),
                }
            }
            Err(error) => Err(broken(error)),
        };
        let broken = word.is_err();
        tokio::select! {
            sent = words.send(word) => if sent.is_err() || broken { return },
            () = closing.cancelled() => return,
        }
    }
}

/// Only the needed fields of an event, because documents may be large.
fn projection() -> Document {
    let revision = doc! { "$ifNull": ["$updateDescription.updatedFields.rev", "$fullDocument.rev"] };
    let or_none = |list: &str| doc! { "$ifNull": [format!("$updateDescription.{list}"), []] };
    let updated = doc! { "$objectToArray": { "$ifNull": ["$updateDescription.updatedFields", {}] } };
    let names = doc! { "$concatArrays": [
        { "$map": { "input": updated, "in": "$$this.k" } },
        or_none("removedFields"),
        { "$map": { "input": or_none("truncatedArrays"), "in": "$$this.field" } },
    ] };
    let remembered = doc! { "$regexMatch": { "input": "$$this", "regex": "^requests(\\.|$)" } };
    let others = doc! { "$size": { "$filter": { "input": names, "cond": { "$not": remembered } } } };
    doc! { "$project": {
        "operationType": 1, "documentKey._id": 1, "clusterTime": 1, "wallTime": 1, "rev": revision, "others": others,
    } }
}

/// The change of an event. `ended`: the end of the collection was returned; several events announce
/// it.
fn change(event: &RawDocument, ended: &mut bool, recent: &mut Recent) -> Option<Change> {
    let (seconds, order) = match event.get("clusterTime") {
        Ok(Some(RawBsonRef::Timestamp(at))) => (at.time, u64::from(at.time) << 32 | u64::from(at.increment)),
        _ => (0, 0),
    };
    let at = match event.get("wallTime") {
        Ok(Some(RawBsonRef::DateTime(at))) => Millis(at.timestamp_millis()),
        _ => Millis(i64::from(seconds) * 1000), // before MongoDB 6.0
    };
    let operation = event.get_str("operationType").unwrap_or_default();
    let event = match operation {
        "insert" | "update" => match (key(event)?, document::revision(event)) {
            (key, Ok(revision)) if is_of(revision, at) => {
                recent.is_new(&key, revision, at);
                Event::Written { key, revision }
            }
            // The revision was set by hand. L1 may hold a newer one, which is nevertheless old.
            (key, Ok(_)) => Event::Edited { key },
            // A write that changed nothing and is remembered by its request id.
            _ if operation == "update" && event.get_i32("others").is_ok_and(|others| others == 0) => return None,
            (key, Err(_)) => Event::Edited { key },
        },
        "replace" => match (key(event)?, document::revision(event)) {
            (key, Ok(revision)) if recent.is_new(&key, revision, at) => Event::Written { key, revision },
            (key, _) => Event::Edited { key },
        },
        "drop" | "rename" | "dropDatabase" | "invalidate" if *ended => return None,
        "drop" | "rename" | "dropDatabase" | "invalidate" => {
            *ended = true;
            Event::Everything
        }
        _ => Event::Edited { key: key(event)? },
    };
    Some(Change { event, order, at })
}

/// Whether a server gave this revision then: a revision is the time of its write.
fn is_of(revision: Revision, at: Millis) -> bool {
    const APART: u64 = 5_000;
    (revision.0 / 1000).abs_diff(at.0) < APART
}

/// None: no record of ours can have this key, so L1 has none.
fn key(event: &RawDocument) -> Option<RecordKey> {
    let (view, entity_id) = document::key_of(event.get_document("documentKey").ok()?)?;
    Some(RecordKey { view: FeatureView::parse(view).ok()?, entity_id: EntityId::parse(entity_id).ok()? })
}

fn position_of(stream: &ChangeStream<RawDocumentBuf>) -> Option<Position> {
    match bson::serialize_to_bson(&stream.resume_token()?).ok()? {
        Bson::Document(token) => Some(Position(token.to_vec().ok()?.into())),
        _ => None,
    }
}

fn token_of(position: &Position) -> Option<ResumeToken> {
    bson::deserialize_from_bson(Bson::Document(document_of(position)?)).ok()
}

/// The position as stored in `meta`.
pub(super) fn document_of(position: &Position) -> Option<Document> {
    Document::from_reader(&position.0[..]).ok()
}

/// The position from `meta`.
pub(super) fn from_document(document: &RawDocument) -> Position {
    Position(document.as_bytes().to_vec().into())
}
