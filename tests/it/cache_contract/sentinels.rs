//! L1 behind sentinels: who the master is, and what its successor holds.

use featurestore::cache::*;

use super::*;
use crate::harness::server::eventually;

/// Probes until it answers; gives what it found.
async fn found(cache: &dyn Cache) -> Probe {
    let mut found = None;
    eventually("a probe to succeed", async || {
        found = cache.probe(EPOCH, soon()).await.ok();
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_outlives_a_failover_to_a_replica_that_was_up_to_date() {
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let cache = redis_of(&sentinels.url()).await;
    warm(&*cache, &key("a"), record(5)).await;
    sentinels.servers[1].until_up_for_seconds(3);
    assert_eq!(cache.probe(EPOCH, soon()).await, Ok(Probe::Intact));
    sentinels.fail_over(1);
    // Nobody asks the one of old for long: a write is refused there, and a probe sees its role.
    eventually("the new master to be used", async || {
        cache.probe(EPOCH, soon()).await == Ok(Probe::Intact) && sentinels.servers[1].calls("eval") > 0
    })
    .await;
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    warm(&*cache, &key("b"), record(6)).await;
    assert_eq!(sentinels.servers[1].cli(&["EXISTS", name(&key("b"))]), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_masters_death_nothing_is_read_until_its_successor_was_verified() {
    let mut sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let cache = redis_of(&sentinels.url()).await;
    warm(&*cache, &key("a"), record(5)).await;
    sentinels.servers[1].until_up_for_seconds(3);
    assert_eq!(cache.probe(EPOCH, soon()).await, Ok(Probe::Intact));
    sentinels.servers[0].kill();
    let unavailable = |result: &Result<_, CacheError>| matches!(result, Err(CacheError::Unavailable(_)));
    assert!(unavailable(&only(cache.get(&[key("a")], soon()).await)));
    assert!(cache.probe(EPOCH, soon()).await.is_err());
    sentinels.until_promoted(1);
    assert!(unavailable(&only(cache.get(&[key("a")], soon()).await)), "a new master, but nobody looked");
    assert_eq!(found(&*cache).await, Probe::Intact);
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    // Two servers that begin now agree.
    assert_eq!(unprobed_of(&sentinels.url()).probe(EPOCH, soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn a_master_that_no_sentinel_knows_is_unavailable() {
    let sentinels = empty_sentinels().await;
    let cache = unprobed_of(&sentinels.url().replace("/main", "/other"));
    let error = cache.probe(EPOCH, soon()).await.unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
    assert_eq!(unprobed_of(&sentinels.url()).info().kind, "redis-sentinel");
}
