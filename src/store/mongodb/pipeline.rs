//! A write as an update pipeline: what `store::apply` does, done by the server in one atomic step.
//!
//! Conditions are in the pipeline and never in the filter, which with an upsert would return
//! E11000. Every value of a client is wrapped in `$literal`, because a string that begins with `$`
//! would be read as a path. `_attempt` has the results of earlier stages and is removed at the end.

use std::time::Duration;

use bson::{Bson, Document, RawDocument, doc};

use super::{
    document, remembered, sound,
    statement::{Given, MAX_DOCUMENT_BYTES, Statement, literal, or_fail, set},
};
use crate::{
    record::{Lifetime, Millis, Record, Revision, WriteMode},
    store::{Change, Operation, Outcome, REMEMBERED_REQUESTS, Write, WriteRules},
};

/// How much the clocks of the servers and of MongoDB's nodes may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// The stored form of a value takes at most this many times the bytes of its BSON. A null takes
/// three bytes and its name in BSON, and at most ten and its name in stored form.
const MOST_STORED_PER_BSON: i64 = 4;

/// A record to write, and its size.
pub(super) struct Planned<'a> {
    record: &'a Record,
    given: Given<'a>,
    /// The outcome if the rules or MongoDB do not allow it, whatever is stored.
    refused: Option<Outcome>,
}

impl<'a> Planned<'a> {
    fn new(record: &'a Record, rules: &WriteRules) -> Self {
        let given = Given::new(&record.features, record.mode == WriteMode::Merge);
        let (count, bytes) = (record.features.count(), record.features.as_bytes().len());
        let document = given.bytes() + record.model_version.len();
        let refused = if count > rules.max_features {
            Some(Outcome::TooManyFeatures { count })
        } else if bytes > rules.max_record_bytes {
            Some(Outcome::RecordTooLarge { bytes })
        } else if document > MAX_DOCUMENT_BYTES {
            Some(Outcome::DocumentTooLarge { bytes, document, maximum: MAX_DOCUMENT_BYTES })
        } else {
            None
        };
        Self { record, given, refused }
    }

    fn of(write: &'a Write, rules: &WriteRules) -> Option<Self> {
        match &write.change {
            Change::Upsert(record) => Some(Self::new(record, rules)),
            Change::Delete => None,
        }
    }

    fn is_merge(&self) -> bool {
        self.record.mode == WriteMode::Merge
    }
}

/// What is known of a write before it is translated.
pub(super) struct Outline {
    /// The outcome if there is no document, which then stays so. None: the write creates one.
    pub(super) on_nothing: Option<Outcome>,
    /// Only a read of the stored record can decide: a merge that is too large by itself, whose
    /// error contains the size of the whole.
    pub(super) needs_a_look: bool,
    /// The size of the given features as BSON.
    pub(super) bytes: usize,
}

/// Measures a write.
pub(super) fn outline(write: &Write, rules: &WriteRules) -> Outline {
    let planned = Planned::of(write, rules);
    Outline {
        on_nothing: on_nothing(write, planned.as_ref()),
        needs_a_look: planned.as_ref().is_some_and(|planned| planned.is_merge() && planned.refused.is_some()),
        bytes: planned.filter(|planned| planned.refused.is_none()).map_or(0, |planned| planned.given.bytes()),
    }
}

/// The size of a write's features as BSON.
pub(super) fn document_bytes(write: &Write) -> usize {
    match &write.change {
        Change::Upsert(record) => super::statement::document_bytes(&record.features),
        Change::Delete => 0,
    }
}

