//! Writes that are computed here: the stored document is read, `apply` computes the result, and the
//! result is stored if nothing has changed meanwhile. Otherwise all of it is repeated.
//!
//! This takes two round trips more than an update pipeline. It is used for what a pipeline cannot
//! do, or does slowly: a merge close to a limit (the server cannot compute the size in stored
//! bytes), and many writes of one record in one batch, which become one update.

mod attempt;

use bson::doc;
use futures_util::future::join_all;
use tokio::time::Instant;

use self::attempt::{Attempt, Evaluated, Seen};
use super::{
    FEATURES,
    batch::{self, Done, Item},
    connection::{Command, Connection, Lane},
    failure::Failure,
    pipeline, read, statement,
    write::{TRIES, unseen},
};
use crate::{
    record::{Millis, RecordKey, Revision, State},
    store::{Receipt, RequestId, StoreError, Write},
};

/// How many records are read and computed at a time. Each may be as large as a document can be.
const AT_ONCE: usize = 8;

/// The answer to one write, with its index in the batch.
type Answer = (usize, Result<(Receipt, State), StoreError>);

/// The writes of one record in order, with their indices in the batch.
pub(super) struct Group {
    pub(super) writes: Vec<(usize, Write)>,
    /// The time since which an earlier try may have done them.
    since: Option<bson::DateTime>,
    /// Tries of this process whose outcome is unknown.
    tries: Vec<Tried>,
    failed: usize,
}

/// A try whose outcome is unknown.
struct Tried {
    mark: Mark,
    answers: Vec<Answer>,
}

/// What a try leaves in the document: the last request that it adds, with its revision.
#[derive(Clone, Debug, PartialEq)]
struct Mark(RequestId, Revision);

impl Group {
    pub(super) fn new(index: usize, write: Write) -> Self {
        Self::since(index, write, None)
    }

    /// With a write that may have been done since then.
    pub(super) fn since(index: usize, write: Write, since: Option<bson::DateTime>) -> Self {
        Self { writes: vec![(index, write)], since, tries: Vec::new(), failed: 0 }
    }

    /// Adds a write of the same record.
    pub(super) fn push(&mut self, index: usize, write: Write) {
        self.writes.push((index, write));
    }

    fn key(&self) -> &RecordKey {
        &self.writes[0].1.key
    }

    fn all(self, error: &StoreError) -> impl Iterator<Item = Answer> + use<'_> {
        self.writes.into_iter().map(|(index, _)| (index, Err(error.clone())))
    }
}

/// Does one group of one write.
pub(super) async fn write_one(
    connection: &Connection,
    group: Group,
    deadline: Instant,
) -> Result<(Receipt, State), StoreError> {
    let answer = write(connection, vec![group], deadline).await.pop();
    answer.map_or_else(|| Err(StoreError::Internal("a write got no result".into())), |(_, answer)| answer)
}

/// Does groups of distinct records.
pub(super) async fn write(connection: &Connection, groups: Vec<Group>, deadline: Instant) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = groups.into_iter();
    loop {
        let mut open: Vec<Group> = rest.by_ref().take(AT_ONCE).collect();
        if open.is_empty() {
            return answers;
        }
        let mut round = 0_u64;
        while !open.is_empty() {
            if round > 1 {
                // Other writers change these records all the time.
                let pause = std::time::Duration::from_millis(rand::random_range(1..=5 * round.min(10)));
                tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            }
            open = try_once(connection, open, &mut answers, deadline).await;
            round += 1;
        }
    }
}

/// Returns the answers that are known, and the other groups.
async fn try_once(
    connection: &Connection,
    groups: Vec<Group>,
    answers: &mut Vec<Answer>,
    deadline: Instant,
) -> Vec<Group> {
    let evaluated = match look(connection, &groups, deadline).await {
        Ok(seen) => {
            let rules = connection.config().rules.clone();
            // Many merges of a large record take long.
            tokio::task::spawn_blocking(move || attempt::evaluate(groups, &seen, &rules)).await
        }
        Err(failure) => {
            for group in groups {
                let error = failure.clone().of_look(group.since.is_some() || !group.tries.is_empty());
                answers.extend(group.all(&error));
            }
            return Vec::new();
        }
    };
    let Ok(evaluated) = evaluated else { return Vec::new() }; // who waits for an answer says that it was lost
    let mut attempts = Vec::new();
    for evaluated in evaluated {
        match evaluated {
            Evaluated::Settled(settled) => answers.extend(settled),
            Evaluated::Unreadable(group, error) => {
                answers.extend(one_by_one(connection, group, &error, deadline).await);
            }
            Evaluated::Attempt(attempt) => attempts.push(*attempt),
        }
    }
    let mut open = Vec::new();
    for (attempt, failure) in send(connection, attempts, deadline).await {
        match failure {
            None => match attempt.into_answers() {
                Ok(done) => answers.extend(done),
                Err(group) => open.push(group),
            },
            Some(failure) if failure.is_too_large() && !failure.may_be_done() => match attempt.into_too_large() {
                Ok(answer) => answers.push(answer),
                Err((group, error)) => answers.extend(one_by_one(connection, group, &error, deadline).await),
            },
            Some(failure) => match attempt.into_failed(&failure) {
                Ok(group) => open.push(group),
                Err(group) => {
                    let earlier = group.since.is_some() || !group.tries.is_empty();
                    answers.extend(group.all(&failure.of_write(earlier)));
                }
            },
        }
    }
    open
}

