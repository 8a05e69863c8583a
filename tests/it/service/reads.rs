//! GetFeatures: rows, their order and their statuses.

use crate::harness::{client::*, server::Pair};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_from_l1_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let written = client.upsert_features(upsert(record("CUST12345", [("score", double(0.85))]))).await.unwrap();
        let written = written.into_inner();
        assert!(written.cached, "{}", pair.name());
        let read = client.get_features(get(["CUST12345"])).await.unwrap().into_inner();
        assert!(!read.degraded, "{}", pair.name());
        let row = &read.rows[0];
        assert_eq!(row.status(), RowStatus::Found);
        assert_eq!(row.source(), Source::L1, "{}", pair.name());
        assert_eq!(row.revision, written.revision);
        assert_eq!(row.features, features([("score", double(0.85))]));
        server.stop().await;
    }
}
