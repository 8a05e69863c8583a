//! UpsertFeatures: what replaces and what merges, times, guards and repeats; the same on every pair of tiers.

mod deletes;
mod races;
mod repeats;

use std::collections::BTreeMap;

use tonic::Code;

use crate::harness::{
    client::*,
    server::{Pair, eventually},
};

const WEEK: i64 = 7 * 24 * 3600 * 1000;

fn merge(record: FeatureRecord) -> FeatureRecord {
    FeatureRecord { write_mode: WriteMode::Merge.into(), ..record }
}

/// The row as both tiers have it.
async fn stands(client: &mut Client, id: &str) -> FeatureRow {
    let (l1, l2) = (row(client, get([id])).await, row(client, strong([id])).await);
    assert_eq!((l1.source(), l2.source()), (Source::L1, Source::L2));
    assert_eq!(FeatureRow { source: l2.source, ..l1 }, l2);
    l2
}

/// Writes a record that has expired when this returns; answers its revision.
async fn put_expired(client: &mut Client, id: &str) -> i64 {
    let features = features([("old", double(1.0))]);
    let record =
        FeatureRecord { ttl: Some(millis(1)), event_time: Some(timestamp(2_000_000_000)), features, ..record(id, []) };
    let written = put(client, record).await;
    let expired = async || row(&mut client.clone(), strong([id])).await.status() == RowStatus::Expired;
    eventually("the record to expire", expired).await;
    written.revision
}

/// Writes, expecting ABORTED; answers the stored revision.
async fn mismatch(client: &mut Client, record: FeatureRecord) -> String {
    let refused = Refusal::of(&client.upsert_features(upsert(record)).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Aborted, "REVISION_MISMATCH"));
    assert_eq!(refused.metadata.keys().collect::<Vec<_>>(), ["stored"]);
    refused.metadata["stored"].clone()
}

