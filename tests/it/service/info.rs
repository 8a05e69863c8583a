//! Info: what runs, and what it did, told from memory.

use crate::harness::{
    client::*,
    server::{Pair, Server},
};

async fn info(client: &mut Client) -> InfoResponse {
    client.info(InfoRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_misses_are_those_of_the_reads_on_every_pair_of_tiers() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let before = info(&mut client).await;
        let (l1, l2) = (before.l1.unwrap(), before.l2.unwrap());
        assert_eq!((l1.hits, l1.misses, l1.hit_ratio), (0, 0, 0.0), "{}", pair.name());
        assert_eq!((l2.hits, l2.misses, l2.hit_ratio), (0, 0, 0.0), "{}", pair.name());

        put(&mut client, record("A", [("score", double(0.5))])).await;
        // L1: 1 hit, 2 misses; L2: 2 misses. A duplicate is looked up once.
        rows(&mut client, get(["A", "A", "GONE", "GONE TOO"])).await;
        // L1: 3 hits, two of them negative entries.
        rows(&mut client, get(["A", "GONE", "GONE TOO"])).await;
        // L2: 1 hit, 1 miss.
        rows(&mut client, strong(["A", "GONE"])).await;

        let after = info(&mut client).await;
        let (l1, l2) = (after.l1.unwrap(), after.l2.unwrap());
        assert_eq!((l1.hits, l1.misses, l1.errors), (4, 2, 0), "{}", pair.name());
        assert_eq!((l2.hits, l2.misses, l2.errors), (1, 3, 0), "{}", pair.name());
        assert_eq!((l1.hit_ratio, l2.hit_ratio), (4.0 / 6.0, 0.25), "{}", pair.name());
        for tier in [&l1, &l2] {
            let nanos = |duration: &Option<prost_types::Duration>| {
                duration.as_ref().map(|duration| duration.seconds * 1_000_000_000 + i64::from(duration.nanos)).unwrap()
            };
            let (p50, p99) = (nanos(&tier.latency_p50), nanos(&tier.latency_p99));
            assert!(0 < p50 && p50 <= p99, "{} {tier:?}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_names_the_kinds_and_states_of_the_tiers_and_where_they_are() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let info = info(&mut server.client().await).await;
        let (l1, l2) = (info.l1.unwrap(), info.l2.unwrap());
        assert_eq!(l1.kind, if pair.redis.is_some() { "redis" } else { "memory" });
        assert_eq!(l2.kind, if pair.mongod.is_some() { "mongodb" } else { "embedded" });
        assert_eq!((l1.state(), l2.state()), (TierState::Healthy, TierState::Healthy), "{}", pair.name());
        if let Some(redis) = &pair.redis {
            assert!(l1.address.contains(&format!("127.0.0.1:{}", redis.port())), "{}", l1.address);
        }
        if let Some(mongod) = pair.mongod {
            assert!(l2.address.contains(&format!("127.0.0.1:{}", mongod.port())), "{}", l2.address);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_tells_a_credential() {
    // Neither is there: Info asks no backend.
    let settings = [
        ("REDIS_URL", "redis://canary-user:canary-password@127.0.0.1:1/0"),
        ("MONGO_URI", "mongodb://canary-user:canary-password@127.0.0.1:1/?authSource=canary-source"),
    ];
    let server = Server::start_at_once(&settings).await;
    let info = info(&mut server.client().await).await;
    let (l1, l2) = (info.l1.unwrap(), info.l2.unwrap());
    assert!(l1.address.contains("127.0.0.1:1") && l2.address.contains("127.0.0.1:1"), "{l1:?} {l2:?}");
    assert!(!format!("{l1:?} {l2:?}").contains("canary"), "{l1:?} {l2:?}");
    assert_ne!(l1.state(), TierState::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_the_limits_the_ttls_and_the_version() {
    let settings = [
        ("FEATURESTORE_LIMITS_MAX_ENTITIES", "11"),
        ("FEATURESTORE_LIMITS_MAX_FEATURES", "12"),
        ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "13KiB"),
        ("FEATURESTORE_LIMITS_MAX_BULK_RECORDS", "14"),
        ("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "15MiB"),
        ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "17MiB"),
        ("FEATURESTORE_TTL_DEFAULT", "90s"),
        ("FEATURESTORE_L1_TTL", "91s"),
    ];
    let server = Server::start(&settings).await;
    let info = info(&mut server.client().await).await;
    let limits = Limits {
        max_entities: 11,
        max_features: 12,
        max_entity_id_bytes: 512,
        max_record_bytes: 13 << 10,
        max_bulk_records: 14,
        max_request_bytes: 15 << 20,
        max_response_bytes: 17 << 20,
    };
    assert_eq!(info.limits, Some(limits));
    assert_eq!((info.default_ttl, info.cache_ttl), (Some(seconds(90)), Some(seconds(91))));
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert!(!info.git_commit.is_empty() && !info.draining);
    assert!(info.uptime.is_some_and(|uptime| uptime.seconds >= 0 && (uptime.seconds, uptime.nanos) > (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_that_the_server_is_draining() {
    let server = Server::start(&[("FEATURESTORE_DRAIN_DELAY", "60s")]).await;
    let mut client = server.client().await;
    assert!(!info(&mut client).await.draining);
    server.begin_shutdown();
    crate::harness::server::eventually("the drain to be told", async || info(&mut client.clone()).await.draining).await;
}
