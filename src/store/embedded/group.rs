//! One group of writes. Each is applied on top of those before it, and all are committed at once.

use std::collections::HashMap;

use super::{
    engine::{Changes, Engine, expiry_key, record_key},
    envelope,
};
use crate::{
    record::{Clock, Millis, RecordKey, Revision, Snapshot, WriteMode, encoding::StoredRecord},
    store::{
        Change, Outcome, Receipt, StoreError, Write, WriteRules,
        apply::{Content, Document, apply},
    },
};

/// The documents that the group has touched.
pub(super) struct Group<'a> {
    engine: &'a Engine,
    rules: &'a WriteRules,
    clock: &'a Clock,
    /// In the order of first use: a load is sorted, and the engine takes sorted keys faster.
    touched: Vec<Touched>,
    places: HashMap<RecordKey, usize, ahash::RandomState>,
    /// The highest revision that was ever given.
    highest: Revision,
    /// The size of the records that it has read and made, in bytes.
    bytes: usize,
}

struct Touched {
    key: Vec<u8>,
    stored: Option<Document>,
    /// The time in the expiry table.
    collect_at_before: Option<Millis>,
    changed: bool,
    /// Why the stored document cannot be read.
    damage: Option<StoreError>,
}

impl<'a> Group<'a> {
    pub(super) fn new(engine: &'a Engine, rules: &'a WriteRules, clock: &'a Clock, highest: Revision) -> Self {
        Self { engine, rules, clock, touched: Vec::new(), places: HashMap::default(), highest, bytes: 0 }
    }

    /// The highest revision that was ever given, in this group or before.
    pub(super) fn highest(&self) -> Revision {
        self.highest
    }

    /// The size of the records that it has read and made, in bytes; they are held until the commit.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Applies one write, and returns the document afterwards. It is durable when the group is
    /// committed.
    pub(super) fn write(&mut self, write: Write) -> Result<(Receipt, Option<&Document>), StoreError> {
        let is_merge = matches!(&write.change, Change::Upsert(record) if record.mode == WriteMode::Merge);
        let (clock, rules, highest) = (self.clock, self.rules, self.highest);
        let place = self.touch(&write.key)?;
        let touched = &mut self.touched[place];
        if let Some(damage) = &touched.damage {
            let (stored, receipt) = over_damage(&write, clock.now(), rules, highest).ok_or_else(|| damage.clone())?;
            tracing::warn!(outcome = ?receipt.outcome, %damage, "a write replaces a record that cannot be read");
            self.bytes += size_of(&stored);
            (touched.stored, touched.changed, touched.damage) = (Some(stored), true, None);
            return Ok(self.answer(place, receipt));
        }
        if let (true, Some(Document { content: Content::Record(record), .. })) = (is_merge, &touched.stored) {
            // A merge copies the stored features, so they must be readable.
            record.decode().map_err(|e| StoreError::Corrupt(e.to_string().into()).of_record(&write.key))?;
        }
        let (receipt, document) = apply(touched.stored.as_ref(), write, clock.now(), rules);
        if let Some(document) = document {
            self.bytes += size_of(&document);
            touched.stored = Some(document);
            touched.changed = true;
        }
        Ok(self.answer(place, receipt))
    }

    fn answer(&mut self, place: usize, receipt: Receipt) -> (Receipt, Option<&Document>) {
        self.highest = self.highest.max(receipt.revision);
        (receipt, self.touched[place].stored.as_ref())
    }

    /// The index of a record among those that were touched.
    fn touch(&mut self, key: &RecordKey) -> Result<usize, StoreError> {
        if let Some(place) = self.places.get(key) {
            return Ok(*place);
        }
        let bytes = record_key(key);
        let found = match self.engine.get(&bytes) {
            Ok(Some(envelope)) => {
                envelope::decode(&bytes, envelope).map(Some).map_err(|e| StoreError::Corrupt(e.to_string().into()))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let (stored, damage) = match found {
            Ok(stored) => (stored, None),
            Err(damage @ StoreError::Corrupt(_)) => (None, Some(damage.of_record(key))),
            Err(error) => return Err(error),
        };
        self.bytes += stored.as_ref().map_or(0, size_of);
        let collect_at_before = stored.as_ref().and_then(|stored| stored.collect_at);
        let place = self.touched.len();
        self.touched.push(Touched { key: bytes, stored, collect_at_before, changed: false, damage });
        self.places.insert(key.clone(), place);
        Ok(place)
    }

    /// Whether there is anything to commit.
    pub(super) fn is_changed(&self) -> bool {
        self.touched.iter().any(|touched| touched.changed)
    }

    /// Puts all changes. Returns the earliest new expiry key, so that the next sweep begins there.
    pub(super) fn put_into(self, changes: &mut Changes) -> Option<Vec<u8>> {
        let mut earliest: Option<Vec<u8>> = None;
        for touched in self.touched.into_iter().filter(|touched| touched.changed) {
            let Touched { key, stored: Some(stored), collect_at_before, .. } = touched else { continue };
            if stored.collect_at != collect_at_before {
                if let Some(at) = collect_at_before {
                    self.engine.remove_expiry(changes, expiry_key(at, &key));
                }
                if let Some(at) = stored.collect_at {
                    let expiry_key = expiry_key(at, &key);
                    if earliest.as_ref().is_none_or(|earliest| expiry_key < *earliest) {
                        earliest = Some(expiry_key.clone());
                    }
                    self.engine.put_expiry(changes, expiry_key);
                }
            }
            self.engine.put(changes, &key, envelope::encode(&stored, &key));
        }
        earliest
    }
}

/// The size of the record, which is most of a document.
fn size_of(document: &Document) -> usize {
    match &document.content {
        Content::Record(record) => record.as_bytes().len(),
        Content::Tombstone(_) => 0,
    }
}

/// What a write leaves if the stored record cannot be read. None: the write depends on that record,
/// or is rejected. Only a write that needs nothing stored is allowed. Its revision is above all
/// that were ever given.
fn over_damage(write: &Write, now: Millis, rules: &WriteRules, highest: Revision) -> Option<(Document, Receipt)> {
    let unconditional = match &write.change {
        // An event time would be compared with the stored one.
        Change::Upsert(record) => record.mode == WriteMode::Replace && record.event_time.is_none(),
        Change::Delete => true,
    };
    if !unconditional || write.if_revision.is_some() {
        return None;
    }
    // Of the unreadable record it is known only that it is older than this write.
    let unknown = Snapshot {
        features: Default::default(),
        model_version: String::new(),
        revision: highest,
        event_time: Millis(i64::MIN),
        write_time: Millis::default(),
        expire_at: None,
    };
    let unknown =
        Document { content: Content::Record(StoredRecord::encode(&unknown)), requests: Vec::new(), collect_at: None };
    let (receipt, document) = apply(Some(&unknown), write.clone(), now, rules);
    let done = matches!(receipt.outcome, Outcome::Written | Outcome::Deleted);
    document.filter(|_| done).map(|document| (document, receipt))
}
