//! What a row says about its entity, and what it then holds.

use std::collections::BTreeMap;

use tonic::Code;

use crate::harness::{
    client::*,
    server::{Pair, eventually},
};

/// OLD: version v1 of long ago. NEW: version v2 of now. EXPIRED: version v1 of long ago. DELETED. Their revisions.
async fn write(client: &mut Client) -> BTreeMap<&'static str, i64> {
    let of = |id: &str, version: &str, at: Option<i64>| FeatureRecord {
        model_version: version.into(),
        event_time: at.map(timestamp),
        ..record(id, [("a", double(1.0))])
    };
    let mut revisions = BTreeMap::new();
    revisions.insert("OLD", put(client, of("OLD", "v1", Some(1000))).await.revision);
    revisions.insert("NEW", put(client, of("NEW", "v2", None)).await.revision);
    let expiring = FeatureRecord { ttl: Some(millis(1)), ..of("EXPIRED", "v1", Some(1000)) };
    revisions.insert("EXPIRED", put(client, expiring).await.revision);
    put(client, of("DELETED", "v1", None)).await;
    let deleted = client.delete_features(delete(["DELETED"])).await.unwrap().into_inner();
    revisions.insert("DELETED", deleted.results[0].revision);
    let expired = async || row(&mut client.clone(), strong(["EXPIRED"])).await.status() == RowStatus::Expired;
    eventually("the record to expire", expired).await;
    revisions
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_statuses_that_hold_the_first_in_their_order_wins() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let revisions = write(&mut client).await;
        use RowStatus::{Error, Expired, Found, NotFound, TooOld, VersionMismatch};
        // Expected version, max_age in seconds, min_revision of all; OLD, NEW, EXPIRED, DELETED.
        let cases = [
            ("", None, None, [Found, Found, Expired, NotFound]),
            ("v1", None, None, [Found, VersionMismatch, Expired, NotFound]),
            ("v2", None, None, [VersionMismatch, Found, Expired, NotFound]),
            ("", Some(3600), None, [TooOld, Found, Expired, NotFound]),
            ("v1", Some(3600), None, [TooOld, VersionMismatch, Expired, NotFound]),
            ("v2", Some(3600), None, [VersionMismatch, Found, Expired, NotFound]),
            ("", Some(300_000_000_000), None, [Found, Found, Expired, NotFound]),
            ("v2", Some(3600), Some(i64::MAX), [Error, Error, Error, Error]),
        ];
        let ids = ["OLD", "NEW", "EXPIRED", "DELETED"];
        for (version, max_age, min_revision, wanted) in cases {
            for request in [get(ids), strong(ids)] {
                let what = format!("{} {version:?} {max_age:?} {min_revision:?}", pair.name());
                let request = GetFeaturesRequest {
                    expected_model_version: version.into(),
                    max_age: max_age.map(seconds),
                    min_revisions: min_revision
                        .into_iter()
                        .flat_map(|min| ids.map(|id| (id.to_owned(), min)))
                        .collect(),
                    feature_names: vec!["a".into(), "nope".into()],
                    ..request
                };
                let rows = rows(&mut client, request).await;
                assert_eq!(rows.iter().map(|row| row.status()).collect::<Vec<_>>(), wanted, "{what}");
                for (row, status) in rows.iter().zip(wanted) {
                    // Features only where FOUND, revision and times wherever there is a record, nothing else.
                    assert_eq!(row.features.len(), usize::from(status == Found), "{what}");
                    assert_eq!(row.missing_features.len(), usize::from(status == Found), "{what}");
                    assert_eq!(row.error.is_some(), status == Error, "{what}");
                    let id = row.entity_id.as_str();
                    assert_eq!(row.revision, if status == Error { 0 } else { revisions[id] }, "{what} {id}");
                    let is_record = !matches!(status, Error | NotFound);
                    for time in [&row.event_time, &row.write_time, &row.expire_time] {
                        assert_eq!(time.is_some(), is_record, "{what} {id}");
                    }
                    assert_eq!(row.model_version.is_empty(), !is_record, "{what} {id}");
                }
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn omit_metadata_leaves_out_times_source_and_model_version_and_nothing_else() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        write(&mut client).await;
        for request in [get(["OLD", "NEW", "EXPIRED", "DELETED", "SHORT"]), strong(["OLD", "NEW", "EXPIRED"])] {
            let request = GetFeaturesRequest {
                feature_names: vec!["a".into(), "nope".into()],
                expected_model_version: "v1".into(),
                min_revisions: [("SHORT".to_owned(), i64::MAX)].into(),
                ..request
            };
            let whole = rows(&mut client, request.clone()).await;
            let bare = rows(&mut client, GetFeaturesRequest { omit_metadata: true, ..request }).await;
            let stripped = whole.into_iter().map(|row| {
                let FeatureRow { entity_id, status, revision, features, missing_features, error, .. } = row;
                FeatureRow { entity_id, status, revision, features, missing_features, error, ..FeatureRow::default() }
            });
            assert_eq!(bare, stripped.collect::<Vec<_>>(), "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_older_than_its_min_revision_is_an_error_and_a_reached_one_is_answered() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let revisions = write(&mut client).await;
        let (new, deleted) = (revisions["NEW"], revisions["DELETED"]);
        // A revision is a time: one of the year 2001 is older than any tombstone that is kept.
        let ancient = 1_000_000_000_000_000;
        let not_reached = |stored: i64| Err(stored);
        let cases = [
            ("NEW", new, Ok(RowStatus::Found)),
            ("NEW", 0, Ok(RowStatus::Found)),
            ("NEW", new - 1, Ok(RowStatus::Found)),
            ("NEW", new + 1, not_reached(new)),
            // A tombstone satisfies like a record.
            ("DELETED", deleted, Ok(RowStatus::NotFound)),
            ("DELETED", deleted + 1, not_reached(deleted)),
            ("EXPIRED", revisions["EXPIRED"], Ok(RowStatus::Expired)),
            // What was written at a revision this old may have been deleted and forgotten since.
            ("GONE", ancient, Ok(RowStatus::NotFound)),
            ("GONE", new, not_reached(0)),
        ];
        for (id, min, wanted) in cases {
            for request in [get([id, "OLD"]), strong([id, "OLD"])] {
                let what = format!("{} {id} {min}", pair.name());
                let min_revisions = [(id.to_owned(), min), ("NOT ASKED FOR".to_owned(), i64::MAX)].into();
                let rows = rows(&mut client, GetFeaturesRequest { min_revisions, ..request }).await;
                assert_eq!(rows[1].status(), RowStatus::Found, "{what}");
                match wanted {
                    Ok(status) => assert_eq!((rows[0].status(), &rows[0].error), (status, &None), "{what}"),
                    Err(stored) => {
                        assert_eq!(rows[0].status(), RowStatus::Error, "{what}");
                        let error = rows[0].error.as_ref().unwrap();
                        assert_eq!(error.code, Code::FailedPrecondition as i32, "{what}");
                        assert_eq!(error.reason, "REVISION_NOT_REACHED", "{what}");
                        assert_eq!(error.metadata["stored"], stored.to_string(), "{what}");
                    }
                }
            }
        }
        // Every row of a call may be one: the call is OK all the same.
        let min_revisions = [("NEW".to_owned(), new + 1)].into();
        let only = row(&mut client, GetFeaturesRequest { min_revisions, ..get(["NEW"]) }).await;
        assert_eq!(only.status(), RowStatus::Error, "{}", pair.name());
        server.stop().await;
    }
}
