//! Single writes: one `findOneAndUpdate`, repeated where that is worth it.

use mongodb::options::ReturnDocument;
use tokio::time::Instant;

use super::{
    FEATURES,
    connection::{Command, Connection, Lane},
    document,
    pipeline::{self, Update},
};
use crate::{
    record::{Revision, State},
    store::{Outcome, Receipt, StoreError, Write},
};

/// Tries of one write. Two would do for a lost connection; two servers that make the same document at once need more.
pub(super) const TRIES: usize = 4;

/// Does one write and answers what now stands.
pub(super) async fn write(
    connection: &Connection,
    write: Write,
    deadline: Instant,
) -> Result<(Receipt, State), StoreError> {
    let first_sent = bson::DateTime::now();
    let mut may_be_done = false;
    for tries_left in (0..TRIES).rev() {
        let since = may_be_done.then_some(first_sent);
        let Update { filter, pipeline, on_nothing } = pipeline::update(&write, &connection.config().rules, since);
        let upsert = on_nothing.is_none();
        let done = connection.run(Command::new("findAndModify", FEATURES), Lane::Users, deadline, |prepared, left| {
            let features = prepared.majority(FEATURES);
            async move {
                features
                    .find_one_and_update(filter, pipeline)
                    .upsert(upsert)
                    .return_document(ReturnDocument::After)
                    .max_time(left)
                    .await
            }
        });
        match done.await {
            Ok(Some(post_image)) => return answer(&write, &post_image, may_be_done),
            Ok(None) => return on_nothing.filter(|_| !may_be_done).map(nothing).ok_or_else(unseen),
            Err(failure) if failure.worth_repeating && tries_left > 0 => may_be_done |= failure.may_be_done(),
            Err(failure) => return Err(failure.of_write(may_be_done)),
        }
    }
    Err(unseen())
}

/// The answer where no document stands.
pub(super) fn nothing(outcome: Outcome) -> (Receipt, State) {
    (Receipt { outcome, revision: Revision::NONE, tombstone: false }, State::Absent)
}

/// An earlier try may still reach the server, and may find there what this one did not.
fn unseen() -> StoreError {
    StoreError::OutcomeUnknown("a try was lost, and no later one found its trace".into())
}

fn answer(write: &Write, post_image: &bson::RawDocument, may_be_done: bool) -> Result<(Receipt, State), StoreError> {
    // The write has been done, whatever else the document holds: no error here may claim that it was not.
    let unreadable = |error: StoreError| StoreError::DoneUnreadable(error.to_string().into());
    let outcome = document::outcome_of(post_image, &write.request_id).ok_or_else(|| match may_be_done {
        true => unseen(), // so much was written since the try that was lost that the document may have forgotten it
        false => StoreError::DoneUnreadable("the document does not remember the request".into()),
    })?;
    let state = document::state(post_image).map_err(unreadable)?;
    let tombstone = matches!(state, State::Tombstone(_));
    Ok((Receipt { outcome, revision: state.revision(), tombstone }, state))
}
