//! What a write does: REPLACE and MERGE, times, event-time guard, limits.

use std::{sync::Arc, time::Duration};

use featurestore::{
    proto::{BoolList, FloatList, Int64List, Value, value::Kind},
    record::{FeatureName, Millis, Revision, State, encoding::EncodedFeatures},
    store::{Outcome, Store},
};

use super::fixture::*;

pub(crate) async fn what_was_answered_is_read_at_once(store: Arc<dyn Store>) {
    let key = key("at once");
    assert_eq!(read(&store, &key).await, State::Absent);
    for i in 0..20 {
        let (receipt, state) = put(&key).int("a", i).on(&store).await;
        assert_eq!(receipt.outcome, Outcome::Written);
        assert_eq!(read(&store, &key).await, state, "the answer is what then stands");
        assert_eq!(int_of(&record(&store, &key).await, "a"), i);
    }
}

pub(crate) async fn replace_takes_the_place_of_all_that_was_there(store: Arc<dyn Store>) {
    let key = key("replace");
    let first = put(&key).int("a", 1).int("b", 2).version("v1").forever().event_time(5).written(&store).await;
    let second = put(&key).int("b", 3).written(&store).await;
    assert!(second > first);
    let stored = record(&store, &key).await;
    assert_eq!(names(&stored), ["b"]);
    assert_eq!(int_of(&stored, "b"), 3);
    assert_eq!(stored.model_version, "");
    assert_eq!(stored.revision, second);
    assert!(stored.expire_at.is_some(), "the default ttl");
}

pub(crate) async fn merge_keeps_what_it_does_not_name(store: Arc<dyn Store>) {
    let key = key("merge");
    put(&key).int("a", 1).int("b", 2).version("v1").forever().written(&store).await;
    merge(&key).int("b", 3).int("c", 4).written(&store).await;
    let merged = record(&store, &key).await;
    assert_eq!(names(&merged), ["a", "b", "c"]);
    assert_eq!((int_of(&merged, "a"), int_of(&merged, "b"), int_of(&merged, "c")), (1, 3, 4));
    assert_eq!(merged.model_version, "v1");
    assert_eq!(merged.expire_at, None);

    merge(&key).version("v2").ttl(Duration::from_secs(60)).written(&store).await;
    let merged = record(&store, &key).await;
    assert_eq!(names(&merged), ["a", "b", "c"]);
    assert_eq!(merged.model_version, "v2");
    let until = merged.expire_at.expect("it was given a ttl");
    merge(&key).int("d", 5).written(&store).await;
    assert_eq!(record(&store, &key).await.expire_at, Some(until), "a merge without a ttl does not prolong");
    merge(&key).kind("a", Kind::NullVal(0)).forever().written(&store).await;
    let merged = record(&store, &key).await;
    assert_eq!(merged.features["a"].kind, Some(Kind::NullVal(0)), "a null is a value");
    assert_eq!(merged.expire_at, None);
}

pub(crate) async fn merge_creates_where_there_is_no_live_record(store: Arc<dyn Store>) {
    let never = key("never");
    merge(&never).int("a", 1).written(&store).await;
    let created = record(&store, &never).await;
    assert_eq!(names(&created), ["a"]);
    assert!(created.expire_at.is_some(), "the default ttl");

    let deleted = key("deleted");
    put(&deleted).int("old", 1).version("old").forever().written(&store).await;
    delete(&deleted).on(&store).await;
    merge(&deleted).int("new", 1).written(&store).await;
    let created = record(&store, &deleted).await;
    assert_eq!((names(&created), created.model_version.as_str()), (vec!["new"], ""));
    assert!(created.expire_at.is_some());
}

pub(crate) async fn merge_on_an_expired_record_starts_afresh(store: Arc<dyn Store>) {
    let key = key("expired merge");
    let first = put(&key).int("old", 1).version("old").ttl(Duration::from_millis(60)).written(&store).await;
    expired(&store, &key).await;
    let second = merge(&key).int("new", 1).written(&store).await;
    assert!(second > first);
    let afresh = record(&store, &key).await;
    assert_eq!((names(&afresh), afresh.model_version.as_str()), (vec!["new"], ""));
    assert!(afresh.expire_at.is_some_and(|at| at > now()));
}

