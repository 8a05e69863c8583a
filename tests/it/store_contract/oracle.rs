//! Random writes, with `apply::apply` as the oracle: the store must answer, and store, what it says.
//!
//! The store's clock is its own, so revisions are compared by their order, and times where the write gave them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use featurestore::{
    proto::{BoolList, FloatList, Int32List, value::Kind},
    record::{Millis, RecordKey, Revision, State},
    store::{
        Outcome, Receipt, Store, StoreError,
        apply::{Content, Document, apply},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{fixture::*, values::kinds};

pub(crate) async fn random_writes_do_what_apply_says(store: Arc<dyn Store>) {
    for seed in [1, 2, 3, 4] {
        agrees_with_apply(&store, seed, 40).await;
    }
}

/// Runs `rounds` of random batches and single writes. A failure names its seed.
pub(crate) async fn agrees_with_apply(store: &Arc<dyn Store>, seed: u64, rounds: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let keys: Vec<_> = (0..4).map(|i| key(&format!("oracle {seed} {i}"))).collect();
    let mut expected = Expected::default();
    for round in 0..rounds {
        let at = format!("seed {seed}, round {round}");
        let size = *[1, 1, 1, 2, 5, 12, 40].choose(&mut random).unwrap();
        // Long batches are of one record mostly.
        let keys = if size == 40 { &keys[..2] } else { &keys[..] };
        let writes: Vec<_> = (0..size).map(|_| expected.draft(keys, &mut random)).collect();
        let answers: Vec<Result<Receipt, StoreError>> = if size == 1 {
            vec![writes[0].clone().try_on(store).await.map(|(receipt, _)| receipt)]
        } else {
            store.write_batch(writes.iter().map(|draft| draft.0.clone()).collect(), deadline()).await
        };
        for (draft, answer) in writes.iter().zip(answers) {
            expected.check(draft, &answer.unwrap(), &at);
        }
        for key in keys {
            expected.check_state(key, &read(store, key).await, &at);
        }
    }
}

#[derive(Default)]
struct Expected {
    documents: HashMap<RecordKey, Document>,
    /// The latest of each key, as the store has it.
    revisions: HashMap<RecordKey, Revision>,
    requests: Vec<(RecordKey, String)>,
}

impl Expected {
    fn draft(&mut self, keys: &[RecordKey], random: &mut StdRng) -> Draft {
        let key = keys.choose(random).unwrap();
        let mut draft = match random.random_range(0..10) {
            0..2 => delete(key),
            2..6 => merge(key),
            _ => put(key),
        };
        if matches!(draft.0.change, featurestore::store::Change::Upsert(_)) {
            for _ in 0..random.random_range(0..4) {
                let kinds = kinds();
                let kind = kinds.choose(random).unwrap().1.choose(random).unwrap().clone();
                draft = draft.kind(&format!("f{}", random.random_range(0..60)), kind);
            }
            if random.random_ratio(1, 12) {
                for i in 0..48 {
                    draft = draft.int(&format!("f{i}"), i);
                }
            }
            if random.random_ratio(1, 8) {
                // Two or three of them are as much as a record may have, or a little more or less.
                let (kind, length) = (random.random_range(0..4), random.random_range(15_000..32_000));
                let large = match kind {
                    0 => Kind::BoolListVal(BoolList { val: vec![true; length] }),
                    1 => Kind::Int32ListVal(Int32List { val: vec![7; length] }),
                    2 => Kind::StringVal("x".repeat(length)),
                    _ => Kind::FloatListVal(FloatList { val: vec![0.5; length / 4] }),
                };
                draft = draft.kind(&format!("large{}", random.random_range(0..4)), large);
            }
            draft = match random.random_range(0..4) {
                0 => draft.forever(),
                1 => draft.ttl(Duration::from_secs(1000)),
                _ => draft,
            };
            if random.random_bool(0.3) {
                draft = draft.version(["v1", "v2"].choose(random).unwrap());
            }
            if random.random_bool(0.5) {
                // Far from now on both sides, so that the clocks' difference does not matter.
                draft = draft.event_time(random.random_range(0..6) * 700_000_000_000);
            }
        }
        // A real revision cannot be guessed within a batch; a wrong one and none can.
        draft = match random.random_range(0..10) {
            0 => draft.if_revision(Revision::NONE),
            1 => draft.if_revision(Revision(5)),
            _ => draft,
        };
        let of_key: Vec<_> = self.requests.iter().filter(|(of, _)| of == key).rev().take(12).collect();
        match of_key.choose(random) {
            Some((_, id)) if random.random_bool(0.15) => draft.request(id),
            _ => {
                let id = format!("q{}", self.requests.len());
                self.requests.push((key.clone(), id.clone()));
                draft.request(&id)
            }
        }
    }

    fn check(&mut self, draft: &Draft, answer: &Receipt, at: &str) {
        let write = &draft.0;
        let stored = self.documents.get(&write.key);
        let (receipt, changed) = apply(stored, write.clone(), now(), &rules());
        match (answer.outcome, receipt.outcome) {
            (Outcome::RevisionMismatch { stored }, Outcome::RevisionMismatch { stored: expected }) => {
                assert_eq!(stored == Revision::NONE, expected == Revision::NONE, "{at}: {write:?}");
            }
            (answer, expected) => assert_eq!(answer, expected, "{at}: {write:?}"),
        }
        assert_eq!(answer.revision == Revision::NONE, receipt.revision == Revision::NONE, "{at}: {write:?}");
        if let Some(document) = changed {
            self.documents.insert(write.key.clone(), document);
        }
    }

    fn check_state(&mut self, key: &RecordKey, state: &State, at: &str) {
        let last = self.revisions.insert(key.clone(), state.revision()).unwrap_or(Revision::NONE);
        assert!(state.revision() >= last, "{at}: {key:?}");
        match (self.documents.get(key).map(|document| &document.content), state) {
            (None, State::Absent) | (Some(Content::Tombstone(_)), State::Tombstone(_)) => {}
            (Some(Content::Record(expected)), State::Record(stored)) => {
                let (stored, expected) = (stored.decode().unwrap(), expected.decode().unwrap());
                assert_eq!(names(&stored), names(&expected), "{at}: {key:?}");
                for (name, value) in &expected.features {
                    assert_same(&format!("{at}: {name:?}"), &stored.features[name], value);
                }
                assert_eq!(stored.model_version, expected.model_version, "{at}: {key:?}");
                assert_near(Some(stored.event_time), Some(expected.event_time), at);
                assert_near(stored.expire_at, expected.expire_at, at);
            }
            (expected, state) => panic!("{at}: {key:?}: {state:?}, but {expected:?}"),
        }
    }
}

fn assert_near(stored: Option<Millis>, expected: Option<Millis>, at: &str) {
    let near = match (stored, expected) {
        (Some(stored), Some(expected)) => (stored.0 - expected.0).abs() < 60_000,
        (stored, expected) => stored == expected,
    };
    assert!(near, "{at}: {stored:?}, but {expected:?}");
}
