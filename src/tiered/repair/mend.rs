//! Applying changes to L1: SETTLE for what servers wrote, DEL for what others did, and a new epoch
//! if the changes are not known one by one. Changes count as applied only if L1 confirmed all of
//! them, in an epoch that is still the same.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::atomic::Ordering::Relaxed,
};

use tokio::time::Instant;

use super::super::{Tiered, watch::PATIENCE};
use crate::{
    cache::{CacheKey, Effect, Settle},
    record::{RecordKey, Revision},
    store::changes::{Change, Event},
};

/// What to do with the entry of a record after several changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mend {
    /// Remove it if it is older.
    Older(Revision),
    /// Remove it.
    Whole,
}

impl Tiered {
    /// Applies changes to L1. False: L1 did not confirm all of them, and all must be applied again.
    pub(super) async fn mend(&self, changes: &[Change]) -> bool {
        let everything = changes.iter().any(|change| change.event == Event::Everything);
        if everything && self.cache.info().shared {
            self.start_cold("the collection of the records was dropped or replaced").await
        } else if everything {
            tracing::warn!("the collection of the records was dropped or replaced: L1 in this process starts cold");
            self.cache.clear();
            self.repairs.epochs.fetch_add(1, Relaxed);
            true
        } else {
            self.mend_each(changes).await
        }
    }

    /// The same, except for changes that concern all records: one new epoch is enough for those.
    pub(super) async fn mend_each(&self, changes: &[Change]) -> bool {
        // A server that fills L1 in a later epoch has read L2 after these changes, because the
        // pause after a change is longer than a view lives. And only the named L1 counts.
        let Some((epoch, life)) = self.trust.ours() else { return false };
        let (whole, older): (Vec<_>, Vec<_>) =
            coalesced(changes).into_iter().partition(|(_, mend)| *mend == Mend::Whole);
        let edited: Vec<RecordKey> = whole.into_iter().map(|(key, _)| key.clone()).collect();
        let settles: Vec<Settle> = older
            .into_iter()
            .filter_map(|(key, mend)| match mend {
                Mend::Older(revision) => Some(Settle { key: CacheKey::new(epoch, key), revision, fill: None }),
                Mend::Whole => None,
            })
            .collect();
        if !settles.is_empty() {
            let answers = self.cache.settle(&settles, Instant::now() + PATIENCE).await;
            if self.note_failed(&answers) {
                return false;
            }
            let dropped = answers.iter().filter(|answer| **answer == Ok(Effect::Dropped)).count();
            self.repairs.dropped.fetch_add(dropped as u64, Relaxed);
        }
        if !edited.is_empty() {
            let answers = self.cache.remove(&CacheKey::all(epoch, &edited), Instant::now() + PATIENCE).await;
            if self.note_failed(&answers) {
                return false;
            }
        }
        self.repairs.written.fetch_add(settles.len() as u64, Relaxed);
        self.repairs.edited.fetch_add(edited.len() as u64, Relaxed);
        self.trust.is_ours(epoch, life)
    }

    /// Makes a new epoch, because it is not known which entries of L1 are old.
    pub(super) async fn start_cold(&self, why: &str) -> bool {
        tracing::warn!(why, "L1 starts cold, in a new epoch");
        let renewed = self.renew_epoch().await.is_some();
        self.repairs.epochs.fetch_add(u64::from(renewed), Relaxed);
        renewed
    }
}

/// Combines all changes of a record into one thing to do.
fn coalesced(changes: &[Change]) -> HashMap<&RecordKey, Mend> {
    let mut mends = HashMap::with_capacity(changes.len());
    for change in changes {
        let (key, mend) = match &change.event {
            Event::Written { key, revision } => (key, Mend::Older(*revision)),
            Event::Edited { key } => (key, Mend::Whole),
            Event::Everything => continue,
        };
        match mends.entry(key) {
            Entry::Vacant(slot) => drop(slot.insert(mend)),
            Entry::Occupied(mut slot) => {
                let both = match (*slot.get(), mend) {
                    (Mend::Older(one), Mend::Older(other)) => Mend::Older(one.max(other)),
                    _ => Mend::Whole,
                };
                slot.insert(both);
            }
        }
    }
    mends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntityId, FeatureView, Millis};

    #[test]
    fn many_changes_of_a_record_are_applied_at_once() {
        let key =
            |id: &str| RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse(id).unwrap() };
        let (a, b) = (key("a"), key("b"));
        let written = |key: &RecordKey, revision| Event::Written { key: key.clone(), revision: Revision(revision) };
        let events = [written(&a, 5), Event::Edited { key: b.clone() }, written(&a, 7), written(&b, 9), written(&a, 6)];
        let changes = events.map(|event| Change { event, order: 1, at: Millis(1) });
        assert_eq!(coalesced(&changes), HashMap::from([(&a, Mend::Older(Revision(7))), (&b, Mend::Whole)]));
    }
}
