//! One group of writes: each evaluated in its order, on top of those before it, all committed at once.

use std::collections::HashMap;

use super::{
    engine::{Changes, Engine, expiry_key, record_key},
    envelope::Stored,
};
use crate::{
    record::{Clock, Millis, RecordKey, State, WriteMode},
    store::{Change, Receipt, StoreError, Write, WriteRules, apply::apply},
};

/// The group's own view of what it touched.
pub(super) struct Group<'a> {
    engine: &'a Engine,
    rules: &'a WriteRules,
    clock: &'a Clock,
    touched: HashMap<RecordKey, Touched>,
}

struct Touched {
    key: Vec<u8>,
    stored: Option<Stored>,
    /// As the expiry table has it.
    collect_at_before: Option<Millis>,
    changed: bool,
}

impl<'a> Group<'a> {
    pub(super) fn new(engine: &'a Engine, rules: &'a WriteRules, clock: &'a Clock) -> Self {
        Self { engine, rules, clock, touched: HashMap::new() }
    }

    /// Does one write within the group. What it answers holds once the group is committed.
    pub(super) fn write(&mut self, write: Write) -> Result<(Receipt, State), StoreError> {
        let with_features = matches!(&write.change, Change::Upsert(record) if record.mode == WriteMode::Merge);
        let (clock, rules) = (self.clock, self.rules);
        let touched = self.touched(&write.key)?;
        let document = touched.stored.as_ref().map(|stored| stored.document(with_features)).transpose();
        let document = document.map_err(|e| StoreError::Corrupt(e.to_string().into()))?;
        let (receipt, document) = apply(document.as_ref(), &write, clock.now(), rules);
        if let Some(document) = document {
            touched.stored = Some(Stored::after(document, receipt.outcome, touched.stored.as_ref()));
            touched.changed = true;
        }
        let state = touched.stored.as_ref().map_or(State::Absent, |stored| stored.content.state());
        Ok((receipt, state))
    }

    fn touched(&mut self, key: &RecordKey) -> Result<&mut Touched, StoreError> {
        if !self.touched.contains_key(key) {
            let bytes = record_key(key);
            let stored = match self.engine.get(&bytes)? {
                Some(envelope) => {
                    Some(Stored::decode(&bytes, envelope).map_err(|e| StoreError::Corrupt(e.to_string().into()))?)
                }
                None => None,
            };
            let collect_at_before = stored.as_ref().and_then(|stored| stored.collect_at);
            self.touched.insert(key.clone(), Touched { key: bytes, stored, collect_at_before, changed: false });
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