/// Reads the documents, and then L2's clock, so that no document is from later.
async fn look(connection: &Connection, groups: &[Group], deadline: Instant) -> Result<Seen, Failure> {
    let keys: Vec<RecordKey> = groups.iter().map(|group| group.key().clone()).collect();
    let batches = read::find(connection, &keys, None, deadline).await?;
    let hello = connection.run(Command::new("hello", FEATURES), Lane::Users, deadline, |prepared, _| async move {
        prepared.database.run_command(doc! { "hello": 1 }).await
    });
    let now = hello.await?.get_datetime("localTime").map(|at| Millis(at.timestamp_millis()));
    Ok(Seen { batches, now: now.map_err(|_| Failure::not_done("MongoDB does not tell its time"))? })
}

/// For writes that depend on an unreadable document or on one without room: each alone, because the
/// first one may correct it.
async fn one_by_one(connection: &Connection, group: Group, error: &StoreError, deadline: Instant) -> Vec<Answer> {
    if group.writes.len() == 1 {
        return group.all(error).collect();
    }
    let mut answers = Vec::new();
    for (index, write) in group.writes {
        let outline = pipeline::outline(&write, &connection.config().rules);
        let done = match outline.needs_a_look {
            true => Some(Done::Unsure(Group::new(index, write))),
            false => {
                let item = Item::new(index, write, &outline, connection.now());
                batch::write_chunk(connection, vec![item], false, deadline).await.pop().map(|(_, done)| done)
            }
        };
        match done {
            Some(Done::Answer(answer)) => answers.push((index, answer)),
            Some(Done::Unsure(group)) => {
                let again = Box::pin(write_one(connection, group, deadline));
                answers.push((index, again.await));
            }
            None => {}
        }
    }
    answers
}

/// Sends each attempt by its own command, because the reply to that shows whether the document was
/// changed. A later read would not show it, if other writes had pushed this one out.
async fn send(connection: &Connection, attempts: Vec<Attempt>, deadline: Instant) -> Vec<(Attempt, Option<Failure>)> {
    let mut sent: Vec<(Attempt, Option<Failure>)> = attempts.into_iter().map(|attempt| (attempt, None)).collect();
    let mut rest = &mut sent[..];
    while !rest.is_empty() {
        // While commands are sent, this process holds them several times.
        let mut bytes = 0;
        let fit = rest.iter().take_while(|(attempt, _)| {
            bytes += attempt.bytes();
            bytes <= batch::MAX_COMMAND_BYTES
        });
        let count = fit.count().max(1);
        let (now, later) = rest.split_at_mut(count);
        join_all(now.iter_mut().map(async |(attempt, failed)| match send_one(connection, attempt, deadline).await {
            Ok(is_done) => attempt.is_done = is_done,
            Err(failure) => *failed = Some(failure),
        }))
        .await;
        rest = later;
    }
    let unchanging =
        |(attempt, failure): &&mut (Attempt, Option<Failure>)| failure.is_none() && !attempt.changes_something();
    let mut unchanging: Vec<&mut (Attempt, Option<Failure>)> = sent.iter_mut().filter(unchanging).collect();
    let keys: Vec<RecordKey> = unchanging.iter().map(|(attempt, _)| attempt.group.key().clone()).collect();
    let projection = doc! { "rev": 1, "requests": 1 };
    let read_back = read::find(connection, &keys, Some(projection), deadline).await;
    let found = read_back.as_ref().map_err(Clone::clone).and_then(|batches| read::by_key(batches));
    for (attempt, failed) in &mut unchanging {
        match &found {
            Ok(found) => attempt.is_done = attempt.is_as_it_was(found.get(&read::name(attempt.group.key())).copied()),
            Err(failure) => {
                *failed = Some(Failure::unknown(&format!("the result of the write could not be read: {failure}")))
            }
        }
    }
    sent
}

/// Whether it is done. If not, the document was not as it was when it was read.
async fn send_one(connection: &Connection, attempt: &mut Attempt, deadline: Instant) -> Result<bool, Failure> {
    attempt.sent_at.get_or_insert_with(|| connection.now());
    let attempt = &*attempt;
    let answer = connection.run(Command::new("update", FEATURES), Lane::Users, deadline, |prepared, left| {
        let command = statement::command(FEATURES, attempt.bytes(), std::iter::once(attempt.statement()), left);
        async move { prepared.database.run_raw_command(command?).await }
    });
    let answer = answer.await?;
    if let Some((_, failure)) = batch::failures_of(&answer)?.into_iter().next() {
        if failure.is_unsure() {
            return Ok(false);
        }
        if failure.is_refusal() {
            connection.suspect();
        }
        return Err(failure);
    }
    match batch::unconfirmed(&answer) {
        Some(failure) => Err(failure),
        None => Ok(true),
    }
}
