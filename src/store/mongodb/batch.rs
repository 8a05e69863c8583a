//! Many writes: one unordered `update` command, then one read of the results. Writes of equal keys,
//! and merges close to a limit, go through `compare`.
//!
//! Documents remember request ids, so a command may be repeated when its answer was lost.

use std::collections::HashMap;

use bson::{RawDocument, doc};
use tokio::time::Instant;

use super::{
    compare::{self, Group},
    connection::{Command, Connection, Lane},
    document,
    failure::Failure,
    pipeline::{self, Needs, Outline, Unsure},
    read, remembered,
    statement::{self, Statement},
    write::{TRIES, nothing},
};
use crate::{
    record::{RecordKey, State},
    store::{Change, Outcome, Receipt, StoreError, Write, WriteRules},
};

/// A command may have 16 MiB, and a single write may need most of that. Several writes are sent in
/// smaller commands in sequence, because this process holds several copies of a command while it is
/// sent.
pub(super) const MAX_COMMAND_BYTES: usize = 2 << 20;
/// Far below the server's limit of 100,000, so that no command holds a connection for long.
const MAX_COMMAND_WRITES: usize = 1000;

/// One write of a batch in progress.
pub(super) struct Item {
    /// Its index in the answer.
    index: usize,
    write: Write,
    on_nothing: Option<Outcome>,
    /// The approximate size of its statement.
    bytes: usize,
    /// When it was first sent.
    first_sent: bson::DateTime,
    /// An earlier try may have done it.
    may_be_done: bool,
    /// Why it was not done, or may not have been.
    failure: Option<Failure>,
}

/// The result of one write of a chunk.
pub(super) enum Done {
    /// Its answer, with the state afterwards if it was requested.
    Answer(Result<(Receipt, State), StoreError>),
    /// Nothing was changed, because the server cannot decide it.
    Unsure(Group),
}

/// Does many writes. The results are in their order; writes of equal keys run one after another.
pub(super) async fn write_batch(
    connection: &Connection,
    writes: Vec<Write>,
    deadline: Instant,
) -> Vec<Result<Receipt, StoreError>> {
    let mut answers: Vec<Option<Result<Receipt, StoreError>>> = writes.iter().map(|_| None).collect();
    let keys: Vec<RecordKey> = writes.iter().map(|write| write.key.clone()).collect();
    let (items, mut groups) = apart(connection, writes);
    for chunk in chunks(items) {
        for (index, done) in write_chunk(connection, chunk, false, deadline).await {
            match done {
                Done::Answer(answer) => answers[index] = Some(answer.map(|(receipt, _)| receipt)),
                Done::Unsure(group) => groups.push(group),
            }
        }
    }
    for (index, answer) in compare::write(connection, groups, deadline).await {
        answers[index] = Some(answer.map(|(receipt, _)| receipt));
    }
    let named = |(answer, key): (&mut Option<Result<Receipt, StoreError>>, &RecordKey)| {
        *answer = answer.take().map(|answer| answer.map_err(|error| error.of_record(key)));
    };
    answers.iter_mut().zip(&keys).for_each(named);
    let lost = || Err(StoreError::Internal("a write of a batch got no result".into()));
    answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
}

/// Separates writes of equal keys, because the writes of one command may run in any order.
fn apart(connection: &Connection, writes: Vec<Write>) -> (Vec<Item>, Vec<Group>) {
    let mut counts: HashMap<RecordKey, usize> = HashMap::with_capacity(writes.len());
    for write in &writes {
        *counts.entry(write.key.clone()).or_default() += 1;
    }
    let mut items = Vec::with_capacity(counts.len());
    let (mut groups, mut places) = (Vec::<Group>::new(), HashMap::<RecordKey, usize>::new());
    for (index, write) in writes.into_iter().enumerate() {
        let outline = pipeline::outline(&write, &connection.config().rules);
        if counts.get(&write.key).is_some_and(|count| *count > 1) {
            match places.get(&write.key) {
                Some(place) => groups[*place].push(index, write),
                None => {
                    places.insert(write.key.clone(), groups.len());
                    groups.push(Group::new(index, write));
                }
            }
        } else if outline.needs_a_look {
            groups.push(Group::new(index, write));
        } else {
            items.push(Item::new(index, write, &outline, connection.now()));
        }
    }
    (items, groups)
}

