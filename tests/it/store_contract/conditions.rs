//! What a write depends on: if_revision, request ids, and what a delete leaves.

use std::{sync::Arc, time::Duration};

use featurestore::{
    record::{Revision, State},
    store::{Outcome, Store},
};

use super::fixture::*;

const NO: Revision = Revision::NONE;

fn mismatch(stored: Revision) -> Outcome {
    Outcome::RevisionMismatch { stored }
}

pub(crate) async fn if_revision_zero_writes_only_where_there_is_no_live_record(store: Arc<dyn Store>) {
    let key = key("if zero");
    let first = put(&key).int("a", 1).if_revision(NO).written(&store).await;
    let (receipt, state) = put(&key).int("a", 2).if_revision(NO).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision, state.revision()), (mismatch(first), first, first));
    assert_eq!(int_of(&record(&store, &key).await, "a"), 1);

    delete(&key).on(&store).await;
    let third = put(&key).int("a", 3).ttl(Duration::from_millis(30)).if_revision(NO).written(&store).await;
    expired(&store, &key).await;
    assert!(put(&key).if_revision(NO).written(&store).await > third);
}

pub(crate) async fn if_revision_writes_only_on_that_revision(store: Arc<dyn Store>) {
    let key = key("if");
    let (receipt, state) = put(&key).if_revision(Revision(7)).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision, state), (mismatch(NO), NO, State::Absent));
    let first = put(&key).int("a", 1).written(&store).await;
    let second = merge(&key).int("b", 2).if_revision(first).written(&store).await;
    let (receipt, _) = merge(&key).int("c", 3).if_revision(first).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (mismatch(second), second));
    let (receipt, _) = delete(&key).if_revision(first).on(&store).await;
    assert_eq!(receipt.outcome, mismatch(second));
    assert_eq!(names(&record(&store, &key).await), ["a", "b"]);
    let (receipt, _) = delete(&key).if_revision(second).on(&store).await;
    assert_eq!(receipt.outcome, Outcome::Deleted);
}

pub(crate) async fn if_revision_of_a_tombstone_or_an_expired_record_matches_nothing(store: Arc<dyn Store>) {
    let deleted = key("if tombstone");
    put(&deleted).written(&store).await;
    let tombstone = delete(&deleted).on(&store).await.0.revision;
    let (receipt, state) = put(&deleted).if_revision(tombstone).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (mismatch(NO), tombstone));
    assert_eq!(state, State::Tombstone(tombstone));

    let lapsed = key("if expired");
    let revision = put(&lapsed).ttl(Duration::from_millis(30)).written(&store).await;
    expired(&store, &lapsed).await;
    let (receipt, _) = put(&lapsed).if_revision(revision).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (mismatch(NO), revision));
}

pub(crate) async fn the_checks_run_in_the_order_request_revision_event_time_limits(store: Arc<dyn Store>) {
    let key = key("order");
    let first = put(&key).event_time(1_000).request("first").written(&store).await;
    let mut all_wrong = put(&key).event_time(1).if_revision(Revision(1));
    for i in 0..60 {
        all_wrong = all_wrong.int(&format!("f{i}"), i);
    }
    assert_eq!(all_wrong.clone().request("first").on(&store).await.0.outcome, Outcome::Written);
    assert_eq!(all_wrong.clone().on(&store).await.0.outcome, mismatch(first));
    let right_revision = all_wrong.if_revision(first);
    assert_eq!(right_revision.clone().request("2").on(&store).await.0.outcome, Outcome::SkippedStale);
    let (receipt, _) = right_revision.event_time(1_000).request("3").on(&store).await;
    assert_eq!(receipt.outcome, Outcome::TooManyFeatures { count: 60 });
}

pub(crate) async fn a_repeated_request_applies_once_and_answers_the_first_outcome(store: Arc<dyn Store>) {
    let key = key("repeat");
    let write = put(&key).int("a", 1).request("w");
    let first = write.clone().written(&store).await;
    let (receipt, state) = write.clone().on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision, state.revision()), (Outcome::Written, first, first));

    let second = merge(&key).int("a", 2).written(&store).await;
    let (receipt, _) = write.on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (Outcome::Written, second), "it answers what now stands");
    assert_eq!(int_of(&record(&store, &key).await, "a"), 2);
}

