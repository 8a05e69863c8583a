//! A write as an update pipeline: what `store::apply` does, done by the server in one atomic step.
//!
//! Conditions stand in the pipeline and never in the filter, which with an upsert would answer E11000. Every value of a
//! client is wrapped in `$literal`, as a string that starts with `$` would be read as a field's path. `_attempt` holds
//! what one stage works out for the next, and is gone in the end.

use std::time::Duration;

use bson::{Bson, Document, doc};

use super::{document, value};
use crate::{
    record::{Features, Lifetime, Millis, Record, Revision, WriteMode},
    store::{Change, Outcome, REMEMBERED_REQUESTS, Write, WriteRules},
};

/// One write, ready to be sent; sending it again changes nothing.
pub(super) struct Update {
    /// Which document.
    pub(super) filter: Document,
    /// What to do to it.
    pub(super) pipeline: Vec<Document>,
    /// What is answered where there is no document, which then stays so. None: the write makes one.
    pub(super) on_nothing: Option<Outcome>,
}

/// How much the clocks of the servers and of MongoDB's nodes may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// Translates a write. One that is sent again, as it `may_be_done` since the time that is given, changes nothing where the
/// document may have forgotten it: there is no telling then whether it is done, and doing it twice could undo a later write.
pub(super) fn update(write: &Write, rules: &WriteRules, may_be_done: Option<bson::DateTime>) -> Update {
    let given = match &write.change {
        Change::Upsert(record) => Some(Given::new(record)),
        Change::Delete => None,
    };
    let mut pipeline = vec![set(doc! { "_attempt": standing(write, may_be_done) })];
    if let Some(given) = given.as_ref().filter(|given| given.record.mode == WriteMode::Merge) {
        let base = doc! { "$cond": ["$_attempt.live", "$features", literal(doc! {})] };
        pipeline.push(set(doc! { "_attempt.features": { "$mergeObjects": [base, literal(given.features.clone())] } }));
        pipeline.push(set(doc! {
            "_attempt.count": { "$toLong": { "$size": { "$objectToArray": "$_attempt.features" } } },
            "_attempt.bytes": { "$toLong": { "$bsonSize": "$_attempt.features" } },
        }));
    }
    pipeline.push(set(doc! { "_attempt.outcome": outcome(write, given.as_ref(), rules) }));
    pipeline.push(set(doc! {
        "_attempt.changed": { "$in": ["$_attempt.outcome", ["written", "deleted"]] },
        "_attempt.next": { "$max": [
            { "$add": ["$_attempt.revision", 1_i64] },
            { "$multiply": [{ "$toLong": "$$NOW" }, 1000_i64] },
        ] },
    }));
    let content = match &given {
        Some(given) => record(given, rules),
        None => tombstone(rules),
    };
    let mut fields: Document = content
        .into_iter()
        .map(|(name, new)| {
            let old = format!("${name}");
            (name, Bson::from(doc! { "$cond": ["$_attempt.changed", new, old] }))
        })
        .collect();
    fields.insert("requests", requests(write, given.as_ref()));
    pipeline.push(set(fields));
    pipeline.push(doc! { "$unset": "_attempt" });

    Update {
        filter: doc! { "_id": document::id(&write.key) },
        pipeline,
        on_nothing: on_nothing(write, given.as_ref(), rules),
    }
}

/// A record to write, in BSON.
struct Given<'a> {
    record: &'a Record,
    features: Document,
    /// Every given name; 0 where the BSON type tells the kind.
    kinds: Document,
    count: usize,
    bytes: usize,
}

impl<'a> Given<'a> {
    fn new(record: &'a Record) -> Self {
        let (features, kinds) = to_documents(&record.features.decode());
        // Encoding fails for a NUL in a key only, and neither feature names nor the keys of natural structs hold one.
        let bytes = features.to_vec().map_or(usize::MAX, |encoded| encoded.len());
        Self { record, kinds, count: features.len(), bytes, features }
    }

