//! The epoch: one document of the collection `meta`, `{_id: "epoch", epoch: <16 hex digits>, dirty:
//! <bool>, since: <date>, l1: {id, histories, shared, address}, leased_until: <date>, beside_until:
//! <date>, l2: {database, features}}`. Earlier versions wrote only the first three fields; such an
//! epoch names no L1.
//!
//! These operations do not queue behind those of users: a server that reads the epoch too late must
//! not use L1, which would make a busy L2 busier.

use std::time::Duration;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use mongodb::options::ReturnDocument;
use tokio::time::Instant;

use super::{
    META,
    connection::{Command, Connection, Lane},
    failure::Failure,
    identity::{Here, Identity, Verdict},
    write::TRIES,
};
use crate::{
    cache::{Epoch, L1Name},
    record::Millis,
    store::{Claim, EpochState, LEASE, LEASE_LOW, StoreError},
};

/// The epoch, in one database.
pub(super) struct Epochs<'a> {
    pub(super) connection: &'a Connection,
    pub(super) identity: &'a Identity,
}

impl Epochs<'_> {
    /// The epoch for the present records. The first call ever makes one.
    pub(super) async fn read(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        for _ in 0..TRIES {
            if let Some(state) = self.read_once(deadline).await? {
                return Ok(state);
            }
        }
        Err(StoreError::Unavailable(
            "the epoch is being replaced again and again; the server will read it later".into(),
        ))
    }

    /// None: it was replaced meanwhile.
    async fn read_once(&self, deadline: Instant) -> Result<Option<EpochState>, StoreError> {
        let document = match self.find(deadline).await? {
            Some(document) => document,
            None => self.update(filter(), missing(), true, deadline).await?.ok_or_else(lost)?,
        };
        let state = state(&document)?;
        let made_for = document.get_document("l2").ok();
        let here = self.identity.here(self.connection, state.epoch, made_for, deadline).await?;
        let mut still_seen = filter();
        still_seen.insert("epoch", state.epoch.to_string());
        let change = match here.verdict(made_for) {
            Verdict::Same => return Ok(Some(state)),
            Verdict::Unknown => doc! { "l2": here.document() },
            Verdict::Another => {
                tracing::warn!(
                    database = here.database,
                    "the records in MongoDB are not those for which the epoch was made (a copy, a restored backup, or \
                     a collection that was created again): L1 starts cold, in a new epoch"
                );
                fresh(&here)
            }
        };
        let replaced = self.update(still_seen, change, false, deadline).await?;
        replaced.map(|document| self::state(&document)).transpose()
    }

    /// As `read`, and extends the lease on `l1`.
    pub(super) async fn use_l1(&self, l1: &L1Name, deadline: Instant) -> Result<EpochState, StoreError> {
        let state = self.read(deadline).await?;
        let until = |field: &str| doc! { "$max": [format!("${field}"), { "$add": ["$$NOW", millis(LEASE)] }] };
        let change = match &state.l1 {
            Some(named) if named.is(l1) => {
                let has_grown = l1.has_grown_from(named);
                if state.leased >= LEASE_LOW && !has_grown {
                    return Ok(state);
                }
                let mut change = doc! { "leased_until": until("leased_until") };
                if has_grown {
                    change.insert("l1", literal(l1));
                }
                change
            }
            Some(_) if !l1.shared && state.beside < LEASE_LOW => doc! { "beside_until": until("beside_until") },
            _ => return Ok(state),
        };
        match self.update(as_seen(&state), change, false, deadline).await? {
            Some(document) => self::state(&document),
            None => self.read(deadline).await,
        }
    }

    /// Names another L1, unless a server still has a lease on the named one.
    pub(super) async fn name_l1(&self, claim: Claim, deadline: Instant) -> Result<EpochState, StoreError> {
        let here = self.identity.last(self.connection);
        let mut change = if claim.keep_epoch {
            doc! { "since": "$$NOW" }
        } else {
            fresh(&here)
        };
        change.extend(named(&claim.l1));
        let mut filter = as_seen(&claim.seen);
        if !claim.at_once {
            let until = date_or("$leased_until", bson::DateTime::from_millis(0).into());
            filter.insert("$expr", doc! { "$lte": [until, "$$NOW"] });
        }
        match self.update(filter, change, false, deadline).await? {
            Some(document) => state(&document),
            None => self.read(deadline).await,
        }
    }

    /// Replaces the epoch if it is still `seen`.
    pub(super) async fn renew(&self, seen: Epoch, deadline: Instant) -> Result<EpochState, StoreError> {
        let mut still_seen = filter();
        still_seen.insert("epoch", seen.to_string());
        // An event that replaced the records may have led here, so their identity is read again.
        let here = self.identity.look(self.connection, deadline).await?;
        match self.update(still_seen, fresh(&here), false, deadline).await? {
            Some(renewed) => state(&renewed),
            None => self.read(deadline).await,
        }
    }

    /// Replaces the epoch in any case.
    pub(super) async fn replace(&self, l1: Option<&L1Name>, deadline: Instant) -> Result<EpochState, StoreError> {
        let here = self.identity.look(self.connection, deadline).await?;
        let mut change = fresh(&here);
        change.extend(match l1 {
            Some(l1) => named(l1),
            None => doc! { "l1": "$$REMOVE", "leased_until": "$$REMOVE" },
        });
        state(&self.update(filter(), change, true, deadline).await?.ok_or_else(lost)?)
    }

    /// Marks the present epoch as dirty.
    pub(super) async fn mark_dirty(&self, deadline: Instant) -> Result<EpochState, StoreError> {
        let mut change = missing();
        change.insert("dirty", true);
        state(&self.update(filter(), change, true, deadline).await?.ok_or_else(lost)?)
    }

    /// Linearizable, because a server uses L1 if it read this less than 2 s ago, and a deposed
    /// primary may continue to answer majority reads with what was true before.
    async fn find(&self, deadline: Instant) -> Result<Option<RawDocumentBuf>, StoreError> {
        let asked = Instant::now();
        let found = self.connection.run(Command::new("find", META), Lane::Reserved, deadline, |prepared, left| {
            let meta = prepared.linearizable(META);
            async move { meta.find_one(filter()).projection(projection()).max_time(left).await }
        });
        let found = found.await.map_err(Failure::of_read)?;
        if let Some(now) = found.as_ref().and_then(|document| document.get_datetime("now").ok()) {
            self.connection.saw_time(now, asked);
        }
        Ok(found)
    }

    /// Every change here may be repeated: it is done again, or finds that it was done.
    async fn update(
        &self,
        filter: Document,
        change: Document,
        upsert: bool,
        deadline: Instant,
    ) -> Result<Option<RawDocumentBuf>, StoreError> {
        let mut may_be_done = false;
        for tries_left in (0..TRIES).rev() {
            let (filter, change) = (filter.clone(), change.clone());
            let command = Command::new("findAndModify", META);
            let done = self.connection.run(command, Lane::Reserved, deadline, |prepared, left| {
                let meta = prepared.majority(META);
                async move {
                    let update = meta.find_one_and_update(filter, vec![doc! { "$set": change }]).upsert(upsert);
                    let update = update.projection(projection()).max_time(left);
                    update.return_document(ReturnDocument::After).await
                }
            });
            match done.await {
                Ok(found) => return Ok(found),
                Err(failure) if failure.worth_repeating && tries_left > 0 => may_be_done |= failure.may_be_done(),
                Err(failure) => return Err(failure.of_write(may_be_done)),
            }
        }
        Err(lost())
    }
}