/// Translates a write. Sending it again changes nothing. A write that `may_be_done` since a given
/// time changes nothing if the document may have forgotten it: it cannot be known whether it is
/// done, and doing it twice could undo a later write. A merge close to a limit changes nothing
/// either and is not remembered, because the server cannot count stored bytes; `compare` decides.
/// The same holds for a write that needs the stored record, if that is unreadable or in doubt. A
/// write that needs nothing replaces such a record.
pub(super) fn update<'a>(
    write: &'a Write,
    rules: &WriteRules,
    may_be_done: Option<bson::DateTime>,
    unsure: Unsure,
) -> Statement<'a> {
    let planned = Planned::of(write, rules);
    // The stage of the given features comes after the first one, which removes a field of this name
    // that was edited into the document.
    let mut stages = vec![
        doc! { "$unset": "_attempt" },
        set(doc! { "_attempt.readable": readable(Needs::of(write)) }),
        set(doc! { "_attempt": { "$mergeObjects": ["$_attempt", standing(write, may_be_done)] } }),
    ];
    if planned.as_ref().is_some_and(Planned::is_merge) {
        let base = doc! { "$cond": ["$_attempt.live", "$features", literal(doc! {})] };
        stages.push(set(doc! {
            "_attempt.features": { "$mergeObjects": [base, "$_attempt.given.features"] },
            "_attempt.base": { "$cond": ["$_attempt.live", { "$toLong": { "$bsonSize": "$features" } }, 0_i64] },
        }));
        stages.push(set(doc! {
            "_attempt.count": { "$toLong": { "$size": { "$objectToArray": "$_attempt.features" } } },
        }));
    }
    stages.push(set(doc! { "_attempt.outcome": outcome(write, planned.as_ref(), rules) }));
    let decided = match unsure {
        Unsure::ChangesNothing => Bson::from("$_attempt.outcome"),
        Unsure::Fails => {
            let is_decided = doc! { "$ne": ["$_attempt.outcome", "unsure"] };
            or_fail(is_decided, "$_attempt.outcome", "$_attempt.outcome").into()
        }
    };
    stages.push(set(doc! {
        "_attempt.changed": { "$in": [decided, ["written", "deleted"]] },
        "_attempt.next": { "$max": [
            { "$add": ["$_attempt.revision", 1_i64] },
            { "$multiply": [{ "$toLong": "$$NOW" }, 1000_i64] },
        ] },
    }));
    let content = match &planned {
        Some(planned) if planned.refused.is_some() => Document::new(),
        Some(planned) => record(planned, rules),
        None => tombstone(rules),
    };
    let mut fields: Document = content
        .into_iter()
        .map(|(name, new)| {
            let old = format!("${name}");
            (name, Bson::from(doc! { "$cond": ["$_attempt.changed", new, old] }))
        })
        .collect();
    fields.insert("requests", requests(write, planned.as_ref()));
    stages.push(set(fields));
    stages.push(doc! { "$unset": "_attempt" });

    let upsert = on_nothing(write, planned.as_ref()).is_none();
    Statement {
        filter: doc! { "_id": document::id(&write.key) },
        stages,
        // A rejected record is not even built.
        given: planned.filter(|planned| planned.refused.is_none()).map(|planned| planned.given),
        upsert,
    }
}

/// What a statement does if the server cannot decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsure {
    /// It changes nothing. The document of a single write is returned with it, and shows that.
    ChangesNothing,
    /// It fails with `Failure::is_unsure`. What is read after a command of many statements would not
    /// show it: a document may have forgotten a write that was done.
    Fails,
}

/// How much of the stored record a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// It replaces or deletes any record.
    Nothing,
    /// Its times, to compare them.
    Head,
    /// All of it.
    Everything,
}

impl Needs {
    pub(super) fn of(write: &Write) -> Self {
        match &write.change {
            _ if write.if_revision.is_some() => Self::Everything,
            Change::Upsert(record) if record.mode == WriteMode::Merge => Self::Everything,
            Change::Upsert(record) if record.event_time.is_some() => Self::Head,
            Change::Upsert(_) | Change::Delete => Self::Nothing,
        }
    }
}

/// Whether the needed parts of the document can be read. Those of a new document can.
fn readable(needs: Needs) -> Document {
    let mut all = vec![sound::head()];
    if needs != Needs::Nothing {
        all.push(sound::requests());
    }
    if needs == Needs::Everything {
        all.push(sound::features());
    }
    // A document that this write creates has none of our fields yet.
    let is_new = document::FIELDS.map(|field| doc! { "$eq": [{ "$type": format!("${field}") }, "missing"] });
    doc! { "$or": [{ "$and": is_new.to_vec() }, { "$and": all }] }
}

/// Whether the document may have forgotten a request that was sent at `since`: all requests that it
/// remembers may be later.
pub(super) fn may_have_forgotten(document: &RawDocument, since: bson::DateTime) -> bool {
    let Ok(requests) = document.get_array("requests") else { return false };
    let mut entries = requests.into_iter().flatten();
    let oldest = entries.next().and_then(|entry| entry.as_document()?.get_datetime("at").ok());
    let is_full = 1 + entries.count() >= REMEMBERED_REQUESTS;
    is_full && oldest.is_none_or(|at| at.timestamp_millis() >= earliest(since))
}

/// The earliest time at which a write that was sent then may have been done, by another clock.
fn earliest(since: bson::DateTime) -> i64 {
    since.timestamp_millis().saturating_sub_unsigned(CLOCKS_DIFFER.as_millis() as u64)
}

