//! Writes that are repeated under their request id apply once.

use tonic::Code;

use crate::harness::{client::*, server::Pair};

fn named(request_id: &str, record: FeatureRecord) -> UpsertFeaturesRequest {
    UpsertFeaturesRequest { request_id: request_id.to_owned(), ..upsert(record) }
}

async fn send(client: &mut Client, request: UpsertFeaturesRequest) -> UpsertFeaturesResponse {
    client.upsert_features(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_write_applies_once_and_answers_what_now_stands() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let create = FeatureRecord { if_revision: Some(0), ..record("R", [("a", double(1.0))]) };
        let first = send(&mut client, named("one", create.clone())).await;
        // The request id is checked before if_revision, which does not hold any more.
        let again = send(&mut client, named("one", create.clone())).await;
        assert_eq!(again, first, "{}", pair.name());
        // Another record's writes have their own ids.
        let other = FeatureRecord { entity_id: "OTHER".into(), ..create.clone() };
        assert_eq!(send(&mut client, named("one", other)).await.outcome(), WriteOutcome::Written);
        assert_eq!(row(&mut client, get(["OTHER"])).await.status(), RowStatus::Found, "{}", pair.name());

        let second = put(&mut client, record("R", [("a", double(2.0))])).await;
        let again = send(&mut client, named("one", create)).await;
        assert_eq!((again.outcome(), again.revision), (WriteOutcome::Written, second.revision), "{}", pair.name());
        for request in [get(["R"]), strong(["R"])] {
            let row = row(&mut client, request).await;
            assert_eq!((row.revision, &row.features["a"]), (second.revision, &double(2.0)), "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_stands_for_one_operation_on_one_record() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let first = record("R", [("a", double(1.0)), ("b", double(2.0))]);
        let written = send(&mut client, named("one", first.clone())).await;
        let others = [
            record("R", [("a", double(3.0)), ("b", double(2.0))]),
            record("R", [("a", double(1.0))]),
            FeatureRecord { model_version: "v2".into(), ..first.clone() },
            FeatureRecord { write_mode: WriteMode::Merge.into(), ..first.clone() },
            FeatureRecord { if_revision: Some(written.revision), ..first.clone() },
            FeatureRecord { if_revision: Some(0), ..first.clone() },
            FeatureRecord { event_time: Some(timestamp(4_000_000_000)), ..first.clone() },
            FeatureRecord { ttl: Some(seconds(60)), ..first.clone() },
            FeatureRecord { never_expires: true, ..first.clone() },
        ];
        let reused = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
        for other in others {
            let refused = Refusal::of(&client.upsert_features(named("one", other.clone())).await.unwrap_err());
            assert_eq!((refused.code, refused.reason), reused, "{} {other:?}", pair.name());
        }
        let remove = DeleteFeaturesRequest { request_id: "one".into(), ..delete(["R", "OTHER"]) };
        let results = client.delete_features(remove).await.unwrap().into_inner().results;
        let error = results[0].error.as_ref().unwrap();
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument as i32, "REQUEST_ID_REUSED"));
        assert_eq!(results[1].outcome(), WriteOutcome::NotFound, "{}", pair.name());
        // Nothing of all that was done, and the first is still known.
        for request in [get(["R"]), strong(["R"])] {
            let row = row(&mut client, request).await;
            assert_eq!((row.revision, row.features), (written.revision, first.features.clone()), "{}", pair.name());
        }
        assert_eq!(send(&mut client, named("one", first)).await, written, "{}", pair.name());
        // A refused request stands for itself too; and a delete's id is not an upsert's.
        let guarded = FeatureRecord { if_revision: Some(7), ..record("R", []) };
        client.upsert_features(named("guarded", guarded.clone())).await.unwrap_err();
        let retried = FeatureRecord { if_revision: Some(written.revision), ..guarded };
        let refused = Refusal::of(&client.upsert_features(named("guarded", retried)).await.unwrap_err());
        assert_eq!((refused.code, refused.reason), reused, "{}", pair.name());
        let remove = DeleteFeaturesRequest { request_id: "gone".into(), ..delete(["R"]) };
        client.delete_features(remove).await.unwrap();
        let refused = Refusal::of(&client.upsert_features(named("gone", record("R", []))).await.unwrap_err());
        assert_eq!((refused.code, refused.reason), reused, "{}", pair.name());
        assert_eq!(row(&mut client, get(["R"])).await.status(), RowStatus::NotFound, "{}", pair.name());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_refusal_and_a_repeated_skip_answer_the_same() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let future = FeatureRecord { event_time: Some(timestamp(4_000_000_000)), ..record("R", []) };
        let first = put(&mut client, future).await;
        let stale = named("stale", FeatureRecord { event_time: Some(timestamp(1)), ..record("R", []) });
        let guarded = named("guarded", FeatureRecord { if_revision: Some(0), ..record("R", [("a", double(1.0))]) });
        let skipped = send(&mut client, stale.clone()).await;
        assert_eq!((skipped.outcome(), skipped.revision), (WriteOutcome::SkippedStale, first.revision));
        let refused = Refusal::of(&client.upsert_features(guarded.clone()).await.unwrap_err());
        assert_eq!((refused.code, refused.metadata["stored"].clone()), (Code::Aborted, first.revision.to_string()));
        // Both would be written now.
        let deleted = client.delete_features(delete(["R"])).await.unwrap().into_inner().results[0].revision;
        let again = Refusal::of(&client.upsert_features(guarded).await.unwrap_err());
        assert_eq!((again.code, again.metadata), (refused.code, refused.metadata), "{}", pair.name());
        let again = send(&mut client, stale).await;
        assert_eq!((again.outcome(), again.revision), (WriteOutcome::SkippedStale, deleted), "{}", pair.name());
        for request in [get(["R"]), strong(["R"])] {
            let row = row(&mut client, request).await;
            assert_eq!((row.status(), row.revision), (RowStatus::NotFound, deleted), "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_repeated_after_a_delete_does_not_bring_the_record_back() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let write = named("write", record("R", [("a", double(1.0))]));
        send(&mut client, write.clone()).await;
        let remove = DeleteFeaturesRequest { request_id: "delete".into(), ..delete(["R"]) };
        let deleted = client.delete_features(remove.clone()).await.unwrap().into_inner().results;
        assert_eq!(deleted[0].outcome(), WriteOutcome::Deleted, "{}", pair.name());
        let again = send(&mut client, write).await;
        assert_eq!((again.outcome(), again.revision), (WriteOutcome::Written, deleted[0].revision), "{}", pair.name());
        assert_eq!(again.expire_time, None, "{}", pair.name());
        assert_eq!(row(&mut client, get(["R"])).await.status(), RowStatus::NotFound, "{}", pair.name());

        // And a delete that is repeated after a new write does not take that away.
        let third = put(&mut client, record("R", [("a", double(3.0))])).await;
        assert!(third.revision > deleted[0].revision, "{}", pair.name());
        let again = client.delete_features(remove).await.unwrap().into_inner().results;
        assert_eq!((again[0].outcome(), again[0].revision), (WriteOutcome::Deleted, third.revision), "{}", pair.name());
        for request in [get(["R"]), strong(["R"]), get(["R"])] {
            let row = row(&mut client, request).await;
            assert_eq!((row.status(), row.revision), (RowStatus::Found, third.revision), "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_remembered_while_it_is_among_the_last_eight_writes() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let first = named("first", record("R", [("a", double(0.0))]));
        send(&mut client, first.clone()).await;
        for i in 1..=7 {
            put(&mut client, record("R", [("a", double(f64::from(i)))])).await;
        }
        send(&mut client, first.clone()).await;
        assert_eq!(row(&mut client, get(["R"])).await.features["a"], double(7.0), "{}", pair.name());
        put(&mut client, record("R", [("a", double(8.0))])).await;
        send(&mut client, first).await;
        assert_eq!(row(&mut client, get(["R"])).await.features["a"], double(0.0), "{}", pair.name());
        server.stop().await;
    }
}
