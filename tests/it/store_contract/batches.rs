//! Batches: order, completeness, equal keys; and many callers at once.

use std::sync::Arc;

use featurestore::{
    proto::value::Kind,
    record::{Revision, State},
    store::{Outcome, READ_BYTES, ReadConcern, Store, StoreError},
};
use tokio::task::JoinSet;

use super::fixture::*;

pub(crate) async fn a_batch_read_answers_in_order_with_duplicates(store: Arc<dyn Store>) {
    let keys: Vec<_> = (0..40).map(|i| key(&format!("batch {i}"))).collect();
    for (i, key) in keys.iter().enumerate() {
        match i % 4 {
            0 => {}
            1 => drop(put(key).int("i", i as i64).written(&store).await),
            2 => drop(put(key).forever().int("i", i as i64).written(&store).await),
            _ => {
                put(key).written(&store).await;
                delete(key).on(&store).await;
            }
        }
    }
    let asked: Vec<_> = (0..200).map(|i| i * 7 % 40).collect();
    let asked_keys: Vec<_> = asked.iter().map(|i| keys[*i].clone()).collect();
    for concern in [ReadConcern::Majority, ReadConcern::Linearizable] {
        let states = read_all(&store, &asked_keys, concern).await;
        for (i, state) in asked.iter().zip(states) {
            match (i % 4, state) {
                (0, State::Absent) | (3, State::Tombstone(_)) => {}
                (1 | 2, State::Record(stored)) => assert_eq!(int_of(&stored.decode().unwrap(), "i"), *i as i64),
                (_, state) => panic!("{i}: {state:?}"),
            }
        }
        assert!(store.read(&[], concern, deadline()).await.is_empty());
    }
}

pub(crate) async fn a_thousand_records_are_written_and_read_in_one_batch(store: Arc<dyn Store>) {
    let keys: Vec<_> = (0..1_000).map(|i| key(&format!("thousand {i}"))).collect();
    let writes = keys.iter().enumerate().map(|(i, key)| put(key).int("i", i as i64).0).collect();
    let receipts = store.write_batch(writes, deadline()).await;
    assert_eq!(receipts.len(), 1_000);
    let states = read_all(&store, &keys, ReadConcern::Majority).await;
    for (i, (receipt, state)) in receipts.into_iter().zip(states).enumerate() {
        let receipt = receipt.unwrap();
        assert_eq!((receipt.outcome, receipt.revision), (Outcome::Written, state.revision()));
        let State::Record(stored) = state else { panic!("{i}: {state:?}") };
        assert_eq!(int_of(&stored.decode().unwrap(), "i"), i as i64);
    }
}

pub(crate) async fn of_a_read_that_is_too_large_some_records_come_and_the_others_are_left_out(store: Arc<dyn Store>) {
    // Near the limit of the rules.
    const BYTES: usize = 60 << 10;
    let mut keys: Vec<_> = (0..3 * READ_BYTES / BYTES).map(|i| key(&format!("large {i}"))).collect();
    for some in keys.chunks(50) {
        let writes = some.iter().map(|key| put(key).kind("text", Kind::StringVal("x".repeat(BYTES))).0).collect();
        assert!(store.write_batch(writes, deadline()).await.iter().all(Result::is_ok));
    }
    let absent = key("absent");
    for concern in [ReadConcern::Majority, ReadConcern::Linearizable] {
        let mut left: Vec<_> = keys.iter().chain([&absent]).cloned().collect();
        while !left.is_empty() {
            let states = store.read(&left, concern, deadline()).await;
            let came = states.iter().flatten().filter_map(State::record).map(|record| record.as_bytes().len()).sum();
            assert!((0..2 * READ_BYTES).contains(&came), "{concern:?}: {came}");
            let before = left.len();
            let mut states = states.into_iter();
            left.retain(|key| match states.next().unwrap() {
                Ok(State::Record(record)) => record.as_bytes().len() < BYTES,
                Ok(State::Absent) => *key != absent,
                other => {
                    assert_eq!(other, Err(StoreError::LeftOut), "{concern:?}");
                    true
                }
            });
            assert!(left.len() < before, "{concern:?}: nothing came");
        }
    }
    keys.push(absent);
    let deletes = keys.iter().map(|key| delete(key).0).collect();
    assert!(store.write_batch(deletes, deadline()).await.iter().all(Result::is_ok));
}

