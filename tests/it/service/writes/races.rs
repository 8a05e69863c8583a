//! Writes of one record at the same time: each is atomic in L2.

use tokio::task::JoinSet;
use tonic::Code;

use super::{merge, stands};
use crate::harness::{client::*, server::Pair};

const WRITERS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn merges_at_the_same_time_lose_no_feature() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let mut writers = JoinSet::new();
        for i in 0..WRITERS {
            let mut client = client.clone();
            writers.spawn(async move {
                let own = merge(record("R", [(&*format!("f{i}"), double(i as f64))]));
                match i % 2 {
                    0 => put(&mut client, own).await.revision,
                    _ => {
                        let message = BulkUpsertRequest { all_results: true, ..chunk(1, [own]) };
                        bulk(&mut client, [message]).await.0[0].results[0].revision
                    }
                }
            });
        }
        let mut revisions = writers.join_all().await;
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions.len(), WRITERS, "{}", pair.name());
        // The first read after bulk writes may come from L2.
        row(&mut client, get(["R"])).await;
        let row = stands(&mut client, "R").await;
        assert_eq!((row.features.len(), row.revision), (WRITERS, revisions[WRITERS - 1]), "{}", pair.name());
        assert!((0..WRITERS).all(|i| row.features[&format!("f{i}")] == double(i as f64)), "{}", pair.name());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_that_write_onto_one_revision_at_the_same_time_one_succeeds() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let mut stored = 0;
        for round in 0..3 {
            let mut writers = JoinSet::new();
            for i in 0..WRITERS {
                let mut client = client.clone();
                let own = FeatureRecord { if_revision: Some(stored), ..record("R", [("i", double(i as f64))]) };
                writers.spawn(async move { (i, client.upsert_features(upsert(own)).await) });
            }
            let (won, lost): (Vec<_>, Vec<_>) = writers.join_all().await.into_iter().partition(|(_, r)| r.is_ok());
            assert_eq!(won.len(), 1, "{} {round}", pair.name());
            let (i, answer) = won.into_iter().next().unwrap();
            stored = answer.unwrap().into_inner().revision;
            for (_, refused) in lost {
                let refused = Refusal::of(&refused.unwrap_err());
                assert_eq!(refused.code, Code::Aborted, "{} {round}", pair.name());
                assert_eq!(refused.metadata["stored"], stored.to_string(), "{} {round}", pair.name());
            }
            let row = stands(&mut client, "R").await;
            assert_eq!((row.revision, &row.features["i"]), (stored, &double(i as f64)), "{} {round}", pair.name());
        }
        server.stop().await;
    }
}
