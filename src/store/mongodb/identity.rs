//! The identity of the records: the UUID of the collection `features`, and the name of the
//! database. A copy of the database (a restored dump, `$out`, a rename) has another UUID or name,
//! though its epoch names the L1 of the original.
//!
//! The UUID is read by listCollections. Without that right only the name of the database counts,
//! and a warning says so.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bson::{Bson, Document, RawDocument, doc};
use tokio::time::Instant;

use super::{
    FEATURES, META,
    connection::{Command, Connection, Lane},
    failure::Failure,
};
use crate::{cache::Epoch, store::StoreError};

/// How long the identity is used before it is read again.
const KNOWN_FOR: Duration = Duration::from_secs(2);

/// The identity as last read.
#[derive(Default)]
pub(super) struct Identity {
    found: Mutex<Option<Found>>,
}

struct Found {
    here: Here,
    at: Instant,
    /// The epoch at that time.
    epoch: Option<Epoch>,
    is_refused: bool,
}

/// The identity of the present records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) database: String,
    /// None: there is no collection yet, or its UUID may not be read.
    features: Option<String>,
}

/// Whether an epoch was made for the present records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    /// The epoch has no collection, because there was none when it was made.
    Unknown,
    Another,
}

impl Identity {
    /// The identity, read again after some time, or if the epoch has changed.
    pub(super) async fn here(
        &self,
        connection: &Connection,
        epoch: Epoch,
        made_for: Option<&RawDocument>,
        deadline: Instant,
    ) -> Result<Here, StoreError> {
        let known = self.lock().as_ref().and_then(|found| {
            let is_same = found.epoch == Some(epoch) && found.here.verdict(made_for) == Verdict::Same;
            (is_same && found.at.elapsed() < KNOWN_FOR).then(|| found.here.clone())
        });
        if let Some(here) = known {
            return Ok(here);
        }
        let here = self.look(connection, deadline).await?;
        if let Some(found) = &mut *self.lock() {
            found.epoch = Some(epoch);
        }
        Ok(here)
    }

    /// The identity as last read.
    pub(super) fn last(&self, connection: &Connection) -> Here {
        let found = self.lock();
        let database = || connection.config().database.clone();
        found.as_ref().map_or_else(|| Here { database: database(), features: None }, |found| found.here.clone())
    }

    /// Reads the identity now.
    pub(super) async fn look(&self, connection: &Connection, deadline: Instant) -> Result<Here, StoreError> {
        let asked = Instant::now();
        let listed = connection.run(Command::new("listCollections", META), Lane::Reserved, deadline, |prepared, _| {
            let command = doc! { "listCollections": 1, "filter": { "name": FEATURES } };
            async move { prepared.database.run_command(command).await }
        });
        let database = connection.config().database.clone();
        let was_refused = self.lock().as_ref().is_some_and(|found| found.is_refused);
        let (features, is_refused) = match listed.await {
            Ok(listed) => (uuid(&listed), false),
            Err(failure) if failure.is_unauthorized() => {
                if !was_refused {
                    tracing::warn!(
                        database,
                        "MongoDB does not allow listCollections: whether the collection features was replaced (a \
                         restored backup, a copy in its place) cannot be noticed; run `featurestore epoch new` after a \
                         restore"
                    );
                }
                (None, true)
            }
            Err(failure) => return Err(Failure::of_read(failure)),
        };
        let here = Here { database, features };
        *self.lock() = Some(Found { here: here.clone(), at: asked, epoch: None, is_refused });
        Ok(here)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    /// Whether an epoch's `l2` names these records.
    pub(super) fn verdict(&self, made_for: Option<&RawDocument>) -> Verdict {
        let text = |name| made_for.and_then(|made_for| made_for.get_str(name).ok());
        match (text("database"), text("features"), &self.features) {
            (Some(database), _, _) if database != self.database => Verdict::Another,
            (_, Some(features), Some(here)) if features != here => Verdict::Another,
            (Some(_), _, None) | (Some(_), Some(_), Some(_)) => Verdict::Same,
            (None, _, _) | (Some(_), None, Some(_)) => Verdict::Unknown,
        }
    }

    /// As stored in the epoch.
    pub(super) fn document(&self) -> Document {
        let mut document = doc! { "database": &self.database };
        if let Some(features) = &self.features {
            document.insert("features", features);
        }
        doc! { "$literal": document }
    }
}

/// Of the one collection that was listed.
fn uuid(listed: &Document) -> Option<String> {
    let collection = listed.get_document("cursor").ok()?.get_array("firstBatch").ok()?.first()?;
    match collection.as_document()?.get_document("info").ok()?.get("uuid")? {
        Bson::Binary(uuid) => Some(uuid.bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    #[test]
    fn an_epoch_is_for_the_records_whose_database_and_collection_it_names() {
        let here = |features: Option<&str>| Here { database: "prod".into(), features: features.map(str::to_owned) };
        let same = rawdoc! { "database": "prod", "features": "a" };
        assert_eq!(here(Some("a")).verdict(Some(&same)), Verdict::Same);
        assert_eq!(here(None).verdict(Some(&same)), Verdict::Same, "dropped, or not told");
        assert_eq!(here(Some("b")).verdict(Some(&same)), Verdict::Another, "restored, or made again");
        assert_eq!(
            here(Some("a")).verdict(Some(&rawdoc! { "database": "staging", "features": "a" })),
            Verdict::Another
        );
        assert_eq!(here(None).verdict(Some(&rawdoc! { "database": "staging" })), Verdict::Another);
        assert_eq!(
            here(Some("a")).verdict(Some(&rawdoc! { "database": "prod" })),
            Verdict::Unknown,
            "it was made later"
        );
        assert_eq!(here(Some("a")).verdict(None), Verdict::Unknown, "an earlier version's");
    }
}
