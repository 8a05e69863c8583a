//! The rest of the contract: the epoch, deadlines, how a store speaks of itself.

use std::{sync::Arc, time::Duration};

use featurestore::{
    cache::Epoch,
    record::State,
    store::{EpochState, ReadConcern, Store, StoreError},
};
use tokio::{task::JoinSet, time::Instant};

use super::fixture::*;

/// All but the age, which grows.
fn said(state: EpochState) -> (Epoch, bool) {
    (state.epoch, state.dirty)
}

/// Nobody else may use the store's epoch meanwhile.
pub(crate) async fn the_epoch_changes_only_for_who_saw_the_present_one(store: Arc<dyn Store>) {
    let epoch = async || said(store.epoch(deadline()).await.unwrap());
    let renew = async |seen| said(store.renew_epoch(seen, deadline()).await.unwrap());
    let mark_dirty = async || said(store.mark_dirty(deadline()).await.unwrap());
    let first = epoch().await;
    assert_eq!(epoch().await, first, "it stays");
    let dirty = mark_dirty().await;
    assert_eq!(dirty, (first.0, true));
    assert_eq!(mark_dirty().await, dirty, "twice is once");
    assert_eq!(epoch().await, dirty);

    let stale = Epoch(first.0.0.wrapping_add(1));
    assert_eq!(renew(stale).await, dirty, "a stale `seen` changes nothing");
    let second = renew(first.0).await;
    assert_ne!(second.0, first.0);
    assert!(!second.1, "a new epoch is clean");
    assert_eq!(renew(first.0).await, second);
    assert_eq!(epoch().await, second);
    let ages = [store.epoch(deadline()).await.unwrap().age, store.epoch(deadline()).await.unwrap().age];
    assert!(ages[0] <= ages[1] && (store.info().exclusive || ages[1] < Duration::from_secs(60)), "young: {ages:?}");

    let mut renewing = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        renewing.spawn(async move { said(store.renew_epoch(second.0, deadline()).await.unwrap()) });
    }
    let answers = renewing.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "one renewal for all who saw the same: {answers:?}");
    assert_ne!(answers[0].0, second.0);
}

pub(crate) async fn a_passed_deadline_ends_the_call_and_never_looks_like_absence(store: Arc<dyn Store>) {
    let keys: Vec<_> = (0..20).map(|i| key(&format!("late {i}"))).collect();
    for key in &keys {
        put(key).int("a", 1).written(&store).await;
    }
    let start = Instant::now();
    for state in store.read(&keys, ReadConcern::Majority, start).await {
        assert!(matches!(state, Ok(State::Record(_)) | Err(StoreError::Timeout(_) | StoreError::Unavailable(_))));
    }
    let answered = store.write(put(&keys[0]).int("a", 2).request("late").0, start).await;
    assert!(start.elapsed() < Duration::from_secs(2));
    match answered {
        Ok(_) | Err(StoreError::OutcomeUnknown(_)) => {}
        Err(StoreError::Unavailable(_)) => {
            assert_eq!(int_of(&record(&store, &keys[0]).await, "a"), 1, "Unavailable means that nothing happened");
        }
        Err(other) => panic!("{other}"),
    }
    let (receipt, _) = put(&keys[0]).int("a", 2).request("late").on(&store).await;
    assert_eq!(receipt.outcome, featurestore::store::Outcome::Written);
    assert_eq!(int_of(&record(&store, &keys[0]).await, "a"), 2, "a repeat with the same id makes sure");
}

pub(crate) async fn a_dropped_call_does_no_harm(store: Arc<dyn Store>) {
    let key = key("dropped");
    for i in 0..20 {
        let write = store.write(put(&key).int("a", i).0, deadline());
        let _ = tokio::time::timeout(Duration::from_micros(100 * i as u64), write).await;
    }
    // They may still happen, each once and whole; whoever comes next is served.
    let other = self::key("after the dropped");
    put(&other).int("a", 100).written(&store).await;
    assert_eq!(int_of(&record(&store, &other).await, "a"), 100);
    match read(&store, &key).await {
        State::Absent => {}
        State::Record(stored) => assert!((0..20).contains(&int_of(&stored.decode().unwrap(), "a"))),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn it_says_that_it_can_serve_and_what_it_is(store: Arc<dyn Store>) {
    store.ping(deadline()).await.unwrap();
    let info = store.info();
    assert!(matches!(info.kind, "embedded" | "mongodb"));
    assert!(!info.address.is_empty());
}
