//! GetFeatures: rows, their order and their statuses.

mod deadlines;
mod large;
mod order;
mod statuses;
#[cfg(feature = "mongodb")]
mod unreadable;

use crate::harness::{
    client::*,
    server::{Pair, eventually},
};

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

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_lost_is_read_from_l2_and_then_from_l1_again() {
    for pair in [Pair::new(true, false), Pair::real()] {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let written = put(&mut client, record("A", [("score", double(0.85))])).await;
        let deleted = {
            put(&mut client, record("GONE", [])).await;
            client.delete_features(delete(["GONE"])).await.unwrap().into_inner().results[0].revision
        };
        ["A", "GONE"].iter().for_each(|id| pair.evict(id));
        for source in [Source::L2, Source::L1] {
            let read = client.get_features(get(["A", "GONE", "NEVER"])).await.unwrap().into_inner();
            assert!(!read.degraded, "{}", pair.name());
            let told: Vec<_> = read.rows.iter().map(|row| (row.status(), row.source(), row.revision)).collect();
            let not_found = RowStatus::NotFound;
            let wanted =
                [(RowStatus::Found, source, written.revision), (not_found, source, deleted), (not_found, source, 0)];
            assert_eq!(told, wanted, "{}", pair.name());
            assert_eq!(read.rows[0].features, features([("score", double(0.85))]), "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strong_reads_are_answered_by_l2_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let written = put(&mut client, record("A", [("score", double(0.85))])).await;
        for row in rows(&mut client, strong(["A", "GONE", "A"])).await {
            assert_eq!(row.source(), Source::L2, "{}", pair.name());
            assert_eq!(row.revision, if row.entity_id == "A" { written.revision } else { 0 }, "{}", pair.name());
        }
        // UNSPECIFIED is CACHED.
        for consistency in [Consistency::Unspecified, Consistency::Cached] {
            let read = GetFeaturesRequest { consistency: consistency.into(), ..get(["A"]) };
            assert_eq!(row(&mut client, read).await.source(), Source::L1, "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_past_its_expire_time_is_expired_in_both_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let record = FeatureRecord {
            model_version: "v1".into(),
            ttl: Some(seconds(1)),
            ..record("A", [("score", double(0.85))])
        };
        let written = put(&mut client, record).await;
        let live = row(&mut client, get(["A"])).await;
        assert_eq!((live.status(), live.source()), (RowStatus::Found, Source::L1), "{}", pair.name());
        // The live entry lapses with the record, so L2 is asked once; from then on L1 says so itself.
        let expired = async || {
            let row = row(&mut client.clone(), get(["A"])).await;
            row.status() == RowStatus::Expired && row.source() == Source::L2
        };
        eventually("L2 to say that the record has expired", expired).await;
        let asked = async |client: &mut Client| {
            let l2 = client.info(InfoRequest {}).await.unwrap().into_inner().l2.unwrap();
            l2.hits + l2.misses
        };
        let before = asked(&mut client).await;
        let from_l1 = row(&mut client, get(["A"])).await;
        assert_eq!(from_l1.source(), Source::L1, "{}", pair.name());
        assert_eq!(asked(&mut client).await, before, "{}", pair.name());
        pair.evict("A");
        let from_l2 = row(&mut client, if pair.redis.is_some() { get(["A"]) } else { strong(["A"]) }).await;
        assert_eq!(from_l2.source(), Source::L2, "{}", pair.name());
        for row in [from_l1, from_l2] {
            assert_eq!((row.status(), row.revision), (RowStatus::Expired, written.revision), "{}", pair.name());
            assert_eq!((&*row.model_version, row.expire_time), ("v1", written.expire_time), "{}", pair.name());
            assert!(row.event_time.is_some() && row.write_time.is_some() && row.features.is_empty());
        }
        server.stop().await;
    }
}
