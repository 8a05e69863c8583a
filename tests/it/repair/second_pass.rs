//! The second pass, for a failover of Redis that lost what the first one told it.

use std::sync::Arc;

use featurestore::{
    cache::redis::{RedisCache, RedisConfig},
    record::Clock,
    store::mongodb::{MongoConfig, MongoStore},
    tiered::{Consistency, OnL1Loss, ReadRequest, Settings, Tiered, repair::RepairSettings, trust::L1Use},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    harness::{mongod::Mongod, redis::RedisServer},
    store_contract::fixture,
};

#[tokio::test(flavor = "multi_thread")]
async fn it_removes_what_a_failover_of_redis_brought_back() {
    let (mongod, redis) = (Mongod::shared_replica_set(), RedisServer::start());
    let config = MongoConfig::new(mongod.uri(), mongod.settled_database(), fixture::rules());
    let store = Arc::new(MongoStore::new(config).unwrap());
    let cache = Arc::new(RedisCache::new(&RedisConfig::parse(&redis.url()).unwrap()).unwrap());
    let settings = Settings {
        l1_ttl: Duration::from_secs(3600),
        l1_timeout: Duration::from_millis(500),
        on_l1_loss: OnL1Loss::Accept,
        tombstone_ttl: Duration::from_secs(24 * 3600),
        read_deadline: Duration::from_secs(5),
        write_deadline: Duration::from_secs(10),
        l1_slow: Duration::from_secs(10),
        max_l2_reads: 48,
        max_writes: 4096,
        repair: RepairSettings { second_pass: Duration::from_secs(3) },
    };
    let tiered = Tiered::new(cache, store, settings, Clock::system());
    let end = CancellationToken::new();
    let tasks = [tokio::spawn(tiered.clone().watch(end.clone())), tokio::spawn(tiered.clone().repair(end.clone()))];
    eventually("L1 to be trusted and repaired", async || {
        matches!(tiered.trust().l1(), L1Use::Trusted(_)) && tiered.repairs().reading().leading
    })
    .await;

    let key = fixture::key("a");
    let write = || fixture::put(&key).0;
    let old = tiered.upsert(write()).await.unwrap();
    let entry = redis.cli(&["KEYS", "*:contract:a *"]);
    assert_eq!(redis.cli(&["COPY", &entry, "kept"]), "1");
    let new = tiered.upsert(write()).await.unwrap();
    assert!(old.cached && new.cached);
    // As two changes of one record may be made good at once.
    tiered.upsert(fixture::put(&fixture::key("b")).0).await.unwrap();
    eventually("the first pass over both", async || tiered.repairs().reading().written >= 2).await;
    let dropped = tiered.repairs().reading().dropped;
    // What a replica that lagged behind would answer with.
    assert_eq!(redis.cli(&["COPY", "kept", &entry, "REPLACE"]), "1");
    let read = async || {
        let request = ReadRequest {
            keys: vec![key.clone()],
            consistency: Consistency::Cached,
            min_revisions: Default::default(),
            deadline: tokio::time::Instant::now() + Duration::from_secs(5),
        };
        tiered.read(&request).await.rows.remove(0).unwrap().state.revision()
    };
    assert_eq!(read().await, old.receipt.revision, "the test brings nothing back");
    let start = Instant::now();
    eventually("the second pass", async || read().await == new.receipt.revision).await;
    println!("healed after {:?}", start.elapsed());
    assert!(tiered.repairs().reading().dropped > dropped);
    end.cancel();
    for task in tasks {
        task.await.unwrap();
    }
    tiered.store().close().await;
}
