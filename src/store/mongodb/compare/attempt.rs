//! What a group of writes makes of a document, and the update that stores it.

use bson::{Bson, Document, RawDocument, doc};
use mongodb::raw_batch_cursor::RawBatch;

use super::{
    super::{
        document, pipeline, read, remembered,
        statement::{self, Given, MAX_DOCUMENT_BYTES, Statement, literal, or_fail, set},
    },
    Answer, Group, Mark, TRIES, Tried, unseen,
};
use crate::{
    record::{Millis, Revision, State, WriteMode, encoding::EncodedFeatures},
    store::{
        Change, Operation, Outcome, REMEMBERED_REQUESTS, Receipt, RequestId, StoreError, Write, WriteRules,
        apply::{self, Content, Remembered},
        mongodb::failure::Failure,
    },
};

/// The documents as they were read.
pub(super) struct Seen {
    pub(super) batches: Vec<RawBatch>,
    /// By L2's clock.
    pub(super) now: Millis,
}

/// What is known of a group after its document was read.
pub(super) enum Evaluated {
    /// All of it is answered.
    Settled(Vec<Answer>),
    /// The document cannot be read.
    Unreadable(Group, StoreError),
    /// An update to try.
    Attempt(Box<Attempt>),
}

/// What a group's writes do to the fields of a record.
enum Effect {
    Nothing,
    /// These features are set.
    Merge(EncodedFeatures),
    /// These features replace all.
    Replace(EncodedFeatures),
    Delete,
}

impl Effect {
    /// With one more write. `over_live`: to a live record.
    fn and(self, change: &Change, over_live: bool) -> Self {
        let Change::Upsert(record) = change else { return Self::Delete };
        let new = record.features.clone();
        match self {
            _ if record.mode == WriteMode::Replace || !over_live => Self::Replace(new),
            Self::Nothing | Self::Delete => Self::Merge(new),
            Self::Merge(before) => Self::Merge(new.over(&before)),
            Self::Replace(before) => Self::Replace(new.over(&before)),
        }
    }
}

/// One try of a group.
pub(super) struct Attempt {
    pub(super) group: Group,
    pub(super) sent_at: Option<bson::DateTime>,
    /// Whether the reply to its command showed that it is done.
    pub(super) is_done: bool,
    receipts: Vec<Receipt>,
    effect: Effect,
    /// The new document. None: there is no document, before and after.
    made: Option<apply::Document>,
    /// The fields of the document that must be unchanged.
    rev: Option<Bson>,
    requests: Option<Bson>,
    /// The receipt if it turns out to be too large.
    before: (Revision, bool),
    /// The requests that it adds.
    added: Vec<Bson>,
    mark: Option<Mark>,
    now: Millis,
}

/// Computes the results of groups. This takes long for large records.
pub(super) fn evaluate(groups: Vec<Group>, seen: &Seen, rules: &WriteRules) -> Vec<Evaluated> {
    let found = match read::by_key(&seen.batches) {
        Ok(found) => found,
        Err(failure) => {
            let error = failure.of_look(false);
            return groups.into_iter().map(|group| Evaluated::Settled(group.all(&error).collect())).collect();
        }
    };
    let of_group = |group: Group| {
        let document = found.get(&read::name(group.key())).copied();
        Attempt::evaluate(group, document, seen.now, rules)
    };
    groups.into_iter().map(of_group).collect()
}

impl Attempt {
    fn evaluate(mut group: Group, document: Option<&RawDocument>, now: Millis, rules: &WriteRules) -> Evaluated {
        if let Some(tried) =
            document.and_then(|document| group.tries.iter().position(|tried| tried.mark.is_in(document)))
        {
            return Evaluated::Settled(group.tries.swap_remove(tried).answers);
        }
        if let (Some(document), Some(since)) = (document, group.since)
            && pipeline::may_have_forgotten(document, since)
            && !group.writes.iter().any(|(_, write)| remembered::request(document, &write.request_id).is_some())
        {
            return Evaluated::Settled(group.all(&unseen()).collect());
        }
        let stored = match document.map(stored).transpose() {
            Ok(stored) => stored,
            Err(error) => return Evaluated::Unreadable(group, error),
        };
        let field = |name: &str| field(document?, name);
        let before = stored.as_ref().map_or((Revision::NONE, false), |stored| {
            (stored.revision(), matches!(stored.content, Content::Tombstone(_)))
        });
        let (rev, requests) = (field("rev"), field("requests"));
        let mut attempt = Self {
            group,
            sent_at: None,
            is_done: false,
            receipts: Vec::new(),
            effect: Effect::Nothing,
            made: stored,
            rev,
            requests,
            before,
            added: Vec::new(),
            mark: None,
            now,
        };
        for (index, write) in std::mem::take(&mut attempt.group.writes) {
            attempt.apply(&write, rules);
            attempt.group.writes.push((index, write));
        }
        Evaluated::Attempt(Box::new(attempt))
    }