pub(crate) async fn an_expired_record_stays_readable_as_expired(store: Arc<dyn Store>) {
    let key = key("expired");
    let revision = put(&key).int("a", 1).ttl(Duration::from_millis(30)).written(&store).await;
    expired(&store, &key).await;
    let stored = record(&store, &key).await;
    assert_eq!((stored.revision, int_of(&stored, "a")), (revision, 1));
}

pub(crate) async fn times_are_those_of_the_write_in_milliseconds(store: Arc<dyn Store>) {
    let key = key("times");
    let before = now();
    put(&key).ttl(Duration::from_secs(100)).written(&store).await;
    let stored = record(&store, &key).await;
    let (skew, after) = (1_000, now());
    assert!((before.0 - skew..=after.0 + skew).contains(&stored.write_time.0), "{stored:?}");
    assert_eq!(stored.event_time, stored.write_time, "an absent event time is that of the write");
    assert_eq!(stored.expire_at, Some(Millis(stored.write_time.0 + 100_000)));
    assert!(stored.revision.0 >= stored.write_time.0 * 1000, "a revision is a time");

    put(&key).forever().event_time(stored.event_time.0 + 86_400_000).written(&store).await;
    let future = record(&store, &key).await;
    assert_eq!(future.event_time.0, stored.event_time.0 + 86_400_000);
    put(&key).written(&store).await;
    assert_eq!(record(&store, &key).await.event_time, future.event_time, "an absent one is never stale");
}

pub(crate) async fn event_times_before_the_epoch_and_far_away_are_kept(store: Arc<dyn Store>) {
    for at in [-62_135_596_800_000, -1, 0, 1, 253_402_300_799_999] {
        let key = key("far");
        put(&key).event_time(at).written(&store).await;
        assert_eq!(record(&store, &key).await.event_time, Millis(at));
    }
}

pub(crate) async fn an_older_event_time_is_skipped_and_an_equal_one_is_not(store: Arc<dyn Store>) {
    let key = key("event time");
    let first = put(&key).int("a", 1).event_time(1_000).written(&store).await;
    let (receipt, state) = put(&key).int("a", 2).event_time(999).on(&store).await;
    assert_eq!((receipt.outcome, receipt.revision), (Outcome::SkippedStale, first));
    assert_eq!(state.revision(), first);
    let (receipt, _) = merge(&key).int("b", 2).event_time(-1).on(&store).await;
    assert_eq!(receipt.outcome, Outcome::SkippedStale);
    assert_eq!(names(&record(&store, &key).await), ["a"]);
    assert_eq!(int_of(&record(&store, &key).await, "a"), 1);

    put(&key).int("a", 3).event_time(1_000).written(&store).await;
    merge(&key).int("b", 4).event_time(1_001).written(&store).await;
    let stored = record(&store, &key).await;
    assert_eq!((int_of(&stored, "a"), int_of(&stored, "b"), stored.event_time), (3, 4, Millis(1_001)));
}

pub(crate) async fn only_a_live_record_guards_its_event_time(store: Arc<dyn Store>) {
    let deleted = key("deleted guard");
    put(&deleted).event_time(2_000).written(&store).await;
    delete(&deleted).on(&store).await;
    put(&deleted).event_time(1_000).written(&store).await;
    assert_eq!(record(&store, &deleted).await.event_time, Millis(1_000));

    let lapsed = key("expired guard");
    put(&lapsed).event_time(2_000).ttl(Duration::from_millis(30)).written(&store).await;
    expired(&store, &lapsed).await;
    put(&lapsed).event_time(1_000).written(&store).await;
    assert_eq!(record(&store, &lapsed).await.event_time, Millis(1_000));
}

pub(crate) async fn limits_hold_after_a_merge_and_change_nothing(store: Arc<dyn Store>) {
    let key = key("limits");
    let numbered = |mut draft: Draft, range: std::ops::Range<i64>| {
        for i in range {
            draft = draft.int(&format!("f{i}"), i);
        }
        draft
    };
    numbered(put(&key), 0..40).written(&store).await;
    let (receipt, _) = numbered(merge(&key), 30..60).on(&store).await;
    assert_eq!(receipt.outcome, Outcome::TooManyFeatures { count: 60 });
    numbered(merge(&key), 30..50).written(&store).await;
    assert_eq!(record(&store, &key).await.features.len(), 50);

    let half = "x".repeat(40 << 10);
    put(&key).kind("a", Kind::StringVal(half.clone())).written(&store).await;
    let before = record(&store, &key).await;
    let (receipt, _) = merge(&key).kind("b", Kind::StringVal(half.clone())).on(&store).await;
    assert!(matches!(receipt.outcome, Outcome::RecordTooLarge { bytes } if bytes > 80 << 10), "{receipt:?}");
    assert_eq!(receipt.revision, before.revision);
    assert_eq!(record(&store, &key).await, before);
    merge(&key).kind("a", Kind::StringVal(half)).int("b", 1).written(&store).await;

    let fresh = self::key("limits on nothing");
    let (receipt, state) = numbered(put(&fresh), 0..51).on(&store).await;
    assert_eq!((receipt.outcome, state), (Outcome::TooManyFeatures { count: 51 }, State::Absent));
}