fn chunks(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut chunks: Vec<Vec<Item>> = Vec::new();
    let mut room = 0;
    for item in items {
        match chunks.last_mut().filter(|chunk| item.bytes <= room && chunk.len() < MAX_COMMAND_WRITES) {
            Some(chunk) => {
                room -= item.bytes;
                chunk.push(item);
            }
            None => {
                room = MAX_COMMAND_BYTES.saturating_sub(item.bytes);
                chunks.push(vec![item]);
            }
        }
    }
    chunks
}

/// Does writes of distinct keys in one command. `whole`: also returns the state afterwards.
pub(super) async fn write_chunk(
    connection: &Connection,
    mut items: Vec<Item>,
    whole: bool,
    deadline: Instant,
) -> Vec<(usize, Done)> {
    for tries_left in (0..TRIES).rev() {
        let mut open: Vec<&mut Item> = items.iter_mut().filter(|item| item.is_open(tries_left + 1 == TRIES)).collect();
        if open.is_empty() {
            break;
        }
        for item in &mut open {
            item.may_be_done |= item.failure.take().is_some_and(|failure| failure.may_be_done());
        }
        if let Err(failure) = send(connection, &mut open, deadline).await {
            let failure = failure.of_many();
            open.iter_mut().for_each(|item| item.failure = Some(failure.clone()));
        }
    }
    let (failed, done): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| item.failure.is_some());
    let mut answers = read_back(connection, done, whole, deadline).await;
    answers.extend(failed.into_iter().map(Item::into_failed));
    answers
}

impl Item {
    /// First sent at `first_sent`, by L2's clock.
    pub(super) fn new(index: usize, write: Write, outline: &Outline, first_sent: bson::DateTime) -> Self {
        let (on_nothing, bytes) = (outline.on_nothing, outline.bytes + statement::USUAL_STAGES_BYTES);
        Self { index, write, on_nothing, bytes, first_sent, may_be_done: false, failure: None }
    }

    /// Whether to send it: the first time, or if another try may help.
    fn is_open(&self, first: bool) -> bool {
        first || self.failure.as_ref().is_some_and(|failure| failure.worth_repeating)
    }

    fn update(&self, rules: &WriteRules) -> Statement<'_> {
        pipeline::update(&self.write, rules, self.since(), Unsure::Fails)
    }

    /// The time since which it may have been done.
    fn since(&self) -> Option<bson::DateTime> {
        self.may_be_done.then_some(self.first_sent)
    }

    /// What the document says became of it. If later writes have pushed it out of what the document
    /// remembers, it is not done again, because that would undo these. Nothing but these can hide it,
    /// so a replacement was written.
    fn outcome(&self, document: &RawDocument) -> Option<Outcome> {
        let is_upsert = matches!(self.write.change, Change::Upsert(_)) && self.on_nothing.is_none();
        let only_written = is_upsert && Needs::of(&self.write) == Needs::Nothing && !self.may_be_done;
        remembered::outcome_of(document, &self.write).or(only_written.then_some(Outcome::Written))
    }

    fn into_failed(self) -> (usize, Done) {
        match &self.failure {
            Some(failure) if failure.is_unsure() => self.into_unsure(),
            Some(failure) if failure.is_too_large() && !self.may_be_done => self.into_unsure(),
            _ => self.into_error(),
        }
    }

    fn into_error(self) -> (usize, Done) {
        let unknown = || Failure::unknown("the stored document does not show what became of the write");
        let error = self.failure.unwrap_or_else(unknown).of_write(self.may_be_done);
        (self.index, Done::Answer(Err(error)))
    }

    fn into_unsure(self) -> (usize, Done) {
        let (index, since) = (self.index, self.since());
        (index, Done::Unsure(Group::since(index, self.write, since)))
    }
}