pub(crate) async fn each_write_of_a_batch_has_its_own_outcome(store: Arc<dyn Store>) {
    let keys: Vec<_> = ["a", "b", "c", "d", "e"].map(key).to_vec();
    let second = put(&keys[1]).event_time(1_000).written(&store).await;
    put(&keys[2]).written(&store).await;
    put(&keys[4]).request("again").written(&store).await;
    let writes = vec![
        put(&keys[0]).int("a", 1).0,
        put(&keys[1]).event_time(1).0,
        delete(&keys[2]).0,
        delete(&keys[3]).0,
        put(&keys[1]).if_revision(Revision(5)).0,
        put(&keys[4]).int("a", 1).request("again").0,
    ];
    let receipts: Vec<_> = store.write_batch(writes, deadline()).await.into_iter().map(Result::unwrap).collect();
    let outcomes: Vec<_> = receipts.iter().map(|receipt| receipt.outcome).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Written,
            Outcome::SkippedStale,
            Outcome::Deleted,
            Outcome::NotFound,
            Outcome::RevisionMismatch { stored: second },
            Outcome::Written,
        ]
    );
    assert_eq!(receipts[3].revision, Revision::NONE);
    assert_eq!(receipts[1].revision, second);
    assert!(record(&store, &keys[4]).await.features.is_empty(), "the repeat changed nothing");
    assert!(store.write_batch(Vec::new(), deadline()).await.is_empty());
}

pub(crate) async fn equal_keys_of_a_batch_are_written_in_their_order(store: Arc<dyn Store>) {
    let (hot, cold) = (key("hot"), key("cold"));
    let mut writes = Vec::new();
    // More than the eight requests that a record remembers.
    for i in 0..20 {
        writes.push(merge(&hot).int("last", i).int(&format!("f{i}"), i).0);
        if i % 5 == 0 {
            writes.push(put(&cold).int("i", i).0);
        }
    }
    let receipts = store.write_batch(writes.clone(), deadline()).await;
    let mut last = Revision::NONE;
    for (write, receipt) in writes.iter().zip(receipts) {
        let receipt = receipt.unwrap();
        assert_eq!(receipt.outcome, Outcome::Written);
        if write.key == hot {
            assert!(receipt.revision >= last);
            last = receipt.revision;
        }
    }
    let merged = record(&store, &hot).await;
    assert_eq!((merged.features.len(), int_of(&merged, "last"), merged.revision), (21, 19, last));
    assert_eq!(int_of(&record(&store, &cold).await, "i"), 15);
}

pub(crate) async fn writes_of_one_key_in_a_batch_see_each_other(store: Arc<dyn Store>) {
    let key = key("chain");
    let writes = vec![
        put(&key).int("a", 1).if_revision(Revision::NONE).0,
        put(&key).int("a", 2).if_revision(Revision::NONE).0,
        delete(&key).0,
        delete(&key).0,
        put(&key).int("a", 3).if_revision(Revision::NONE).0,
        merge(&key).int("b", 4).event_time(1).0,
    ];
    let receipts: Vec<_> = store.write_batch(writes, deadline()).await.into_iter().map(Result::unwrap).collect();
    let kinds: Vec<_> = receipts
        .iter()
        .map(|receipt| match receipt.outcome {
            Outcome::RevisionMismatch { stored } => {
                assert!(stored > Revision::NONE);
                "mismatch"
            }
            Outcome::Written => "written",
            Outcome::Deleted => "deleted",
            Outcome::NotFound => "not found",
            Outcome::SkippedStale => "stale",
            _ => "limits",
        })
        .collect();
    assert_eq!(kinds, ["written", "mismatch", "deleted", "not found", "written", "stale"]);
    assert_eq!(int_of(&record(&store, &key).await, "a"), 3);
}

