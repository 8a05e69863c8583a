//! What a write does to what is stored, as a pure function: the embedded store runs it in its writer, and the MongoDB
//! store's update pipeline is tested against it.

use super::{Change, Outcome, REMEMBERED_REQUESTS, Receipt, RequestId, Write, WriteRules, collect_at};
use crate::record::{Lifetime, Millis, Record, Revision, Snapshot, WriteMode, encoding};

/// All that is stored for a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The record or its tombstone.
    pub content: Content,
    /// The latest writes, oldest first.
    pub requests: Vec<Remembered>,
    /// When it may be collected; None: never.
    pub collect_at: Option<Millis>,
}

/// The record or its tombstone.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A record, live or expired.
    Record(Snapshot),
    /// It was deleted at this revision.
    Tombstone(Revision),
}

/// A write that was attempted on this document.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// The write's.
    pub id: RequestId,
    /// What became of it.
    pub outcome: Outcome,
}

impl Document {
    /// The revision of what stands here.
    pub fn revision(&self) -> Revision {
        match &self.content {
            Content::Record(snapshot) => snapshot.revision,
            Content::Tombstone(revision) => *revision,
        }
    }

    /// What is answered about a write, given what became of it.
    fn receipt(&self, outcome: Outcome) -> Receipt {
        let tombstone = matches!(self.content, Content::Tombstone(_));
        Receipt { outcome, revision: self.revision(), tombstone }
    }

    fn live(&self, now: Millis) -> Option<&Snapshot> {
        match &self.content {
            Content::Record(snapshot) if snapshot.expire_at.is_none_or(|at| at > now) => Some(snapshot),
            _ => None,
        }
    }
}

/// Does `write` to what is stored, at L2's time `now`. Answers the receipt, and the document to store if anything
/// changed (a remembered attempt is a change; an attempt on nothing leaves nothing).
pub fn apply(stored: Option<&Document>, write: Write, now: Millis, rules: &WriteRules) -> (Receipt, Option<Document>) {
    let Write { key: _, request_id, if_revision, change } = write;
    let remembered = |document: &&Document| document.requests.iter().find(|r| r.id == request_id).cloned();
    if let Some((document, first)) = stored.and_then(|document| Some((document, remembered(&document)?))) {
        return (document.receipt(first.outcome), None);
    }
    let revision = stored.map_or(Revision::NONE, Document::revision);
    let live = stored.and_then(|document| document.live(now));
    let (outcome, content) = attempt(live, revision.next(now), if_revision, change, now, rules);

    let document = match (content, stored) {
        (Some(content), stored) => Some(Document {
            collect_at: match &content {
                Content::Record(snapshot) => collect_at(snapshot.expire_at, None, rules),
                Content::Tombstone(_) => collect_at(live.and_then(|live| live.expire_at), Some(now), rules),
            },
            content,
            requests: remember(stored, request_id, outcome),
        }),
        (None, Some(stored)) => {
            Some(Document { requests: remember(Some(stored), request_id, outcome), ..stored.clone() })
        }
        (None, None) => None,
    };
    let nothing = Receipt { outcome, revision: Revision::NONE, tombstone: false };
    (document.as_ref().map_or(nothing, |document| document.receipt(outcome)), document)
}

fn attempt(
    live: Option<&Snapshot>,
    next: Revision,
    if_revision: Option<Revision>,
    change: Change,
    now: Millis,
    rules: &WriteRules,
) -> (Outcome, Option<Content>) {
    let stored = live.map_or(Revision::NONE, |live| live.revision);
    if if_revision.is_some_and(|wanted| wanted != stored) {
        return (Outcome::RevisionMismatch { stored }, None);
    }
    let record = match change {
        Change::Delete if live.is_some() => return (Outcome::Deleted, Some(Content::Tombstone(next))),
        Change::Delete => return (Outcome::NotFound, None),
        Change::Upsert(record) => record,
    };
    if let (Some(event_time), Some(live)) = (record.event_time, live)
        && event_time < live.event_time
    {
        return (Outcome::SkippedStale, None);
    }
    let merged = merge(live, record, next, now, rules);
    let (count, bytes) = (merged.features.len(), encoding::features_len(&merged.features));
    if count > rules.max_features {
        return (Outcome::TooManyFeatures { count }, None);
    }
    if bytes > rules.max_record_bytes {
        return (Outcome::RecordTooLarge { bytes }, None);
    }
    (Outcome::Written, Some(Content::Record(merged)))
}

fn merge(live: Option<&Snapshot>, record: Record, revision: Revision, now: Millis, rules: &WriteRules) -> Snapshot {
    let base = live.filter(|_| record.mode == WriteMode::Merge);
    let mut features = base.map(|base| base.features.clone()).unwrap_or_default();
    if features.is_empty() {
        features = record.features;
    } else {
        features.extend(record.features);
    }
    let given_version = Some(record.model_version).filter(|version| !version.is_empty());
    Snapshot {
        features,
        model_version: given_version.or_else(|| base.map(|base| base.model_version.clone())).unwrap_or_default(),
        revision,
        event_time: record.event_time.unwrap_or_else(|| live.map_or(now, |live| live.event_time.max(now))),
        write_time: now,
        expire_at: match (record.lifetime, base) {
            (Some(Lifetime::Forever), _) => None,
            (Some(Lifetime::Ttl(ttl)), _) => Some(now.after(ttl)),
            (None, Some(base)) => base.expire_at,
            (None, None) => Some(now.after(rules.default_ttl)),
        },
    }
}

fn remember(stored: Option<&Document>, id: RequestId, outcome: Outcome) -> Vec<Remembered> {
    let earlier = stored.map_or(&[][..], |document| &document.requests);
    let keep = earlier.len().min(REMEMBERED_REQUESTS - 1);
    let mut requests = earlier[earlier.len() - keep..].to_vec();
    requests.push(Remembered { id, outcome });
    requests
}
