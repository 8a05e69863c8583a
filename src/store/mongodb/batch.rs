//! Many writes: one unordered `update` command a round, then one read back of what became of them.
//!
//! The server remembers request ids, so a command is safe to repeat when its answer was lost.

use std::collections::HashMap;

use bson::{RawArrayBuf, RawDocumentBuf, doc, raw::cstr, rawdoc};
use tokio::time::Instant;

use super::{
    connection::{Command, Connection, Lane},
    document,
    failure::Failure,
    pipeline::{self, Update},
    read,
    write::{TRIES, nothing},
};
use crate::{
    record::RecordKey,
    store::{Outcome, Receipt, StoreError, Write},
};

/// A command may have 16 MiB; this leaves room for what is around the writes.
const MAX_COMMAND_BYTES: usize = 15 * 1024 * 1024;
/// Far below the server's 100,000, so that one command does not hold a connection for long.
const MAX_COMMAND_WRITES: usize = 1000;

/// One write of a batch on its way.
struct Item {
    /// Its place in the answer.
    index: usize,
    write: Write,
    statement: RawDocumentBuf,
    on_nothing: Option<Outcome>,
    /// When it was sent first.
    first_sent: bson::DateTime,
    /// An earlier try may have done it.
    may_be_done: bool,
    /// Why it was not done, or may not have been.
    failure: Option<Failure>,
}

/// Does many writes, in the order of the answer; those of equal keys one after another.
pub(super) async fn write_batch(
    connection: &Connection,
    writes: Vec<Write>,
    deadline: Instant,
) -> Vec<Result<Receipt, StoreError>> {
    let mut answers: Vec<Option<Result<Receipt, StoreError>>> = writes.iter().map(|_| None).collect();
    for round in rounds(writes) {
        let mut items = Vec::with_capacity(round.len());
        for (index, write) in round {
            match item(connection, index, write) {
                Ok(item) => items.push(item),
                Err(error) => answers[index] = Some(Err(error)),
            }
        }
        for chunk in chunks(items) {
            for (index, answer) in write_chunk(connection, chunk, deadline).await {
                answers[index] = Some(answer);
            }
        }
    }
    let lost = || Err(StoreError::Internal("a write was lost on its way".into()));
    answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
}

/// The writes of one command may be done in any order, so each key is in it once.
fn rounds(writes: Vec<Write>) -> Vec<Vec<(usize, Write)>> {
    let mut seen: HashMap<RecordKey, usize> = HashMap::with_capacity(writes.len());
    let mut rounds: Vec<Vec<(usize, Write)>> = Vec::new();
    for (index, write) in writes.into_iter().enumerate() {
        let round = seen.entry(write.key.clone()).and_modify(|round| *round += 1).or_insert(0);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push((index, write));
    }
    rounds
}

fn item(connection: &Connection, index: usize, write: Write) -> Result<Item, StoreError> {
    let (statement, on_nothing) = statement(connection, &write, None)?;
    let first_sent = bson::DateTime::now();
    Ok(Item { index, write, statement, on_nothing, first_sent, may_be_done: false, failure: None })
}

fn statement(
    connection: &Connection,
    write: &Write,
    may_be_done: Option<bson::DateTime>,
) -> Result<(RawDocumentBuf, Option<Outcome>), StoreError> {
    let Update { filter, pipeline, on_nothing } = pipeline::update(write, &connection.config().rules, may_be_done);
    let statement = doc! { "q": filter, "u": pipeline, "upsert": on_nothing.is_none() };
    let statement = RawDocumentBuf::try_from(&statement);
    Ok((statement.map_err(|error| StoreError::Internal(error.to_string().into()))?, on_nothing))
}

fn chunks(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut chunks: Vec<Vec<Item>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = item.statement.as_bytes().len() + 16;
        match chunks.last_mut().filter(|chunk| bytes <= room && chunk.len() < MAX_COMMAND_WRITES) {
            Some(chunk) => {
                room -= bytes;
                chunk.push(item);
            }
            None => {
                room = MAX_COMMAND_BYTES.saturating_sub(bytes);
                chunks.push(vec![item]);
            }
        }
    }
    chunks
}