/// The present state: whether the request is a repeat, whether there is a live record, and the
/// revision.
fn standing(write: &Write, may_be_done: Option<bson::DateTime>) -> Document {
    // Guards against edits by hand: no write may fail because of them.
    let of_requests = |field: &str| doc! { "$cond": [{ "$isArray": "$requests" }, field, []] };
    let ids = of_requests("$requests.id");
    let forgotten = may_be_done.map_or(Bson::from(false), |since| {
        // Later requests push it out. While an earlier one is still there, it would be there too.
        let oldest = doc! { "$ifNull": [{ "$arrayElemAt": [of_requests("$requests.at"), 0] }, "$$NOW"] };
        doc! { "$and": [
            { "$gte": [{ "$size": of_requests("$requests") }, REMEMBERED_REQUESTS as i32] },
            { "$gte": [oldest, bson::DateTime::from_millis(earliest(since))] },
        ] }
        .into()
    });
    doc! {
        "forgotten": forgotten,
        "repeat": { "$in": [literal(&*write.request_id.0), ids] },
        "live": { "$and": [
            "$_attempt.readable",
            { "$isNumber": "$rev" },
            { "$ne": ["$deleted", true] },
            { "$or": [{ "$lte": ["$expire_at", null] }, { "$gt": ["$expire_at", "$$NOW"] }] },
        ] },
        "revision": { "$cond": [sound::revision(), { "$toLong": "$rev" }, 0_i64] },
    }
}

/// The revision of the live record; 0: there is none.
fn live_revision() -> Document {
    doc! { "$cond": ["$_attempt.live", "$_attempt.revision", 0_i64] }
}

/// The name of the outcome: the first check that holds decides.
fn outcome(write: &Write, planned: Option<&Planned<'_>>, rules: &WriteRules) -> Document {
    let case = |case: Document, then: &str| doc! { "case": case, "then": then };
    let over_unreadable = match planned {
        _ if Needs::of(write) != Needs::Nothing => "unsure",
        Some(planned) => planned.refused.as_ref().map_or("written", remembered::outcome_name),
        None => "deleted",
    };
    let mut branches = vec![
        case(doc! { "$not": ["$_attempt.readable"] }, over_unreadable),
        doc! { "case": "$_attempt.repeat", "then": "repeat" },
        doc! { "case": "$_attempt.forgotten", "then": "forgotten" },
    ];
    if let Some(wanted) = write.if_revision {
        branches.push(case(doc! { "$ne": [wanted.0, live_revision()] }, "revision_mismatch"));
    }
    let Some(planned) = planned else {
        branches.push(doc! { "case": "$_attempt.live", "then": "deleted" });
        return doc! { "$switch": { "branches": branches, "default": "not_found" } };
    };
    if let Some(event_time) = planned.record.event_time {
        let older = doc! { "$and": ["$_attempt.live", { "$lt": [date(event_time), "$event_time"] }] };
        branches.push(case(older, "skipped_stale"));
    }
    if planned.is_merge() {
        branches.push(case(doc! { "$gt": ["$_attempt.count", to_i64(rules.max_features)] }, "too_many_features"));
        branches.push(case(is_unsure(planned, rules), "unsure"));
    }
    let default = planned.refused.as_ref().map_or("written", remembered::outcome_name);
    doc! { "$switch": { "branches": branches, "default": default } }
}

/// Whether a merge may make a record above the limit, or a document that is too large for MongoDB.
fn is_unsure(planned: &Planned<'_>, rules: &WriteRules) -> Document {
    let stored = |factor: i64| doc! { "$multiply": ["$_attempt.base", factor] };
    let room = to_i64(rules.max_record_bytes) - to_i64(planned.record.features.as_bytes().len());
    // The kinds of the stored features take less than the features.
    let document_room = to_i64(MAX_DOCUMENT_BYTES) - to_i64(planned.given.bytes());
    doc! { "$or": [
        { "$gt": [stored(MOST_STORED_PER_BSON), room] },
        { "$gt": [stored(2), document_room] },
    ] }
}

/// The fields of a written record.
fn record(planned: &Planned<'_>, rules: &WriteRules) -> Document {
    let record = planned.record;
    let merge = planned.is_merge();
    let or_kept = |kept: &str, fresh: Bson| match merge {
        true => Bson::from(doc! { "$cond": ["$_attempt.live", kept, fresh] }),
        false => fresh,
    };
    let expire_at = match record.lifetime {
        Some(Lifetime::Forever) => Bson::from("$$REMOVE"),
        Some(Lifetime::Ttl(ttl)) => now_plus(ttl).into(),
        None => or_kept("$expire_at", now_plus(rules.default_ttl).into()),
    };
    let event_time = match record.event_time {
        Some(at) => Bson::from(date(at)),
        None => doc! { "$cond": ["$_attempt.live", { "$max": ["$event_time", "$$NOW"] }, "$$NOW"] }.into(),
    };
    let model_version = match &*record.model_version {
        "" => or_kept("$model_version", Bson::from("")),
        given => literal(given).into(),
    };
    doc! {
        "features": if merge { "$_attempt.features" } else { "$_attempt.given.features" },
        "kinds": if merge { merged_kinds("$_attempt.live".into()) } else { given_kinds(&planned.given) },
        "model_version": model_version,
        "rev": "$_attempt.next",
        "event_time": event_time,
        "write_time": "$$NOW",
        "expire_at": expire_at.clone(),
        "deleted": false,
        "gc_at": { "$cond": [{ "$lte": [expire_at.clone(), null] }, "$$REMOVE", plus(expire_at, rules.tombstone_ttl)] },
    }
}