fn filter() -> Document {
    doc! { "_id": "epoch" }
}

/// The document, if both the epoch and the named L1 are as they were seen.
fn as_seen(seen: &EpochState) -> Document {
    let mut filter = filter();
    filter.insert("epoch", seen.epoch.to_string());
    match &seen.l1 {
        Some(l1) => {
            filter.insert("l1.id", &*l1.id);
            filter.insert("l1.histories", l1.histories.to_vec());
        }
        // Missing, or not readable as a name.
        None => drop(filter.insert("l1.id", doc! { "$not": { "$type": "string" } })),
    }
    filter
}

/// A new epoch, from now on, for the present records.
fn fresh(here: &Here) -> Document {
    let epoch = Epoch(rand::random()).to_string();
    doc! { "epoch": epoch, "dirty": false, "since": "$$NOW", "l2": here.document() }
}

/// The named L1, with a lease from now on.
fn named(l1: &L1Name) -> Document {
    doc! { "l1": literal(l1), "leased_until": { "$add": ["$$NOW", millis(LEASE)] } }
}

fn literal(l1: &L1Name) -> Document {
    let L1Name { id, histories, shared, address } = l1;
    doc! { "$literal": { "id": &**id, "histories": histories.to_vec(), "shared": shared, "address": &**address } }
}

