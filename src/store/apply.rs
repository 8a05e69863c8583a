//! What a write does to a stored document, as a pure function. The writer of the embedded store
//! calls it, and tests compare the update pipeline of MongoDB with it.

use super::{
    Change, Operation, Outcome, REMEMBERED_REQUESTS, Receipt, RequestId, Write, WriteRules, collect_at, repeated,
};
use crate::record::{
    Lifetime, Millis, Revision, State, WriteMode,
    encoding::{EncodedFeatures, Encoder, Head, StoredRecord},
};

/// All that is stored for a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The record or its tombstone.
    pub content: Content,
    /// The latest writes, oldest first.
    pub requests: Vec<Remembered>,
    /// When it may be removed. None: never.
    pub collect_at: Option<Millis>,
}

/// The record or its tombstone.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A record, live or expired. Its features stay encoded, because no write reads their values.
    Record(StoredRecord),
    /// It was deleted at this revision.
    Tombstone(Revision),
}

/// An attempted write of this document.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// The id of the write.
    pub id: RequestId,
    /// What it was to do. None: it need not be known.
    pub operation: Option<Operation>,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Content {
    /// The state that a read returns.
    pub fn state(&self) -> State {
        match self {
            Self::Record(record) => State::Record(record.clone()),
            Self::Tombstone(revision) => State::Tombstone(*revision),
        }
    }
}

impl Document {
    /// The revision of the record or tombstone.
    pub fn revision(&self) -> Revision {
        match &self.content {
            Content::Record(record) => record.revision(),
            Content::Tombstone(revision) => *revision,
        }
    }

    /// The receipt of a write with this outcome.
    fn receipt(&self, outcome: Outcome) -> Receipt {
        let tombstone = matches!(self.content, Content::Tombstone(_));
        Receipt { outcome, revision: self.revision(), tombstone }
    }

    /// Whether this is a record that has not expired.
    pub fn is_live(&self, now: Millis) -> bool {
        self.live(now).is_some()
    }

    fn live(&self, now: Millis) -> Option<&StoredRecord> {
        match &self.content {
            Content::Record(record) if !record.is_expired(now) => Some(record),
            _ => None,
        }
    }
}

/// Applies `write` to the stored document at L2's time `now`. Returns the receipt, and the document
/// to store if anything changed (a remembered attempt is a change; an attempt without a document is
/// not remembered). A merge does not decode the stored features, so the caller must know that bytes
/// from a disk can be decoded.
pub fn apply(stored: Option<&Document>, write: Write, now: Millis, rules: &WriteRules) -> (Receipt, Option<Document>) {
    apply_within(stored, write, now, rules, &|_, _| None)
}

/// As `apply`, for a store that cannot hold every allowed record: `refuse` decides by features and
/// model version.
pub fn apply_within(
    stored: Option<&Document>,
    write: Write,
    now: Millis,
    rules: &WriteRules,
    refuse: &dyn Fn(&EncodedFeatures, &str) -> Option<Outcome>,
) -> (Receipt, Option<Document>) {
    let remembered = |document: &&Document| document.requests.iter().find(|r| r.id == write.request_id).cloned();
    if let Some((document, first)) = stored.and_then(|document| Some((document, remembered(&document)?))) {
        return (document.receipt(repeated(&write, first.operation, first.outcome)), None);
    }
    let operation = Operation::of(&write);
    let Write { key: _, request_id, if_revision, change } = write;
    let revision = stored.map_or(Revision::NONE, Document::revision);
    let live = stored.and_then(|document| document.live(now));
    let (outcome, content) = attempt(live, revision.next(now), if_revision, change, now, rules, refuse);

    let document = match (content, stored) {
        (Some(content), stored) => Some(Document {
            collect_at: match &content {
                Content::Record(record) => collect_at(record.expire_at(), None, rules),
                Content::Tombstone(_) => collect_at(live.and_then(StoredRecord::expire_at), Some(now), rules),
            },
            content,
            requests: remember(stored, Remembered { id: request_id, operation, outcome }),
        }),
        (None, Some(stored)) => {
            let this = Remembered { id: request_id, operation, outcome };
            Some(Document { requests: remember(Some(stored), this), ..stored.clone() })
        }
        (None, None) => None,
    };
    let nothing = Receipt { outcome, revision: Revision::NONE, tombstone: false };
    (document.as_ref().map_or(nothing, |document| document.receipt(outcome)), document)
}

fn attempt(
    live: Option<&StoredRecord>,
    next: Revision,
    if_revision: Option<Revision>,
    change: Change,
    now: Millis,
    rules: &WriteRules,
    refuse: &dyn Fn(&EncodedFeatures, &str) -> Option<Outcome>,
) -> (Outcome, Option<Content>) {
    let stored = live.map_or(Revision::NONE, StoredRecord::revision);
    if if_revision.is_some_and(|wanted| wanted != stored) {
        return (Outcome::RevisionMismatch { stored }, None);
    }
    let record = match change {
        Change::Delete if live.is_some() => return (Outcome::Deleted, Some(Content::Tombstone(next))),
        Change::Delete => return (Outcome::NotFound, None),
        Change::Upsert(record) => record,
    };
    if let (Some(event_time), Some(live)) = (record.event_time, live)
        && event_time < live.event_time()
    {
        return (Outcome::SkippedStale, None);
    }
    let base = live.filter(|_| record.mode == WriteMode::Merge);
    let features = match base {
        Some(base) => record.features.over(&base.encoded_features()),
        None => record.features,
    };
    let (count, bytes) = (features.count(), features.as_bytes().len());
    if count > rules.max_features {
        return (Outcome::TooManyFeatures { count }, None);
    }
    if bytes > rules.max_record_bytes {
        return (Outcome::RecordTooLarge { bytes }, None);
    }
    let model_version = match &*record.model_version {
        "" => base.and_then(|base| base.model_version().ok()).unwrap_or_default(),
        given => given,
    };
    if let Some(refused) = refuse(&features, model_version) {
        return (refused, None);
    }
    let mut encoder = Encoder::with_capacity(bytes + model_version.len());
    encoder.put_all(&features);
    let merged = encoder.finish(Head {
        model_version,
        revision: next,
        event_time: record.event_time.unwrap_or_else(|| live.map_or(now, |live| live.event_time().max(now))),
        write_time: now,
        expire_at: match (record.lifetime, base) {
            (Some(Lifetime::Forever), _) => None,
            (Some(Lifetime::Ttl(ttl)), _) => Some(now.after(ttl)),
            (None, Some(base)) => base.expire_at(),
            (None, None) => Some(now.after(rules.default_ttl)),
        },
    });
    (Outcome::Written, Some(Content::Record(merged)))
}

fn remember(stored: Option<&Document>, this: Remembered) -> Vec<Remembered> {
    let earlier = stored.map_or(&[][..], |document| &document.requests);
    let keep = earlier.len().min(REMEMBERED_REQUESTS - 1);
    let mut requests = earlier[earlier.len() - keep..].to_vec();
    requests.push(this);
    requests
}