    /// How many features, and how many bytes of BSON, the record would have.
    fn size(&self) -> (Bson, Bson) {
        match self.record.mode {
            WriteMode::Merge => (Bson::from("$_attempt.count"), Bson::from("$_attempt.bytes")),
            WriteMode::Replace => (Bson::from(to_i64(self.count)), Bson::from(to_i64(self.bytes))),
        }
    }
}

fn to_documents(features: &Features) -> (Document, Document) {
    let mut kinds = Document::new();
    let mut bson = Document::new();
    for (name, value) in features {
        let (value, kind) = value::to_bson(value);
        bson.insert(name.as_str(), value);
        kinds.insert(name.as_str(), kind.unwrap_or(0));
    }
    (bson, kinds)
}

/// What stands now: whether the request is a repeat, whether there is a live record, and the revision.
fn standing(write: &Write, may_be_done: Option<bson::DateTime>) -> Document {
    // Guards against what people may have done to a document: no write may fail for that.
    let of_requests = |field: &str| doc! { "$cond": [{ "$isArray": "$requests" }, field, []] };
    let ids = of_requests("$requests.id");
    let forgotten = may_be_done.map_or(Bson::from(false), |since| {
        let since = since.timestamp_millis().saturating_sub_unsigned(CLOCKS_DIFFER.as_millis() as u64);
        // Those that came after it push it out: while one from before it is still there, it would be there too.
        let oldest = doc! { "$ifNull": [{ "$arrayElemAt": [of_requests("$requests.at"), 0] }, "$$NOW"] };
        doc! { "$and": [
            { "$gte": [{ "$size": of_requests("$requests") }, REMEMBERED_REQUESTS as i32] },
            { "$gte": [oldest, bson::DateTime::from_millis(since)] },
        ] }
        .into()
    });
    doc! {
        "forgotten": forgotten,
        "repeat": { "$in": [literal(&*write.request_id.0), ids] },
        "live": { "$and": [
            { "$isNumber": "$rev" },
            { "$ne": ["$deleted", true] },
            { "$eq": [{ "$type": "$features" }, "object"] },
            { "$or": [{ "$lte": ["$expire_at", null] }, { "$gt": ["$expire_at", "$$NOW"] }] },
        ] },
        "revision": { "$convert": { "input": "$rev", "to": "long", "onError": 0_i64, "onNull": 0_i64 } },
    }
}

/// The revision of the live record; 0: there is none.
fn live_revision() -> Document {
    doc! { "$cond": ["$_attempt.live", "$_attempt.revision", 0_i64] }
}

/// The name of the outcome: the first check that holds decides.
fn outcome(write: &Write, given: Option<&Given<'_>>, rules: &WriteRules) -> Document {
    let case = |case: Document, then: &str| doc! { "case": case, "then": then };
    let mut branches = vec![
        doc! { "case": "$_attempt.repeat", "then": "repeat" },
        doc! { "case": "$_attempt.forgotten", "then": "forgotten" },
    ];
    if let Some(wanted) = write.if_revision {
        branches.push(case(doc! { "$ne": [wanted.0, live_revision()] }, "revision_mismatch"));
    }
    let Some(given) = given else {
        branches.push(doc! { "case": "$_attempt.live", "then": "deleted" });
        return doc! { "$switch": { "branches": branches, "default": "not_found" } };
    };
    if let Some(event_time) = given.record.event_time {
        let older = doc! { "$and": ["$_attempt.live", { "$lt": [date(event_time), "$event_time"] }] };
        branches.push(case(older, "skipped_stale"));
    }
    let (count, bytes) = given.size();
    branches.push(case(doc! { "$gt": [count, to_i64(rules.max_features)] }, "too_many_features"));
    branches.push(case(doc! { "$gt": [bytes, to_i64(rules.max_record_bytes)] }, "record_too_large"));
    doc! { "$switch": { "branches": branches, "default": "written" } }
}

