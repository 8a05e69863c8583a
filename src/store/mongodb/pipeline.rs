//! A write as an update pipeline: what `store::apply` does, done by the server in one atomic step.
//!
//! Conditions stand in the pipeline and never in the filter, which with an upsert would answer E11000. Every value of a
//! client is wrapped in `$literal`, as a string that starts with `$` would be read as a field's path. `_attempt` holds
//! what one stage works out for the next, and is gone in the end.

use std::time::Duration;

use bson::{Bson, Document, RawDocument, doc};

use super::{
    document, remembered, sound,
    statement::{Given, MAX_DOCUMENT_BYTES, Statement, literal, set},
};
use crate::{
    record::{Lifetime, Millis, Record, Revision, WriteMode},
    store::{Change, Operation, Outcome, REMEMBERED_REQUESTS, Write, WriteRules},
};

/// How much the clocks of the servers and of MongoDB's nodes may differ.
pub(super) const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// No value takes more bytes in stored form than so many times its BSON: a null is three bytes and its name here, and at most
/// ten and its name there.
const MOST_STORED_PER_BSON: i64 = 4;

/// A record to write, and how large it is.
pub(super) struct Planned<'a> {
    record: &'a Record,
    given: Given<'a>,
    /// What of it the rules do not allow, or MongoDB cannot hold, whatever is stored.
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
    /// What is answered where there is no document, which then stays so. None: the write makes one.
    pub(super) on_nothing: Option<Outcome>,
    /// Only a look at what is stored can tell what becomes of it: it is a merge that is too large by itself, and is answered
    /// how large the whole would be.
    pub(super) needs_a_look: bool,
    /// Of the features that it brings, as BSON.
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

/// How many bytes of BSON the features of a write take.
pub(super) fn document_bytes(write: &Write) -> usize {
    match &write.change {
        Change::Upsert(record) => super::statement::document_bytes(&record.features),
        Change::Delete => 0,
    }
}

/// Translates a write; sending it again changes nothing. One that is sent again, as it `may_be_done` since the time that is given, changes nothing where the
/// document may have forgotten it: there is no telling then whether it is done, and doing it twice could undo a later write.
/// A merge that comes near a limit changes nothing either and is not remembered: the server has no stored bytes to count, so
/// `compare` decides. Nor does a write that needs what stands, where nobody can read that, or it is in doubt; a write that needs
/// nothing takes its place.
pub(super) fn update<'a>(write: &'a Write, rules: &WriteRules, may_be_done: Option<bson::DateTime>) -> Statement<'a> {
    let planned = Planned::of(write, rules);
    // The stage of what is given comes after the first one. Somebody may have given the document such a field.
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
    stages.push(set(doc! {
        "_attempt.changed": { "$in": ["$_attempt.outcome", ["written", "deleted"]] },
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
        // What is refused is not even built.
        given: planned.filter(|planned| planned.refused.is_none()).map(|planned| planned.given),
        upsert,
    }
}

/// How much of what stands a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// It replaces or deletes whatever it is.
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

/// Whether what a write needs of the document can be read. A new document can be.
fn readable(needs: Needs) -> Document {
    let mut all = vec![sound::head()];
    if needs != Needs::Nothing {
        all.push(sound::requests());
    }
    if needs == Needs::Everything {
        all.push(sound::features());
    }
    // A document that this write makes has nothing of ours yet.
    let is_new = document::FIELDS.map(|field| doc! { "$eq": [{ "$type": format!("${field}") }, "missing"] });
    doc! { "$or": [{ "$and": is_new.to_vec() }, { "$and": all }] }
}

/// Whether the document may have forgotten a request that was sent then: all requests that it remembers may be later. `slack`: by
/// how much the clock that says so may differ from the document's.
pub(super) fn may_have_forgotten(document: &RawDocument, since: bson::DateTime, slack: Duration) -> bool {
    let Ok(requests) = document.get_array("requests") else { return false };
    let mut entries = requests.into_iter().flatten();
    let oldest = entries.next().and_then(|entry| entry.as_document()?.get_datetime("at").ok());
    let is_full = 1 + entries.count() >= REMEMBERED_REQUESTS;
    is_full && oldest.is_none_or(|at| at.timestamp_millis() >= earliest(since, slack))
}

/// When a write that was sent then may have been done at the earliest, by another's clock.
fn earliest(since: bson::DateTime, slack: Duration) -> i64 {
    since.timestamp_millis().saturating_sub_unsigned(slack.as_millis() as u64)
}

/// What stands now: whether the request is a repeat, whether there is a live record, and the revision.
fn standing(write: &Write, may_be_done: Option<bson::DateTime>) -> Document {
    // Guards against what people may have done to a document: no write may fail for that.
    let of_requests = |field: &str| doc! { "$cond": [{ "$isArray": "$requests" }, field, []] };
    let ids = of_requests("$requests.id");
    let forgotten = may_be_done.map_or(Bson::from(false), |since| {
        // Those that came after it push it out: while one from before it is still there, it would be there too.
        let oldest = doc! { "$ifNull": [{ "$arrayElemAt": [of_requests("$requests.at"), 0] }, "$$NOW"] };
        doc! { "$and": [
            { "$gte": [{ "$size": of_requests("$requests") }, REMEMBERED_REQUESTS as i32] },
            { "$gte": [oldest, bson::DateTime::from_millis(earliest(since, CLOCKS_DIFFER))] },
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

/// Whether a merge may make a record that is larger than allowed, or a document that is larger than MongoDB holds.
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

/// The kinds of a record that takes the place of another.
pub(super) fn given_kinds(given: &Given<'_>) -> Bson {
    if given.has_kinds() { "$_attempt.given.kinds".into() } else { "$$REMOVE".into() }
}

/// The kinds of a merged record: the given names' kinds replace the stored ones, and a 0 only takes the stored one away.
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

/// The latest requests, this one the last of them.
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
    // Not an attempt, or not yet.
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