pub(crate) async fn a_repeated_refusal_answers_the_first_outcome(store: Arc<dyn Store>) {
    let key = key("repeated refusal");
    let first = put(&key).event_time(1_000).written(&store).await;
    let refused = put(&key).if_revision(Revision(1)).request("mismatch");
    assert_eq!(refused.clone().on(&store).await.0.outcome, mismatch(first));
    let stale = put(&key).event_time(1).request("stale");
    assert_eq!(stale.clone().on(&store).await.0.outcome, Outcome::SkippedStale);
    delete(&key).on(&store).await;
    assert_eq!(refused.on(&store).await.0.outcome, mismatch(first), "though now it would be another");
    assert_eq!(stale.on(&store).await.0.outcome, Outcome::SkippedStale, "though now nothing guards");
    assert!(matches!(read(&store, &key).await, State::Tombstone(_)));
}

pub(crate) async fn the_last_eight_requests_are_remembered(store: Arc<dyn Store>) {
    let key = key("eight");
    for i in 0..12 {
        put(&key).int("a", i).request(&format!("w{i}")).written(&store).await;
    }
    let before = read(&store, &key).await;
    for i in 4..12 {
        let (receipt, state) = put(&key).int("a", -1).request(&format!("w{i}")).on(&store).await;
        assert_eq!(receipt.outcome, Outcome::Written);
        assert_eq!(state, before, "w{i} applied again");
    }
}

pub(crate) async fn tombstones_remember_requests(store: Arc<dyn Store>) {
    let key = key("remembering tombstone");
    let write = put(&key).int("a", 1).request("w");
    write.clone().written(&store).await;
    let gone = delete(&key).request("d");
    let (receipt, tombstone) = gone.clone().on(&store).await;
    assert_eq!(receipt.outcome, Outcome::Deleted);
    assert_eq!(write.clone().on(&store).await.0.outcome, Outcome::Written);
    assert_eq!(read(&store, &key).await, tombstone, "a late repeat does not bring the record back");
    assert_eq!(gone.clone().on(&store).await.0.outcome, Outcome::Deleted);

    put(&key).int("a", 2).written(&store).await;
    assert_eq!(gone.on(&store).await.0.outcome, Outcome::Deleted);
    assert_eq!(int_of(&record(&store, &key).await, "a"), 2, "a late repeat does not delete the new record");
}

pub(crate) async fn equal_request_ids_of_different_records_have_nothing_to_do_with_each_other(store: Arc<dyn Store>) {
    let (one, other) = (key("one"), key("other"));
    put(&one).request("same").written(&store).await;
    put(&other).int("a", 1).request("same").written(&store).await;
    assert_eq!(int_of(&record(&store, &other).await, "a"), 1);
}

pub(crate) async fn a_delete_leaves_a_tombstone(store: Arc<dyn Store>) {
    let key = key("delete");
    let (receipt, state) = delete(&key).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision, state), (Outcome::NotFound, NO, State::Absent));
    assert_eq!(read(&store, &key).await, State::Absent, "a delete of nothing leaves nothing");

    let first = put(&key).forever().written(&store).await;
    let (receipt, state) = delete(&key).on(&store).await;
    assert_eq!(receipt.outcome, Outcome::Deleted);
    assert!(receipt.revision > first);
    assert_eq!(state, State::Tombstone(receipt.revision));
    assert_eq!(read(&store, &key).await, state);

    let (again, state) = delete(&key).on(&store).await;
    assert_eq!((again.outcome, again.revision), (Outcome::NotFound, receipt.revision));
    assert_eq!(state, State::Tombstone(receipt.revision));
}

pub(crate) async fn a_delete_of_an_expired_record_finds_nothing(store: Arc<dyn Store>) {
    let key = key("delete expired");
    let revision = put(&key).ttl(Duration::from_millis(30)).written(&store).await;
    expired(&store, &key).await;
    let (receipt, state) = delete(&key).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (Outcome::NotFound, revision));
    assert!(matches!(state, State::Record(_)));
}

pub(crate) async fn revisions_grow_over_delete_and_recreate(store: Arc<dyn Store>) {
    let key = key("grow");
    let mut last = NO;
    for i in 0..30 {
        let draft = match i % 3 {
            0 => put(&key).int("a", i),
            1 => merge(&key).int("b", i),
            _ => delete(&key),
        };
        let (receipt, _) = draft.on(&store).await;
        assert!(receipt.revision > last, "{i}: {} after {last}", receipt.revision);
        assert!(receipt.revision.0 < 1 << 53);
        last = receipt.revision;
    }
}