pub(crate) async fn a_long_model_version_from_before_there_was_a_limit_survives_a_merge(store: Arc<dyn Store>) {
    let key = key("long version");
    // Longer than a record may be.
    let version = "v".repeat(rules().max_record_bytes + 1);
    put(&key).int("a", 1).version(&version).written(&store).await;
    merge(&key).int("b", 2).written(&store).await;
    let merged = record(&store, &key).await;
    assert_eq!(names(&merged), ["a", "b"]);
    assert_eq!(merged.model_version, version);
    merge(&key).int("c", 3).version("v2").written(&store).await;
    assert_eq!(record(&store, &key).await.model_version, "v2");
}

pub(crate) async fn a_record_is_measured_in_stored_bytes_whatever_its_values_are(store: Arc<dyn Store>) {
    let maximum = rules().max_record_bytes;
    let bools = |count| Kind::BoolListVal(BoolList { val: vec![true; count] });
    let zeros = |count| Kind::Int64ListVal(Int64List { val: vec![0; count] });
    let floats = |count| Kind::FloatListVal(FloatList { val: vec![0.25; count] });
    // What a list takes beside its numbers: lengths, tags and the name of the feature.
    let around = |list: &dyn Fn(usize) -> Kind, width: usize| stored_bytes(&list(40_000)) - 40_000 * width;
    let most = |list: &dyn Fn(usize) -> Kind, width: usize| (maximum - around(list, width)) / width;
    let (many_bools, many_zeros, many_floats) = (most(&bools, 1), most(&zeros, 1), most(&floats, 4));
    for (what, fits, too_large) in [
        ("bools", bools(many_bools), bools(many_bools + 1)),
        ("integers", zeros(many_zeros), zeros(many_zeros + 1)),
        ("floats", floats(many_floats), floats(many_floats + 1)),
    ] {
        for alone in [true, false] {
            let key = key(what);
            let write = async |draft: Draft| match alone {
                true => draft.on(&store).await.0,
                false => store.write_batch(vec![draft.0], deadline()).await.remove(0).unwrap(),
            };
            for first in [put(&key), merge(&key)] {
                let receipt = write(first.kind("a", too_large.clone())).await;
                let bytes = stored_bytes(&too_large);
                assert_eq!(
                    (receipt.outcome, receipt.revision),
                    (Outcome::RecordTooLarge { bytes }, Revision::NONE),
                    "{what}"
                );
            }
            assert_eq!(read(&store, &key).await, State::Absent);
            assert_eq!(write(put(&key).kind("a", fits.clone())).await.outcome, Outcome::Written, "{what}");
            let before = record(&store, &key).await;
            assert_eq!(before.features["a"].kind.as_ref(), Some(&fits), "{what}");
            // There is no room for another one, but for the same ones again.
            let (receipt, bytes) = (write(merge(&key).int("b", 1)).await, stored_bytes(&fits) + 9);
            assert_eq!(
                (receipt.outcome, receipt.revision),
                (Outcome::RecordTooLarge { bytes }, before.revision),
                "{what}"
            );
            assert_eq!(record(&store, &key).await, before, "{what}");
            assert_eq!(write(merge(&key).kind("a", fits.clone())).await.outcome, Outcome::Written, "{what}");
            let receipt = write(merge(&key).kind("a", bools(many_bools - 12)).int("b", 1)).await;
            assert_eq!(receipt.outcome, Outcome::Written, "{what}");
            assert_eq!(names(&record(&store, &key).await), ["a", "b"]);
        }
    }
}

fn stored_bytes(kind: &Kind) -> usize {
    let feature = (FeatureName::parse("a").unwrap(), Value { kind: Some(kind.clone()) });
    EncodedFeatures::from_iter([feature]).as_bytes().len()
}