    fn apply(&mut self, write: &Write, rules: &WriteRules) {
        let over_live = self.made.as_ref().is_some_and(|made| made.is_live(self.now));
        let refuse = |features: &EncodedFeatures, model_version: &str| {
            let (bytes, document) =
                (features.as_bytes().len(), statement::document_bytes(features) + model_version.len());
            let maximum = MAX_DOCUMENT_BYTES;
            (document > maximum).then_some(Outcome::DocumentTooLarge { bytes, document, maximum })
        };
        let (receipt, made) = apply::apply_within(self.made.as_ref(), write.clone(), self.now, rules, &refuse);
        self.receipts.push(receipt);
        let Some(made) = made else { return };
        self.made = Some(made);
        self.mark = Some(Mark(write.request_id.clone(), receipt.revision));
        self.added.push(entry(write, &receipt));
        if matches!(receipt.outcome, Outcome::Written | Outcome::Deleted) {
            let effect = std::mem::replace(&mut self.effect, Effect::Nothing);
            self.effect = effect.and(&write.change, over_live);
        }
    }

    /// The approximate size of its statement.
    pub(super) fn bytes(&self) -> usize {
        let given = self.given().map_or(0, |given| given.bytes());
        given + self.added.len().min(REMEMBERED_REQUESTS) * 512 + statement::STAGES_BYTES
    }

    fn given(&self) -> Option<Given<'_>> {
        match &self.effect {
            Effect::Nothing | Effect::Delete => None,
            Effect::Merge(features) => Some(Given::new(features, true)),
            Effect::Replace(features) => Some(Given::new(features, false)),
        }
    }

    /// The update that does all of it, if the document is unchanged.
    pub(super) fn statement(&self) -> Statement<'_> {
        let same = |name: &str, value: &Option<Bson>| {
            doc! { "$eq": [{ "$ifNull": [format!("${name}"), null] }, literal(value.clone().unwrap_or(Bson::Null))] }
        };
        let is_same = doc! { "$and": [same("rev", &self.rev), same("requests", &self.requests)] };
        let given = self.given();
        let mut fields = self.fields(given.as_ref());
        if !self.added.is_empty() {
            let earlier = self.requests.as_ref().and_then(Bson::as_array).map_or(&[][..], Vec::as_slice);
            let added = &self.added[self.added.len().saturating_sub(REMEMBERED_REQUESTS)..];
            let kept = &earlier[earlier.len().saturating_sub(REMEMBERED_REQUESTS - added.len())..];
            let done_now = |entry: &Bson| doc! { "$mergeObjects": [literal(entry.clone()), { "at": "$$NOW" }] };
            let added: Vec<Document> = added.iter().map(done_now).collect();
            fields.insert("requests", doc! { "$concatArrays": [literal(kept.to_vec()), added] });
        }
        // Somebody may have given the document such a field.
        let mut stages =
            vec![doc! { "$unset": "_attempt" }, set(doc! { "_attempt": { "same": is_same, "text": "changed" } })];
        if !fields.is_empty() {
            // Each field depends on it, so that MongoDB does not leave it out as unused.
            stages.push(set(doc! { "_attempt.same": or_fail("$_attempt.same", true, "$_attempt.text") }));
            let if_same = |(name, new): (String, Bson)| {
                let old = format!("${name}");
                (name, Bson::from(doc! { "$cond": ["$_attempt.same", new, old] }))
            };
            stages.push(set(fields.into_iter().map(if_same).collect()));
        }
        stages.push(doc! { "$unset": "_attempt" });
        let filter = doc! { "_id": document::id(self.group.key()) };
        Statement { filter, stages, given, upsert: self.made.is_some() && self.rev.is_none() }
    }

    /// The new fields of the record.
    fn fields(&self, given: Option<&Given<'_>>) -> Document {
        let Some(made) = &self.made else { return Document::new() };
        let date = |at: Millis| bson::DateTime::from_millis(at.0);
        let or_none = |at: Option<Millis>| at.map_or(Bson::from("$$REMOVE"), |at| date(at).into());
        let mut fields = doc! {
            "rev": made.revision().0,
            "write_time": date(self.now),
            "gc_at": or_none(made.collect_at),
        };
        match (&self.effect, &made.content) {
            (Effect::Nothing, _) => return Document::new(),
            (_, Content::Tombstone(_)) => {
                for name in ["features", "kinds", "model_version", "event_time", "expire_at"] {
                    fields.insert(name, "$$REMOVE");
                }
                fields.insert("deleted", true);
            }
            (effect, Content::Record(record)) => {
                let merged = doc! { "$mergeObjects": ["$features", "$_attempt.given.features"] };
                let (features, kinds) = match effect {
                    Effect::Merge(_) => (Bson::from(merged), pipeline::merged_kinds(true.into())),
                    _ => {
                        let kinds = given.map_or(Bson::from("$$REMOVE"), pipeline::given_kinds);
                        (Bson::from("$_attempt.given.features"), kinds)
                    }
                };
                fields.insert("features", features);
                fields.insert("kinds", kinds);
                fields.insert("model_version", literal(record.model_version().unwrap_or_default()));
                fields.insert("event_time", date(record.event_time()));
                fields.insert("expire_at", or_none(record.expire_at()));
                fields.insert("deleted", false);
            }
        }
        fields
    }

    /// Whether it adds a request to the document, and so changes it.
    pub(super) fn changes_something(&self) -> bool {
        self.mark.is_some()
    }

    /// Whether the document is still as it was. An attempt that changes nothing is done if nothing has
    /// changed.
    pub(super) fn is_as_it_was(&self, document: Option<&RawDocument>) -> bool {
        match document {
            None => self.rev.is_none(),
            Some(document) => {
                (field(document, "rev"), field(document, "requests")) == (self.rev.clone(), self.requests.clone())
            }
        }
    }

    fn answers(&self) -> Vec<Answer> {
        let state = self.made.as_ref().map_or(State::Absent, |made| made.content.state());
        let indices = self.group.writes.iter().map(|(index, _)| *index);
        indices.zip(&self.receipts).map(|(index, receipt)| (index, Ok((*receipt, state.clone())))).collect()
    }

    /// The answers, if it was done. Otherwise the document had changed.
    pub(super) fn into_answers(self) -> Result<Vec<Answer>, Group> {
        if self.is_done { Ok(self.answers()) } else { Err(self.group) }
    }

    /// For MongoDB's answer that the document would be too large, though its features are not: it
    /// has fields that are not ours, or a model version from before the limit.
    pub(super) fn into_too_large(self) -> Result<Answer, (Group, StoreError)> {
        let (Effect::Merge(features) | Effect::Replace(features)) = &self.effect else {
            return Err((self.group, StoreError::Internal("a document is too large, with whatever it holds".into())));
        };
        if self.group.writes.len() > 1 {
            return Err((self.group, StoreError::Internal("one of several writes is too large".into())));
        }
        let (bytes, document) = match &self.made {
            Some(apply::Document { content: Content::Record(record), .. }) => {
                let features = record.encoded_features();
                (features.as_bytes().len(), statement::document_bytes(&features))
            }
            _ => (features.as_bytes().len(), statement::document_bytes(features)),
        };
        let outcome = Outcome::DocumentTooLarge { bytes, document, maximum: MAX_DOCUMENT_BYTES };
        let (revision, tombstone) = self.before;
        Ok((self.group.writes[0].0, Ok((Receipt { outcome, revision, tombstone }, State::Absent))))
    }

    /// The group, if another try may help.
    pub(super) fn into_failed(mut self, failure: &Failure) -> Result<Group, Group> {
        if failure.may_be_done() {
            let answers = self.answers();
            self.group.since = self.group.since.or(self.sent_at);
            self.group.tries.extend(self.mark.map(|mark| Tried { mark, answers }));
        }
        self.group.failed += 1;
        if failure.worth_repeating && self.group.failed < TRIES { Ok(self.group) } else { Err(self.group) }
    }
}