/// Fields that are missing.
fn missing() -> Document {
    let fresh = doc! { "epoch": Epoch(rand::random()).to_string(), "dirty": false, "since": "$$NOW" };
    let if_missing =
        |(name, value): (String, Bson)| (name.clone(), doc! { "$ifNull": [format!("${name}"), value] }.into());
    fresh.into_iter().map(if_missing).collect()
}

/// The document, with its times relative to now by the server's clock.
fn projection() -> Document {
    let left = |field: &str| doc! { "$toLong": { "$subtract": [date_or(field, "$$NOW".into()), "$$NOW"] } };
    doc! {
        "epoch": 1, "dirty": 1, "l1": 1, "l2": 1,
        "now": "$$NOW",
        "age": { "$toLong": { "$subtract": ["$$NOW", date_or("$since", "$$NOW".into())] } },
        "leased": left("$leased_until"),
        "beside": left("$beside_until"),
    }
}

/// A field if it is a date, else `other`.
fn date_or(field: &str, other: Bson) -> Document {
    doc! { "$cond": [{ "$eq": [{ "$type": field }, "date"] }, field, other] }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn lost() -> StoreError {
    StoreError::Internal("an upsert answered no document".into())
}

fn state(document: &RawDocument) -> Result<EpochState, StoreError> {
    let epoch = document.get_str("epoch").ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let unreadable =
        || "the epoch in the collection meta is not 16 hex digits; `featurestore epoch new` makes a new one";
    let epoch = epoch.ok_or_else(|| StoreError::Corrupt(unreadable().into()))?;
    let duration = |name: &str| {
        let millis = document.get_i64(name).ok().and_then(|millis| u64::try_from(millis).ok());
        Duration::from_millis(millis.unwrap_or(0))
    };
    Ok(EpochState {
        epoch: Epoch(epoch),
        // An unreadable flag counts as dirty. Then L1 is used only in a new epoch, which corrects
        // it.
        dirty: document.get_bool("dirty").unwrap_or(true),
        age: duration("age"),
        l1: document.get_document("l1").ok().and_then(l1_name),
        leased: duration("leased"),
        beside: duration("beside"),
        now: document.get_datetime("now").ok().map(|now| Millis(now.timestamp_millis())),
    })
}

/// None: it cannot be read.
fn l1_name(document: &RawDocument) -> Option<L1Name> {
    let histories = document.get_array("histories").ok()?.into_iter();
    let histories: Option<Vec<String>> = histories.map(|history| Some(history.ok()?.as_str()?.to_owned())).collect();
    Some(L1Name {
        id: document.get_str("id").ok()?.into(),
        histories: histories?.into(),
        shared: document.get_bool("shared").ok()?,
        address: document.get_str("address").unwrap_or("an unknown address").into(),
    })
}
