//! L1 behind sentinels: who the master is, and what its successor holds.

use featurestore::cache::*;

use super::*;

/// Probes until it answers; gives what it found.
async fn found(cache: &dyn Cache) -> Probe {
    let mut found = None;
    eventually("a probe to succeed", async || {
        found = cache.probe_any(EPOCH, soon()).await.ok();
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
    assert_eq!(found(&*cache).await, Probe::Intact);
    sentinels.fail_over(1);
    // Nobody asks the one of old for long: a write is refused there, and a probe sees its role.
    eventually("the new master to be used", async || {
        cache.probe_any(EPOCH, soon()).await == Ok(Probe::Intact) && sentinels.servers[1].calls("eval") > 0
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
    assert_eq!(found(&*cache).await, Probe::Intact);
    sentinels.servers[0].kill();
    let unavailable = |result: &Result<_, CacheError>| matches!(result, Err(CacheError::Unavailable(_)));
    assert!(unavailable(&only(cache.get(&[key("a")], soon()).await)));
    assert!(cache.probe_any(EPOCH, soon()).await.is_err());
    sentinels.until_promoted(1);
    assert!(unavailable(&only(cache.get(&[key("a")], soon()).await)), "a new master, but nobody looked");
    assert_eq!(found(&*cache).await, Probe::Intact);
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    // Two servers that begin now agree.
    assert_eq!(found(&unprobed_of(&sentinels.url())).await, Probe::Intact);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_of_the_sentinels_convinces_nobody() {
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let cache = redis_of(&sentinels.url()).await;
    warm(&*cache, &key("a"), record(5)).await;
    for (silent, told) in [(1..3, "1 of 3 sentinels answer, 1 name a master"), (0..3, "0 of 3 sentinels answer")] {
        sentinels.freeze(silent.clone());
        for cache in [&*cache, &unprobed_of(&sentinels.url())] {
            let mut error = None;
            // On a busy machine the one that answers may be late too.
            eventually("the probe to fail of it", async || {
                error = cache.probe_any(EPOCH, soon()).await.err();
                error.as_ref().is_some_and(|error| error.to_string().contains(told))
            })
            .await;
            assert!(matches!(error, Some(CacheError::Unavailable(_))), "{error:?}");
            let read = only(cache.get(&[key("a")], soon()).await);
            assert!(matches!(read, Err(CacheError::Unavailable(_))), "{read:?}");
        }
        sentinels.thaw(silent);
        assert_eq!(found(&*cache).await, Probe::Intact);
        assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    }
    // One that was configured alone is all there are.
    sentinels.freeze(1..3);
    let (first, rest) = sentinels.url().split_once(',').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let alone = unprobed_of(&format!("{first}/{}", rest.split_once('/').unwrap().1));
    assert_eq!(found(&alone).await, Probe::Intact);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_misses_its_replicas_is_not_used() {
    let server = tokio::task::spawn_blocking(RedisServer::start).await.unwrap();
    let cache = redis_at(&server).await;
    warm(&*cache, &key("a"), record(5)).await;
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let error = cache.probe_any(EPOCH, soon()).await.unwrap_err().to_string();
    assert!(error.contains("NOREPLICAS"), "{error}");
    let read = only(cache.get(&[key("a")], soon()).await);
    assert!(matches!(read, Err(CacheError::Unavailable(_))), "{read:?}");
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_eq!(get(&*cache, &key("a")).await, Some(record(5)));
    // A full memory says nothing of who the master is.
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn a_master_that_no_sentinel_knows_is_unavailable() {
    let sentinels = empty_sentinels().await;
    let cache = unprobed_of(&sentinels.url().replace("/main", "/other"));
    let error = cache.probe_any(EPOCH, soon()).await.unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
    assert_eq!(unprobed_of(&sentinels.url()).info().kind, "redis-sentinel");
}