pub(crate) async fn a_thousand_writes_of_one_key_are_each_answered(store: Arc<dyn Store>) {
    let (hot, cold) = (key("one of many"), key("another of many"));
    let mut writes: Vec<_> = (0..1_000).map(|i| merge(&hot).int("last", i).int(&format!("f{}", i % 40), i).0).collect();
    writes[300] = put(&hot).int("only", 1).0;
    writes[400] = put(&hot).int("stale", 1).if_revision(Revision(5)).0;
    writes[500] = delete(&hot).0;
    writes[700] = put(&cold).int("a", 1).0;
    writes[900].request_id = writes[898].request_id.clone();
    let receipts: Vec<_> =
        store.write_batch(writes.clone(), deadline()).await.into_iter().map(Result::unwrap).collect();
    let mut last = Revision::NONE;
    for (i, receipt) in receipts.iter().enumerate().filter(|(i, _)| *i != 700) {
        match i {
            400 => assert_eq!(receipt.outcome, Outcome::RevisionMismatch { stored: last }),
            500 => assert!(receipt.outcome == Outcome::Deleted && receipt.tombstone),
            _ => assert_eq!(receipt.outcome, Outcome::Written, "{i}"),
        }
        let changes = !matches!(i, 400 | 900);
        assert!(if changes { receipt.revision > last } else { receipt.revision == last }, "{i}");
        last = receipt.revision;
    }
    let stored = record(&store, &hot).await;
    assert_eq!((stored.features.len(), int_of(&stored, "last"), stored.revision), (41, 999, last));
    assert_eq!(int_of(&stored, "f20"), 980);
    // The last eight of them are remembered, and no earlier one.
    let again = store.write_batch(writes[992..].to_vec(), deadline()).await;
    assert!(again.into_iter().all(|receipt| receipt.unwrap().revision == last));
    let (receipt, _) = store.write(writes[991].clone(), deadline()).await.unwrap();
    assert!(receipt.revision > last);
}

pub(crate) async fn concurrent_merges_of_different_features_lose_nothing(store: Arc<dyn Store>) {
    let key = key("concurrent merges");
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (store, key) = (Arc::clone(&store), key.clone());
        writers.spawn(async move {
            for i in 0..5 {
                merge(&key).int(&format!("w{writer}_{i}"), i).written(&store).await;
            }
        });
    }
    writers.join_all().await;
    assert_eq!(record(&store, &key).await.features.len(), 40);
}

pub(crate) async fn of_concurrent_writers_of_one_revision_exactly_one_wins(store: Arc<dyn Store>) {
    let key = key("concurrent revision");
    let mut revision = Revision::NONE;
    for round in 0..5 {
        let mut writers = JoinSet::new();
        for writer in 0..8 {
            let (store, draft) = (Arc::clone(&store), put(&key).int("winner", writer).if_revision(revision));
            writers.spawn(async move { (writer, draft.on(&store).await.0) });
        }
        let answers = writers.join_all().await;
        let winners: Vec<_> = answers.iter().filter(|(_, receipt)| receipt.outcome == Outcome::Written).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        let stored = record(&store, &key).await;
        assert_eq!(int_of(&stored, "winner"), winners[0].0);
        assert!(stored.revision > revision);
        revision = stored.revision;
    }
}

pub(crate) async fn concurrent_writers_get_revisions_of_their_own(store: Arc<dyn Store>) {
    let key = key("concurrent revisions");
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (store, key) = (Arc::clone(&store), key.clone());
        writers.spawn(async move {
            let mut mine = Vec::new();
            for i in 0..5 {
                mine.push(put(&key).int("w", writer * 100 + i).written(&store).await);
            }
            assert!(mine.is_sorted(), "a writer's later revision is higher");
            mine
        });
    }
    let mut all: Vec<_> = writers.join_all().await.concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 40);
    assert_eq!(record(&store, &key).await.revision, all[39]);
}