fn lifetime(row: &FeatureRow) -> Option<i64> {
    Some(in_millis(row.expire_time.as_ref()?) - in_millis(row.write_time.as_ref().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_takes_the_records_place_and_merge_keeps_what_it_does_not_give() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let first = FeatureRecord {
            model_version: "v1".into(),
            ttl: Some(seconds(100)),
            ..record("R", [("a", double(1.0)), ("b", double(2.0))])
        };
        put(&mut client, first.clone()).await;
        // UNSPECIFIED is REPLACE.
        for write_mode in [WriteMode::Unspecified, WriteMode::Replace] {
            put(&mut client, first.clone()).await;
            put(&mut client, FeatureRecord { write_mode: write_mode.into(), ..record("R", [("c", double(3.0))]) })
                .await;
            let row = stands(&mut client, "R").await;
            assert_eq!((row.features.len(), &*row.model_version), (1, ""), "{}", pair.name());
            assert_eq!(lifetime(&row), Some(WEEK), "{}", pair.name());
        }

        put(&mut client, first).await;
        let before = stands(&mut client, "R").await;
        let written = put(&mut client, merge(record("R", [("b", double(-2.0)), ("c", double(3.0))]))).await;
        let row = stands(&mut client, "R").await;
        let merged = features([("a", double(1.0)), ("b", double(-2.0)), ("c", double(3.0))]);
        assert_eq!((&row.features, &*row.model_version), (&merged, "v1"), "{}", pair.name());
        assert_eq!((row.expire_time, written.expire_time), (before.expire_time, before.expire_time), "{}", pair.name());
        assert!(row.revision > before.revision && written.revision == row.revision, "{}", pair.name());

        // What it gives is set, features or not.
        let given = FeatureRecord { model_version: "v2".into(), ttl: Some(seconds(1000)), ..record("R", []) };
        put(&mut client, merge(given)).await;
        let row = stands(&mut client, "R").await;
        assert_eq!((&row.features, &*row.model_version), (&merged, "v2"), "{}", pair.name());
        assert_eq!(lifetime(&row), Some(1_000_000), "{}", pair.name());
        put(&mut client, merge(FeatureRecord { never_expires: true, ..record("R", []) })).await;
        assert_eq!(stands(&mut client, "R").await.expire_time, None, "{}", pair.name());
        put(&mut client, merge(record("R", []))).await;
        assert_eq!(stands(&mut client, "R").await.expire_time, None, "{}", pair.name());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn merge_on_no_live_record_creates_one() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let old = FeatureRecord { model_version: "old".into(), ..record("DELETED", [("old", double(1.0))]) };
        put(&mut client, old).await;
        client.delete_features(delete(["DELETED"])).await.unwrap();
        put_expired(&mut client, "EXPIRED").await;
        for id in ["ABSENT", "DELETED", "EXPIRED"] {
            let written = put(&mut client, merge(record(id, [("new", double(1.0))]))).await;
            assert_eq!(written.outcome(), WriteOutcome::Written, "{} {id}", pair.name());
            let row = stands(&mut client, id).await;
            assert_eq!(row.features, features([("new", double(1.0))]), "{} {id}", pair.name());
            assert_eq!((&*row.model_version, lifetime(&row)), ("", Some(WEEK)), "{} {id}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_lives_from_its_write_on_as_long_as_its_ttl_says() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        // An old event time does not shorten a life, nor does a coming one lengthen it.
        for event_time in [None, Some(timestamp(1)), Some(timestamp(4_000_000_000))] {
            let of = |ttl, never_expires| FeatureRecord { ttl, never_expires, event_time, ..record("R", []) };
            client.delete_features(delete(["R"])).await.unwrap();
            let cases = [
                (of(None, false), Some(WEEK)),
                (of(Some(millis(90_500)), false), Some(90_500)),
                (of(None, true), None),
                (of(None, false), Some(WEEK)),
            ];
            for (record, wanted) in cases {
                let written = put(&mut client, record).await;
                let row = stands(&mut client, "R").await;
                assert_eq!(lifetime(&row), wanted, "{} {event_time:?}", pair.name());
                assert_eq!((written.expire_time, written.revision), (row.expire_time, row.revision), "{}", pair.name());
                match event_time {
                    Some(at) => assert_eq!(row.event_time, Some(at), "{}", pair.name()),
                    None => assert_eq!(row.event_time, row.write_time, "{}", pair.name()),
                }
                assert!(row.features.is_empty() && row.status() == RowStatus::Found, "{}", pair.name());
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_live_record_with_a_newer_event_time_makes_a_write_stale() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let at = |millis: i64, number| FeatureRecord {
            event_time: Some(prost_types::Timestamp {
                seconds: millis / 1000,
                nanos: (millis % 1000) as i32 * 1_000_000,
            }),
            ..record("R", [("a", double(number))])
        };
        let future = 4_000_000_000_000;
        let first = put(&mut client, at(future, 1.0)).await;
        for older in [at(future - 1, 2.0), at(1, 2.0), merge(at(future - 1, 2.0))] {
            let skipped = put(&mut client, older).await;
            assert_eq!(skipped.outcome(), WriteOutcome::SkippedStale, "{}", pair.name());
            assert_eq!((skipped.revision, skipped.expire_time), (first.revision, first.expire_time), "{}", pair.name());
            let row = stands(&mut client, "R").await;
            assert_eq!((row.revision, &row.features["a"]), (first.revision, &double(1.0)), "{}", pair.name());
        }
        // An equal time is not older; no time is the later of the clock and the stored one.
        let equal = put(&mut client, at(future, 3.0)).await;
        assert_eq!(equal.outcome(), WriteOutcome::Written, "{}", pair.name());
        assert!(equal.revision > first.revision, "{}", pair.name());
        assert_eq!(put(&mut client, record("R", [("a", double(4.0))])).await.outcome(), WriteOutcome::Written);
        let row = stands(&mut client, "R").await;
        assert_eq!(row.event_time.as_ref().map(in_millis), Some(future), "{}", pair.name());
        assert_eq!(row.features["a"], double(4.0), "{}", pair.name());

        client.delete_features(delete(["R"])).await.unwrap();
        put_expired(&mut client, "EXPIRED").await;
        for id in ["R", "EXPIRED"] {
            let old = FeatureRecord { entity_id: id.into(), ..at(1, 5.0) };
            assert_eq!(put(&mut client, old).await.outcome(), WriteOutcome::Written, "{} {id}", pair.name());
            let row = stands(&mut client, id).await;
            assert_eq!(row.event_time.as_ref().map(in_millis), Some(1), "{} {id}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_revision_writes_only_onto_that_revision_and_tells_the_stored_one() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let on = |revision, id: &str| FeatureRecord { if_revision: Some(revision), ..record(id, [("a", double(1.0))]) };
        assert_eq!(mismatch(&mut client, on(1, "R")).await, "0", "{}", pair.name());
        assert_eq!(row(&mut client, strong(["R"])).await.revision, 0, "{}", pair.name());
        let first = put(&mut client, on(0, "R")).await;
        let stored = first.revision.to_string();
        for wrong in [0, 1, first.revision - 1, first.revision + 1, i64::MAX] {
            assert_eq!(mismatch(&mut client, on(wrong, "R")).await, stored, "{}", pair.name());
        }
        // It is checked before the event time.
        let older = FeatureRecord { event_time: Some(timestamp(1)), ..on(0, "R") };
        assert_eq!(mismatch(&mut client, older.clone()).await, stored, "{}", pair.name());
        assert_eq!(stands(&mut client, "R").await.revision, first.revision, "{}", pair.name());
        let stale = put(&mut client, FeatureRecord { if_revision: Some(first.revision), ..older }).await;
        assert_eq!(stale.outcome(), WriteOutcome::SkippedStale, "{}", pair.name());
        let second = put(&mut client, on(first.revision, "R")).await;
        assert!(second.revision > first.revision, "{}", pair.name());

        // Deleted and expired records are none.
        let deleted = client.delete_features(delete(["R"])).await.unwrap().into_inner().results[0].revision;
        let expired = put_expired(&mut client, "EXPIRED").await;
        for (id, revision) in BTreeMap::from([("R", deleted), ("EXPIRED", expired)]) {
            assert_eq!(mismatch(&mut client, on(revision, id)).await, "0", "{} {id}", pair.name());
            assert!(put(&mut client, on(0, id)).await.revision > revision, "{} {id}", pair.name());
        }
        server.stop().await;
    }
}