/// The kinds of a record that replaces another.
pub(super) fn given_kinds(given: &Given<'_>) -> Bson {
    if given.has_kinds() { "$_attempt.given.kinds".into() } else { "$$REMOVE".into() }
}

/// The kinds of a merged record: given kinds replace stored ones, and a 0 only removes the stored
/// one.
pub(super) fn merged_kinds(is_live: Bson) -> Bson {
    let usable = doc! { "$and": [is_live, { "$eq": [{ "$type": "$kinds" }, "object"] }] };
    let stored = doc! { "$cond": [usable, "$kinds", literal(doc! {})] };
    let merged = doc! { "$mergeObjects": [stored, "$_attempt.given.kinds"] };
    let kept = doc! { "input": { "$objectToArray": merged }, "cond": { "$ne": ["$$this.v", 0] } };
    doc! { "$arrayToObject": { "$filter": kept } }.into()
}

/// The fields of a tombstone.
fn tombstone(rules: &WriteRules) -> Document {
    doc! {
        "features": "$$REMOVE",
        "kinds": "$$REMOVE",
        "model_version": "$$REMOVE",
        "rev": "$_attempt.next",
        "event_time": "$$REMOVE",
        "write_time": "$$NOW",
        "expire_at": "$$REMOVE",
        "deleted": true,
        "gc_at": plus(
            doc! { "$max": ["$$NOW", { "$cond": ["$_attempt.readable", "$expire_at", null] }] }.into(),
            rules.tombstone_ttl,
        ),
    }
}

/// The latest requests with this one at the end.
fn requests(write: &Write, planned: Option<&Planned<'_>>) -> Document {
    let when = |outcome: &str, then: Bson| doc! { "case": { "$eq": ["$_attempt.outcome", outcome] }, "then": then };
    let mut branches = vec![when("revision_mismatch", live_revision().into())];
    let of = Operation::of(write).map_or(Bson::from("$$REMOVE"), |Operation(sum)| Bson::from(i64::from(sum)));
    let mut entry = doc! {
        "id": literal(&*write.request_id.0),
        "of": of,
        "rev": { "$cond": ["$_attempt.changed", "$_attempt.next", "$_attempt.revision"] },
        "outcome": "$_attempt.outcome",
    };
    match planned {
        Some(planned) if planned.is_merge() => branches.push(when("too_many_features", "$_attempt.count".into())),
        Some(Planned { refused: Some(refused), .. }) => {
            let (number, document) = remembered::numbers_of(refused);
            branches.extend(number.map(|number| when(remembered::outcome_name(refused), number.into())));
            let of_refused = |number: i64| {
                doc! { "$cond": [{ "$eq": ["$_attempt.outcome", remembered::outcome_name(refused)] }, number, "$$REMOVE"] }
            };
            entry.extend(document.map(|number| ("document".to_owned(), of_refused(number).into())));
        }
        _ => {}
    }
    entry.insert("number", doc! { "$switch": { "branches": branches, "default": "$$REMOVE" } });
    entry.insert("at", "$$NOW");
    let earlier = doc! { "$cond": [{ "$isArray": "$requests" }, "$requests", []] };
    let latest = doc! { "$slice": [{ "$concatArrays": [earlier, [entry]] }, -(REMEMBERED_REQUESTS as i32)] };
    // It is not an attempt, or not yet.
    doc! { "$cond": [{ "$in": ["$_attempt.outcome", ["repeat", "forgotten", "unsure"]] }, "$requests", latest] }
}

fn on_nothing(write: &Write, planned: Option<&Planned<'_>>) -> Option<Outcome> {
    if write.if_revision.is_some_and(|wanted| wanted != Revision::NONE) {
        return Some(Outcome::RevisionMismatch { stored: Revision::NONE });
    }
    planned.map_or(Some(Outcome::NotFound), |planned| planned.refused)
}

fn date(at: Millis) -> bson::DateTime {
    bson::DateTime::from_millis(at.0)
}

fn now_plus(duration: Duration) -> Document {
    plus(Bson::from("$$NOW"), duration)
}

fn plus(at: Bson, duration: Duration) -> Document {
    doc! { "$add": [at, i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)] }
}

fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