impl Mark {
    fn is_in(&self, document: &RawDocument) -> bool {
        let entry = remembered::request(document, &self.0);
        entry.is_some_and(|entry| entry.get_i64("rev").is_ok_and(|rev| rev == self.1.0))
    }
}

fn field(document: &RawDocument, name: &str) -> Option<Bson> {
    Bson::try_from(document.get(name).ok()??).ok()
}

/// A document in the form of `apply`.
fn stored(document: &RawDocument) -> Result<apply::Document, StoreError> {
    document::requests_are_usable(document)?;
    let content = match document::state(document)? {
        State::Record(record) => Content::Record(record),
        State::Tombstone(revision) => Content::Tombstone(revision),
        State::Absent => return Err(StoreError::Internal("a document says that it is none".into())),
    };
    let entries = document.get_array("requests").into_iter().flatten();
    let known = |entry: &RawDocument| {
        let id = RequestId(entry.get_str("id").ok()?.into());
        Some(Remembered { id, operation: remembered::operation(entry), outcome: remembered::outcome(entry)? })
    };
    let requests = entries.filter_map(|entry| known(entry.ok()?.as_document()?)).collect();
    let collect_at = document.get_datetime("gc_at").ok().map(|at| Millis(at.timestamp_millis()));
    Ok(apply::Document { content, requests, collect_at })
}

/// A write as its document remembers it, apart from when it was done.
fn entry(write: &Write, receipt: &Receipt) -> Bson {
    let mut entry = doc! {
        "id": &*write.request_id.0,
        "rev": receipt.revision.0,
        "outcome": remembered::outcome_name(&receipt.outcome),
    };
    entry.extend(Operation::of(write).map(|Operation(sum)| ("of".to_owned(), i64::from(sum).into())));
    let (number, document) = remembered::numbers_of(&receipt.outcome);
    entry.extend(number.map(|number| ("number".to_owned(), number.into())));
    entry.extend(document.map(|number| ("document".to_owned(), number.into())));
    entry.into()
}
