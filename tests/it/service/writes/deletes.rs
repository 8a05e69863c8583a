//! DeleteFeatures.

use super::{put_expired, stands};
use crate::harness::{client::*, server::Pair};

async fn remove<const N: usize>(client: &mut Client, ids: [&str; N]) -> Vec<WriteResult> {
    client.delete_features(delete(ids)).await.unwrap().into_inner().results
}

#[tokio::test(flavor = "multi_thread")]
async fn every_id_is_answered_in_its_place_and_equal_ids_equally() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let a = put(&mut client, record("A", [("a", double(1.0))])).await;
        let b = put(&mut client, record("B", [])).await;
        let expired = put_expired(&mut client, "EXPIRED").await;
        let results = remove(&mut client, ["A", "GONE", "B", "EXPIRED", "A", "GONE"]).await;
        let ids: Vec<_> = results.iter().map(|result| (result.index, result.entity_id.as_str())).collect();
        assert_eq!(ids, [(0, "A"), (1, "GONE"), (2, "B"), (3, "EXPIRED"), (4, "A"), (5, "GONE")], "{}", pair.name());
        let (deleted, not_found) = (WriteOutcome::Deleted, WriteOutcome::NotFound);
        let outcomes: Vec<_> = results.iter().map(|result| result.outcome()).collect();
        assert_eq!(outcomes, [deleted, not_found, deleted, not_found, deleted, not_found], "{}", pair.name());
        assert!(results[0].revision > a.revision && results[2].revision > b.revision, "{}", pair.name());
        assert_eq!((results[1].revision, results[3].revision), (0, expired), "{}", pair.name());
        assert_eq!(results[4], WriteResult { index: 4, ..results[0].clone() }, "{}", pair.name());
        assert_eq!(results[5], WriteResult { index: 5, ..results[1].clone() }, "{}", pair.name());
        assert!(results.iter().all(|result| result.error.is_none() && result.cached), "{results:?}");

        // At once, from both tiers, with the tombstone's revision.
        for (place, id) in [(0, "A"), (2, "B")] {
            let row = stands(&mut client, id).await;
            assert_eq!((row.status(), row.revision), (RowStatus::NotFound, results[place].revision), "{}", pair.name());
            assert!(row.features.is_empty() && row.write_time.is_none() && row.expire_time.is_none());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_finds_nothing_and_a_repeated_one_answers_the_same() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        put(&mut client, record("A", [])).await;
        put(&mut client, record("B", [])).await;
        let request = DeleteFeaturesRequest { request_id: "retry".into(), ..delete(["A", "B", "GONE"]) };
        let first = client.delete_features(request.clone()).await.unwrap().into_inner().results;
        let again = client.delete_features(request).await.unwrap().into_inner().results;
        assert_eq!(again, first, "{}", pair.name());
        assert_eq!(first[1].outcome(), WriteOutcome::Deleted, "{}", pair.name());
        let second = remove(&mut client, ["A"]).await;
        assert_eq!(second[0].outcome(), WriteOutcome::NotFound, "{}", pair.name());
        assert_eq!(second[0].revision, first[0].revision, "{}", pair.name());
        assert_eq!(stands(&mut client, "A").await.revision, first[0].revision, "{}", pair.name());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_grow_over_deletes_and_new_beginnings() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let mut last = 0;
        for round in 0..5 {
            let written = put(&mut client, record("R", [("round", double(f64::from(round)))])).await;
            assert!(written.revision > last, "{} {round}", pair.name());
            let deleted = remove(&mut client, ["R"]).await;
            assert!(deleted[0].revision > written.revision, "{} {round}", pair.name());
            last = deleted[0].revision;
        }
        // Other views are other records.
        let elsewhere = UpsertFeaturesRequest { feature_view: "other".into(), ..upsert(record("R", [])) };
        client.upsert_features(elsewhere).await.unwrap();
        assert_eq!(stands(&mut client, "R").await.status(), RowStatus::NotFound, "{}", pair.name());
        remove(&mut client, ["R"]).await;
        let read = GetFeaturesRequest { feature_view: "other".into(), ..get(["R"]) };
        assert_eq!(row(&mut client, read).await.status(), RowStatus::Found, "{}", pair.name());
        server.stop().await;
    }
}