async fn write_chunk(
    connection: &Connection,
    mut items: Vec<Item>,
    deadline: Instant,
) -> Vec<(usize, Result<Receipt, StoreError>)> {
    for tries_left in (0..TRIES).rev() {
        let mut open: Vec<&mut Item> = items.iter_mut().filter(|item| item.is_open(tries_left + 1 == TRIES)).collect();
        if open.is_empty() {
            break;
        }
        for item in &mut open {
            let is_unsure = item.failure.take().is_some_and(|failure| failure.may_be_done());
            if is_unsure && !item.may_be_done {
                item.may_be_done = true;
                // What was sent once as it is can be sent again.
                if let Ok((statement, _)) = statement(connection, &item.write, Some(item.first_sent)) {
                    item.statement = statement;
                }
            }
        }
        if let Err(failure) = send(connection, &mut open, deadline).await {
            let failure = failure.of_many();
            open.iter_mut().for_each(|item| item.failure = Some(failure.clone()));
        }
    }
    let (failed, done): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| item.failure.is_some());
    let mut answers = read_back(connection, done, deadline).await;
    answers.extend(failed.into_iter().map(Item::into_error));
    answers
}

impl Item {
    /// Whether it is to be sent: at first, and while another try may help.
    fn is_open(&self, first: bool) -> bool {
        first || self.failure.as_ref().is_some_and(|failure| failure.worth_repeating)
    }

    fn into_error(self) -> (usize, Result<Receipt, StoreError>) {
        let unknown = || Failure::unknown("the write left no trace");
        (self.index, Err(self.failure.unwrap_or_else(unknown).of_write(self.may_be_done)))
    }
}

/// Sends one command, and notes the failures of single items.
async fn send(connection: &Connection, items: &mut [&mut Item], deadline: Instant) -> Result<(), Failure> {
    let mut updates = RawArrayBuf::new();
    for item in items.iter() {
        updates.push(item.statement.clone());
    }
    let answer = connection
        .run(Command::new("update", super::FEATURES).of_many(items.len()), Lane::Users, deadline, |prepared, left| {
            let mut command = rawdoc! {
                "update": super::FEATURES,
                "ordered": false,
                "writeConcern": { "w": "majority", "j": true },
                "maxTimeMS": i64::try_from(left.as_millis()).unwrap_or(i64::MAX),
            };
            command.append(cstr!("updates"), updates);
            async move { prepared.database.run_raw_command(command).await }
        })
        .await?;
    // `ok: 1` says little: each item may have failed, and the whole may lack its majority.
    for error in answer.get_array("writeErrors").into_iter().flatten() {
        let Some(error) = error.as_document() else { continue };
        let failure = Failure::answered(error.get_i32("code").unwrap_or(0), error.get_str("errmsg").unwrap_or(""));
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| items.get_mut(index)) {
            Some(item) => item.failure = Some(failure),
            None => return Err(Failure::unknown("an error that belongs to no write")),
        }
    }
    if let Ok(error) = answer.get_document("writeConcernError") {
        let failure = Failure::not_confirmed(error.get_i32("code").unwrap_or(0), error.get_str("errmsg").unwrap_or(""));
        items.iter_mut().filter(|item| item.failure.is_none()).for_each(|item| item.failure = Some(failure.clone()));
    }
    Ok(())
}

async fn read_back(
    connection: &Connection,
    items: Vec<Item>,
    deadline: Instant,
) -> Vec<(usize, Result<Receipt, StoreError>)> {
    let keys: Vec<RecordKey> = items.iter().map(|item| item.write.key.clone()).collect();
    let projection = doc! { "rev": 1, "deleted": 1, "requests": 1 };
    // The writes are done; only what became of them is not known.
    let lost = |items: Vec<Item>, failure: Failure| {
        let failure = Failure::unknown(&format!("not read back: {failure}"));
        let lost = |item: Item| Item { failure: Some(failure.clone()), ..item }.into_error();
        items.into_iter().map(lost).collect()
    };
    let batches = match read::find(connection, &keys, Some(projection), deadline).await {
        Ok(batches) => batches,
        Err(failure) => return lost(items, failure),
    };
    let found = match read::by_key(&batches) {
        Ok(found) => found,
        Err(failure) => return lost(items, failure),
    };
    let receipt = |item: Item| {
        let Some(document) = found.get(&read::name(&item.write.key)) else {
            return match item.on_nothing.filter(|_| !item.may_be_done) {
                Some(outcome) => (item.index, Ok(nothing(outcome).0)),
                None => item.into_error(),
            };
        };
        match (document::outcome_of(document, &item.write.request_id), document::revision(document)) {
            (Some(outcome), Ok(revision)) => {
                let tombstone = document.get_bool("deleted").unwrap_or(false);
                (item.index, Ok(Receipt { outcome, revision, tombstone }))
            }
            _ => item.into_error(),
        }
    };
    items.into_iter().map(receipt).collect()
}
