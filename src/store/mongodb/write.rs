//! Single writes: one `findOneAndUpdate`, repeated if that may help.

use mongodb::options::ReturnDocument;
use tokio::time::Instant;

use super::{
    FEATURES,
    batch::{self, Done, Item},
    compare::{self, Group},
    connection::{Command, Connection, Lane},
    document,
    pipeline::{self, Needs, Unsure},
    read, remembered, statement,
};
use crate::{
    record::{Revision, State},
    store::{Outcome, Receipt, StoreError, Write},
};

/// The most tries of one write. Two are enough for a lost connection; two servers that create the
/// same document at once need more.
pub(super) const TRIES: usize = 4;

/// Does one write, and returns the state afterwards.
pub(super) async fn write(
    connection: &Connection,
    write: Write,
    deadline: Instant,
) -> Result<(Receipt, State), StoreError> {
    let key = write.key.clone();
    write_named(connection, write, deadline).await.map_err(|error| error.of_record(&key))
}

async fn write_named(connection: &Connection, write: Write, deadline: Instant) -> Result<(Receipt, State), StoreError> {
    let rules = &connection.config().rules;
    let outline = pipeline::outline(&write, rules);
    if outline.needs_a_look {
        return compare::write_one(connection, Group::new(0, write), deadline).await;
    }
    if outline.bytes > statement::SMALL {
        return write_large(connection, Item::new(0, write, &outline, connection.now()), deadline).await;
    }
    let first_sent = connection.now();
    let mut may_be_done = false;
    for tries_left in (0..TRIES).rev() {
        let since = may_be_done.then_some(first_sent);
        let done = connection.run(Command::new("findAndModify", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.majority(FEATURES);
            let mut statement = pipeline::update(&write, rules, since, Unsure::ChangesNothing);
            let (filter, upsert) = (std::mem::take(&mut statement.filter), statement.upsert);
            let pipeline = statement.into_tree();
            async move {
                features
                    .find_one_and_update(filter, pipeline)
                    .upsert(upsert)
                    .return_document(ReturnDocument::After)
                    .collation(read::simple())
                    .max_time(left)
                    .await
            }
        });
        match done.await {
            Ok(Some(post_image)) => match remembered::outcome_of(&post_image, &write) {
                Some(outcome) => return answer(outcome, &post_image),
                // Nothing was changed, because only a read of the stored record can decide.
                None if Needs::of(&write) != Needs::Nothing => {
                    let since = may_be_done.then_some(first_sent);
                    return compare::write_one(connection, Group::since(0, write, since), deadline).await;
                }
                // Since the lost try there were so many writes that the document may have forgotten
                // it.
                None if may_be_done => return Err(unseen()),
                None => return Err(StoreError::DoneUnreadable("the document does not remember the request".into())),
            },
            Ok(None) => return outline.on_nothing.filter(|_| !may_be_done).map(nothing).ok_or_else(unseen),
            Err(failure) if failure.is_too_large() && !may_be_done => {
                return compare::write_one(connection, Group::new(0, write), deadline).await;
            }
            Err(failure) if failure.worth_repeating && tries_left > 0 => may_be_done |= failure.may_be_done(),
            Err(failure) => return Err(failure.of_write(may_be_done)),
        }
    }
    Err(unseen())
}

/// Does a write that is too large for a tree, as a batch of one, and reads the state afterwards.
async fn write_large(connection: &Connection, item: Item, deadline: Instant) -> Result<(Receipt, State), StoreError> {
    match batch::write_chunk(connection, vec![item], true, deadline).await.pop() {
        Some((_, Done::Answer(answer))) => answer,
        Some((_, Done::Unsure(group))) => compare::write_one(connection, group, deadline).await,
        None => Err(StoreError::Internal("a write got no result".into())),
    }
}

/// The answer if there is no document.
pub(super) fn nothing(outcome: Outcome) -> (Receipt, State) {
    (Receipt { outcome, revision: Revision::NONE, tombstone: false }, State::Absent)
}

/// The lost try may still reach the server, and may find another state than this one did.
pub(super) fn unseen() -> StoreError {
    StoreError::OutcomeUnknown("the reply to a try was lost, and no later try found out whether it was done".into())
}

fn answer(outcome: Outcome, post_image: &bson::RawDocument) -> Result<(Receipt, State), StoreError> {
    // The write is done, whatever else the document has: no error here may say that it was not.
    let unreadable = |error: StoreError| StoreError::DoneUnreadable(error.reason().into());
    let state = document::state(post_image).map_err(unreadable)?;
    Ok((batch::receipt_of(outcome, &state), state))
}
