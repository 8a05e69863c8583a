//! One group of writes: each evaluated in its order, on top of those before it, all committed at once.

use std::collections::HashMap;

use super::{
    engine::{Changes, Engine, expiry_key, record_key},
    envelope::Stored,
};
use crate::{
    record::{Clock, Millis, RecordKey, Revision, Snapshot, State, WriteMode},
    store::{
        Change, Outcome, Receipt, StoreError, Write, WriteRules,
        apply::{Content, Document, apply},
    },
};

/// The group's own view of what it touched.
pub(super) struct Group<'a> {
    engine: &'a Engine,
    rules: &'a WriteRules,
    clock: &'a Clock,
    touched: HashMap<RecordKey, Touched>,
    /// The highest revision that was ever given.
    highest: Revision,
}

struct Touched {
    key: Vec<u8>,
    stored: Option<Stored>,
    /// As the expiry table has it.
    collect_at_before: Option<Millis>,
    changed: bool,
    /// Why what is stored cannot be read.
    damage: Option<StoreError>,
}

impl<'a> Group<'a> {
    pub(super) fn new(engine: &'a Engine, rules: &'a WriteRules, clock: &'a Clock, highest: Revision) -> Self {
        Self { engine, rules, clock, touched: HashMap::new(), highest }
    }

    /// The highest revision that was given, here or before.
    pub(super) fn highest(&self) -> Revision {
        self.highest
    }

    /// Does one write within the group. What it answers holds once the group is committed.
    pub(super) fn write(&mut self, write: Write) -> Result<(Receipt, State), StoreError> {
        let with_features = matches!(&write.change, Change::Upsert(record) if record.mode == WriteMode::Merge);
        let (clock, rules, highest) = (self.clock, self.rules, self.highest);
        let touched = self.touched(&write.key)?;
        if let Some(damage) = &touched.damage {
            let (stored, receipt) = over_damage(&write, clock.now(), rules, highest).ok_or_else(|| damage.clone())?;
            tracing::warn!(view = %write.key.view.as_str(), outcome = ?receipt.outcome, %damage, "a write takes the place of a damaged record");
            let state = stored.content.state();
            (touched.stored, touched.changed, touched.damage) = (Some(stored), true, None);
            self.highest = highest.max(receipt.revision);
            return Ok((receipt, state));
        }
        let document = touched.stored.as_ref().map(|stored| stored.document(with_features)).transpose();
        let document = document.map_err(|e| StoreError::Corrupt(e.to_string().into()))?;
        let (receipt, document) = apply(document.as_ref(), write, clock.now(), rules);
        if let Some(document) = document {
            touched.stored = Some(Stored::after(document, receipt.outcome, touched.stored.as_ref()));
            touched.changed = true;
        }
        let state = touched.stored.as_ref().map_or(State::Absent, |stored| stored.content.state());
        self.highest = highest.max(receipt.revision);
        Ok((receipt, state))
    }

    fn touched(&mut self, key: &RecordKey) -> Result<&mut Touched, StoreError> {
        if !self.touched.contains_key(key) {
            let bytes = record_key(key);
            let found = match self.engine.get(&bytes) {
                Ok(Some(envelope)) => {
                    Stored::decode(&bytes, envelope).map(Some).map_err(|e| StoreError::Corrupt(e.to_string().into()))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let (stored, damage) = match found {
                Ok(stored) => (stored, None),
                Err(damage @ StoreError::Corrupt(_)) => (None, Some(damage)),
                Err(error) => return Err(error),
            };
            let collect_at_before = stored.as_ref().and_then(|stored| stored.collect_at);
            let touched = Touched { key: bytes, stored, collect_at_before, changed: false, damage };
            self.touched.insert(key.clone(), touched);
        }
        Ok(self.touched.get_mut(key).expect("just looked at"))
    }

    /// Whether there is anything to commit.
    pub(super) fn is_changed(&self) -> bool {
        self.touched.values().any(|touched| touched.changed)
    }

    /// Puts all that changed. Answers the earliest new expiry key, as the sweeper must not have passed it.
    pub(super) fn put_into(self, changes: &mut Changes) -> Option<Vec<u8>> {
        let mut earliest: Option<Vec<u8>> = None;
        for touched in self.touched.into_values().filter(|touched| touched.changed) {
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
            self.engine.put(changes, &key, stored.encode(&key));
        }
        earliest
    }
}

/// What a write leaves in the place of a record that cannot be read; None: it depends on that record, or is refused.
/// Only what looks at nothing stored is allowed, and its revision is above all that were ever given.
fn over_damage(write: &Write, now: Millis, rules: &WriteRules, highest: Revision) -> Option<(Stored, Receipt)> {
    let unconditional = match &write.change {
        Change::Upsert(record) => record.mode == WriteMode::Replace,
        Change::Delete => true,
    };
    if !unconditional || write.if_revision.is_some() {
        return None;
    }
    // Something stood there; all that is known of it is that it is older than this write.
    let unknown = Snapshot {
        features: Default::default(),
        model_version: String::new(),
        revision: highest,
        event_time: Millis(i64::MIN),
        write_time: Millis::default(),
        expire_at: None,
    };
    let unknown = Document { content: Content::Record(unknown), requests: Vec::new(), collect_at: None };
    let (receipt, document) = apply(Some(&unknown), write.clone(), now, rules);
    let done = matches!(receipt.outcome, Outcome::Written | Outcome::Deleted);
    document.filter(|_| done).map(|document| (Stored::after(document, receipt.outcome, None), receipt))
}