/// The fields of a written record.
fn record(given: &Given<'_>, rules: &WriteRules) -> Document {
    let record = given.record;
    let merge = record.mode == WriteMode::Merge;
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
    let model_version = match record.model_version.as_str() {
        "" => or_kept("$model_version", Bson::from("")),
        given => literal(given).into(),
    };
    doc! {
        "features": if merge { Bson::from("$_attempt.features") } else { literal(given.features.clone()).into() },
        "kinds": kinds(given),
        "model_version": model_version,
        "rev": "$_attempt.next",
        "event_time": event_time,
        "write_time": "$$NOW",
        "expire_at": expire_at.clone(),
        "deleted": false,
        "gc_at": { "$cond": [{ "$lte": [expire_at.clone(), null] }, "$$REMOVE", plus(expire_at, rules.tombstone_ttl)] },
    }
}

fn kinds(given: &Given<'_>) -> Bson {
    if given.record.mode == WriteMode::Replace {
        let kinds: Document = given
            .kinds
            .iter()
            .filter(|(_, kind)| kind.as_i32() != Some(0))
            .map(|(n, k)| (n.clone(), k.clone()))
            .collect();
        return if kinds.is_empty() { Bson::from("$$REMOVE") } else { literal(kinds).into() };
    }
    // The given names' kinds replace the stored ones; a 0 only takes the stored one away.
    let usable = doc! { "$and": ["$_attempt.live", { "$eq": [{ "$type": "$kinds" }, "object"] }] };
    let stored = doc! { "$cond": [usable, "$kinds", literal(doc! {})] };
    let merged = doc! { "$mergeObjects": [stored, literal(given.kinds.clone())] };
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
        "gc_at": plus(doc! { "$max": ["$$NOW", "$expire_at"] }.into(), rules.tombstone_ttl),
    }
}

/// The latest requests, this one the last of them.
fn requests(write: &Write, given: Option<&Given<'_>>) -> Document {
    let when = |outcome: &str, then: Bson| doc! { "case": { "$eq": ["$_attempt.outcome", outcome] }, "then": then };
    let mut branches = vec![when("revision_mismatch", live_revision().into())];
    if let Some((count, bytes)) = given.map(Given::size) {
        branches.push(when("too_many_features", count));
        branches.push(when("record_too_large", bytes));
    }
    let entry = doc! {
        "id": literal(&*write.request_id.0),
        "rev": { "$cond": ["$_attempt.changed", "$_attempt.next", "$_attempt.revision"] },
        "outcome": "$_attempt.outcome",
        "number": { "$switch": { "branches": branches, "default": "$$REMOVE" } },
        "at": "$$NOW",
    };
    let earlier = doc! { "$cond": [{ "$isArray": "$requests" }, "$requests", []] };
    let latest = doc! { "$slice": [{ "$concatArrays": [earlier, [entry]] }, -(REMEMBERED_REQUESTS as i32)] };
    doc! { "$cond": [{ "$or": ["$_attempt.repeat", "$_attempt.forgotten"] }, "$requests", latest] }
}

fn on_nothing(write: &Write, given: Option<&Given<'_>>, rules: &WriteRules) -> Option<Outcome> {
    if write.if_revision.is_some_and(|wanted| wanted != Revision::NONE) {
        return Some(Outcome::RevisionMismatch { stored: Revision::NONE });
    }
    match given {
        None => Some(Outcome::NotFound),
        Some(given) if given.count > rules.max_features => Some(Outcome::TooManyFeatures { count: given.count }),
        Some(given) if given.bytes > rules.max_record_bytes => Some(Outcome::RecordTooLarge { bytes: given.bytes }),
        Some(_) => None,
    }
}

fn set(fields: Document) -> Document {
    doc! { "$set": fields }
}

fn literal(value: impl Into<Bson>) -> Document {
    doc! { "$literal": value.into() }
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
