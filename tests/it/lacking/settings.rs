//! What does not keep L1 from being used and is wrong all the same: persistence, no eviction, full memory.

use featurestore::{
    cache::{Cache as _, CacheKey, CacheValue, Effect, Epoch, Fill, PermitId, Probe, Settle, redis::*},
    record::{EntityId, FeatureView, RecordKey, Revision},
};
use tokio::time::Instant as Moment;

use super::*;

fn problem(name: &str) -> String {
    format!("featurestore_l1_problem{{problem=\"{name}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn persistence_and_a_lack_of_eviction_are_warned_of_each_time_and_shown_until_they_are_mended() {
    let mut redis = RedisServer::start_with(&["--save", "900 1", "--maxmemory", "100mb"]);
    let server = serve(&redis.url());
    until_used(&server).await;
    let (saves, evicts) = (["WARN", "Redis persists (save 900 1)"], ["WARN", "evicts nothing", "allkeys-lru"]);
    for words in [&saves[..], &evicts] {
        until_logged(&server, words, 1).await;
    }
    let shown =
        async || [metric(&server, &problem("persistence")).await, metric(&server, &problem("no_eviction")).await];
    assert_eq!(shown().await, [1.0, 1.0]);
    // Mended, and made again, while it runs.
    for setting in [["save", ""], ["maxmemory-policy", "allkeys-lru"]] {
        assert_eq!(redis.cli(&["CONFIG", "SET", setting[0], setting[1]]), "OK");
    }
    eventually("it to be over", async || shown().await == [0.0, 0.0]).await;
    assert_eq!(redis.cli(&["CONFIG", "SET", "appendonly", "yes"]), "OK");
    until_logged(&server, &["WARN", "Redis persists (appendonly yes)"], 1).await;
    assert_eq!(shown().await, [1.0, 0.0]);
    assert_eq!(redis.cli(&["CONFIG", "SET", "appendonly", "no"]), "OK");
    // Another run of Redis with the old settings.
    redis.restart();
    until_logged(&server, &saves, 2).await;
    until_logged(&server, &evicts, 2).await;
    until_used(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_memory_is_always_full_is_named_and_starts_no_new_epochs() {
    for policy in ["noeviction", "allkeys-lru"] {
        let redis = RedisServer::start_with(&["--maxmemory", "1", "--maxmemory-policy", policy]);
        let server = serve(&redis.url());
        until_bypassed(&server, &["WARN", "memory is full", "raise maxmemory"]).await;
        assert_eq!(metric(&server, &problem("memory_full")).await, 1.0, "{policy}");
        assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
        until_used(&server).await;
        // The one in which L1 is used for the first time, and one for a write that L1 was not told of.
        assert!(new_epochs(&server) <= 2, "{policy}: {}", server.log());
        // Full later: hits go on, and it is shown.
        assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
        eventually("it to be shown", async || metric(&server, &problem("memory_full")).await == 1.0).await;
        assert_eq!(lines(&server, &["The memory of Redis is full"]), 2, "{policy}: {}", server.log());
    }
}

#[tokio::test]
async fn every_policy_that_evicts_makes_room_for_our_entries() {
    let key = |n: usize| {
        let view = FeatureView::parse("v").unwrap();
        CacheKey::new(Epoch(1), &RecordKey { view, entity_id: EntityId::parse(&n.to_string()).unwrap() })
    };
    let soon = || Moment::now() + Duration::from_secs(10);
    let redis = RedisServer::start();
    let cache = RedisCache::new(&RedisConfig::parse(&redis.url()).unwrap()).unwrap();
    let Ok(Probe::Another { found, .. }) = cache.probe(Epoch(1), None, soon()).await else { panic!("no L1") };
    assert_eq!(cache.probe(Epoch(1), Some(&found), soon()).await, Ok(Probe::Intact));
    for policy in [
        "allkeys-lru",
        "allkeys-lfu",
        "allkeys-random",
        "volatile-lru",
        "volatile-lfu",
        "volatile-random",
        "volatile-ttl",
    ] {
        let stats = || {
            let info = redis.cli(&["INFO", "stats"]);
            let line = info.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        redis.cli(&["FLUSHALL"]);
        redis.cli(&["CONFIG", "RESETSTAT"]);
        let used = redis.cli(&["INFO", "memory"]);
        let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse::<u64>();
        let limit = (used.unwrap() + (512 << 10)).to_string();
        for setting in [["maxmemory-policy", policy], ["maxmemory", &limit]] {
            assert_eq!(redis.cli(&["CONFIG", "SET", setting[0], setting[1]]), "OK");
        }
        let mut installed = 0;
        for batch in 0..60 {
            let keys: Vec<CacheKey> = (0..200).map(|n| key(batch * 200 + n)).collect();
            let asks: Vec<_> = keys.iter().map(|key| (key.clone(), PermitId([1; 8]))).collect();
            cache.acquire(&asks, soon()).await;
            let settles = keys.iter().map(|key| Settle {
                key: key.clone(),
                revision: Revision(1),
                fill: Some((
                    PermitId([1; 8]),
                    Fill { value: CacheValue::Absent(Revision(1)), ttl: Duration::from_secs(600) },
                )),
            });
            let settled = cache.settle(&settles.collect::<Vec<_>>(), soon()).await;
            installed += settled.iter().filter(|effect| **effect == Ok(Effect::Installed)).count();
        }
        // An entry may be evicted between its two steps.
        assert!(installed > 9000 && stats() > 500, "{policy}: {installed} installed, {} evicted", stats());
        assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    }
}