/// Sends one command, and notes the failures of single items.
async fn send(connection: &Connection, items: &mut [&mut Item], deadline: Instant) -> Result<(), Failure> {
    let rules = &connection.config().rules;
    let answer = connection
        .run(Command::new("update", super::FEATURES).of_many(items.len()), Lane::Users, deadline, |prepared, left| {
            // It is built only when it can be sent, so that few are built at a time.
            let room = items.iter().map(|item| item.bytes).sum();
            let statements = items.iter().map(|item| item.update(rules));
            let command = statement::command(super::FEATURES, room, statements, left);
            async move { prepared.database.run_raw_command(command?).await }
        })
        .await?;
    for (index, failure) in failures_of(&answer)? {
        match items.get_mut(index) {
            Some(item) => {
                if failure.is_refusal() && !failure.is_unsure() {
                    connection.suspect();
                }
                item.failure = Some(failure);
            }
            None => return Err(Failure::unknown("an error that belongs to no write")),
        }
    }
    if let Some(failure) = unconfirmed(&answer) {
        items.iter_mut().filter(|item| item.failure.is_none()).for_each(|item| item.failure = Some(failure.clone()));
    }
    Ok(())
}

/// The failures in an answer with `ok: 1`, which does not mean that all was done.
pub(super) fn failures_of(answer: &bson::Document) -> Result<Vec<(usize, Failure)>, Failure> {
    let failure = |error: &bson::Bson| {
        let error = error.as_document()?;
        let failure = Failure::answered(error.get_i32("code").unwrap_or(0), "");
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        Some(index.map(|index| (index, failure)).ok_or_else(|| Failure::unknown("an error that belongs to no write")))
    };
    answer.get_array("writeErrors").into_iter().flatten().filter_map(failure).collect()
}

/// Why the whole command may lack its majority.
pub(super) fn unconfirmed(answer: &bson::Document) -> Option<Failure> {
    let error = answer.get_document("writeConcernError").ok()?;
    Some(Failure::not_confirmed(error.get_i32("code").unwrap_or(0), error.get_str("codeName").unwrap_or("")))
}

async fn read_back(connection: &Connection, items: Vec<Item>, whole: bool, deadline: Instant) -> Vec<(usize, Done)> {
    let keys: Vec<RecordKey> = items.iter().map(|item| item.write.key.clone()).collect();
    let projection = (!whole).then(|| doc! { "rev": 1, "deleted": 1, "requests": 1 });
    // The writes are done; only their results are unknown.
    let lost = |items: Vec<Item>, failure: Failure| {
        let failure = Failure::unknown(&format!("the result of the write could not be read: {failure}"));
        let lost = |item: Item| Item { failure: Some(failure.clone()), ..item }.into_error();
        items.into_iter().map(lost).collect()
    };
    let batches = match read::find(connection, &keys, projection, deadline).await {
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
                Some(outcome) => (item.index, Done::Answer(Ok(nothing(outcome)))),
                None => item.into_error(),
            };
        };
        let Some(outcome) = item.outcome(document) else { return item.into_error() };
        if whole {
            let state = document::state(document).map_err(|error| StoreError::DoneUnreadable(error.to_string().into()));
            return (item.index, Done::Answer(state.map(|state| (receipt_of(outcome, &state), state))));
        }
        match document::revision(document) {
            Ok(revision) => {
                let tombstone = document.get_bool("deleted").unwrap_or(false);
                (item.index, Done::Answer(Ok((Receipt { outcome, revision, tombstone }, State::Absent))))
            }
            Err(_) => item.into_error(),
        }
    };
    items.into_iter().map(receipt).collect()
}

/// The receipt of a write after which this state is stored.
pub(super) fn receipt_of(outcome: Outcome, state: &State) -> Receipt {
    Receipt { outcome, revision: state.revision(), tombstone: matches!(state, State::Tombstone(_)) }
}
