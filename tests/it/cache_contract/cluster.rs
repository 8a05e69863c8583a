//! L1 in a Redis Cluster: batches over many slots, slots that move, masters that stop, fail, or come back with old data.

use std::time::Duration;

use featurestore::cache::{Acquired::*, Effect::*, Marked, *};

use super::*;
use crate::harness::server::eventually;

fn keys(count: usize) -> Vec<CacheKey> {
    (0..count).map(|n| key(&format!("k{n}"))).collect()
}

/// Fills all as a reader does, in batches.
async fn warm_all(cache: &dyn Cache, keys: &[CacheKey], revision: i64) {
    let asks: Vec<_> = keys.iter().map(|key| (key.clone(), id(1))).collect();
    assert!(cache.acquire(&asks, soon()).await.into_iter().all(|lease| lease == Ok(Lease { suspect: None })));
    let fills: Vec<_> = keys.iter().map(|key| settle(key, 1, record(revision))).collect();
    assert!(cache.settle(&fills, soon()).await.into_iter().all(|effect| effect == Ok(Installed)));
}

#[tokio::test]
async fn a_batch_over_all_masters_is_answered_in_order_by_one_pipeline_each() {
    let cluster = empty_cluster().await;
    let cache = redis_of(&cluster.url()).await;
    let keys = keys(100);
    let absent = |n: usize| n.is_multiple_of(7);
    let written: Vec<_> = (0..100).filter(|n| !absent(*n)).collect();
    let asks: Vec<_> = written.iter().map(|n| (keys[*n].clone(), id(1))).collect();
    cache.acquire(&asks, soon()).await;
    let fills: Vec<_> = written.iter().map(|n| settle(&keys[*n], 1, record(*n as i64))).collect();
    assert!(cache.settle(&fills, soon()).await.into_iter().all(|effect| effect == Ok(Installed)));
    let gets = || cluster.nodes[..3].iter().map(|node| node.calls("get")).collect::<Vec<_>>();
    let before = gets();
    let found = cache.get(&keys, soon()).await;
    for (n, found) in found.into_iter().enumerate() {
        assert_eq!(found, Ok((!absent(n)).then(|| record(n as i64))), "{n}");
    }
    let after = gets();
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "keys are at every master");
    assert_eq!(after.iter().sum::<u64>(), before.iter().sum::<u64>() + 100, "one GET a key, and nothing moved");
    assert_eq!(cache.info().kind, "redis-cluster");
}

#[tokio::test]
async fn of_a_batch_that_is_too_large_the_first_records_come_and_the_others_are_left_out() {
    const RECORDS: usize = 40;
    let large = record_of(5, &"x".repeat(3 * BATCH_BYTES / RECORDS));
    let cluster = empty_cluster().await;
    for cache in [redis_of(&cluster.url()).await, redis_at(&RedisServer::start()).await] {
        let keys = keys(RECORDS);
        for key in &keys {
            warm(&*cache, key, large.clone()).await;
        }
        for _ in 0..2 {
            let found = cache.get(&keys, soon()).await;
            let came = found.iter().take_while(|found| **found == Ok(Some(large.clone()))).count();
            // A third of them, and in a cluster one batch more at most.
            assert!((1..RECORDS - RECORDS / 4).contains(&came), "{came}");
            assert!(found[came..].iter().all(|left| *left == Err(CacheError::LeftOut)), "{came}");
        }
    }
}

#[tokio::test]
async fn foreign_keys_and_forgotten_scripts_are_handled_at_each_master() {
    let cluster = empty_cluster().await;
    let cache = redis_of(&cluster.url()).await;
    let keys = keys(30);
    warm_all(&*cache, &keys, 5).await;
    for node in &cluster.nodes[..3] {
        assert_eq!(node.cli(&["SCRIPT", "FLUSH"]), "OK");
    }
    let foreign = &cluster.nodes[cluster.master_of(name(&keys[0]))];
    foreign.cli(&["DEL", name(&keys[0])]);
    foreign.cli(&["RPUSH", name(&keys[0]), "x"]);
    let found = cache.get(&keys, soon()).await;
    assert_eq!(found[0], Ok(None));
    assert!(found[1..].iter().all(|found| *found == Ok(Some(record(5)))));
    let marks: Vec<_> = keys.iter().map(|key| (key.clone(), id(2))).collect();
    let marked = cache.mark(&marks, soon()).await;
    assert_eq!(marked[0], Ok(Marked::Overflow), "it was removed instead");
    assert!(marked[1..].iter().all(|marked| *marked == Ok(Marked::Granted)));
    let puts: Vec<_> = keys.iter().map(|key| put(key, 2, record(6))).collect();
    let put = cache.put(&puts, soon()).await;
    assert_eq!(put[0], Ok(NoEntry));
    assert!(put[1..].iter().all(|put| *put == Ok(Installed)));
}

#[tokio::test]
async fn a_slot_on_its_way_is_followed_by_every_operation() {
    let cluster = empty_cluster().await;
    let cache = redis_of(&cluster.url()).await;
    for key in [key("a"), key("b")] {
        let from = cluster.master_of(name(&key));
        let to = (from + 1) % 3;
        warm(&*cache, &key, record(5)).await;
        // What is still here is answered here, what has gone by the other: ASK.
        cluster.begin_move(name(&key), from, to);
        assert_eq!(get(&*cache, &key).await, Some(record(5)));
        cluster.carry(name(&key), from, to);
        assert_eq!(get(&*cache, &key).await, Some(record(5)));
        assert_eq!(cache.mark(&[(key.clone(), id(1))], soon()).await, [Ok(Marked::Granted)]);
        assert_eq!(cache.put(&[put(&key, 1, record(6))], soon()).await, [Ok(Installed)]);
        assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
        // From now on it is the other's: MOVED.
        cluster.end_move(name(&key), from, to);
        assert_eq!(get(&*cache, &key).await, Some(record(6)));
        assert_eq!(cache.settle(&[outdate(&key, 7)], soon()).await, [Ok(Dropped)]);
        assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
        assert_eq!(cluster.master_of(name(&key)), to);
    }
}

#[tokio::test]
async fn l1_stays_intact_while_a_marker_moves_with_its_slot() {
    // Longer than the clock of a server may be set back while it runs: what nobody renews for so long looks older.
    const WHILE: Duration = Duration::from_millis(1500);
    let cluster = empty_cluster().await;
    let cache = redis_of(&cluster.url()).await;
    let markers = |at: usize| cluster.nodes[at].cli(&["KEYS", "{}fs:*feed#*"]);
    let marker = markers(0);
    assert!(!marker.is_empty() && marker.lines().count() == 1, "{marker}");
    let intact = async |what: &str| assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact), "{what}");
    let slot = cluster.nodes[0].cli(&["CLUSTER", "KEYSLOT", &marker]);
    let carry_all = |from: usize, to: usize| {
        let keys = cluster.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
        keys.lines().for_each(|key| cluster.carry(key, from, to));
    };
    cluster.begin_move(&marker, 0, 1);
    intact("about to go").await;
    cluster.carry(&marker, 0, 1);
    intact("on its way").await;
    assert_eq!(unprobed_of(&cluster.url()).probe_any(EPOCH, soon()).await, Ok(Probe::Intact), "for a new process too");
    carry_all(0, 1);
    // Meanwhile the other master verifies its own marker, and this one grows old.
    tokio::time::sleep(WHILE).await;
    intact("on its way for long").await;
    cluster.end_move(&marker, 0, 1);
    intact("and there").await;
    assert_eq!(unprobed_of(&cluster.url()).probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_ne!(markers(0), marker);
    // Now the marker that the other master had before grows old, until this one goes back.
    tokio::time::sleep(WHILE).await;
    intact("there for long").await;
    cluster.begin_move(&marker, 1, 0);
    carry_all(1, 0);
    cluster.end_move(&marker, 1, 0);
    intact("and back").await;
    assert_eq!(unprobed_of(&cluster.url()).probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn a_frozen_master_costs_its_own_keys_the_deadline_and_the_others_nothing() {
    let cluster = empty_cluster().await;
    let cache = redis_of(&cluster.url()).await;
    let keys = keys(60);
    warm_all(&*cache, &keys, 5).await;
    let owners: Vec<usize> = keys.iter().map(|key| cluster.master_of(name(key))).collect();
    cluster.nodes[1].freeze();
    let start = Instant::now();
    let found = cache.get(&keys, Instant::now() + Duration::from_millis(100)).await;
    let marks: Vec<_> = keys.iter().map(|key| (key.clone(), id(2))).collect();
    let marked = cache.mark(&marks, Instant::now() + Duration::from_millis(100)).await;
    let took = start.elapsed();
    cluster.nodes[1].thaw();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_millis(1200), "{took:?}");
    for ((owner, found), marked) in owners.iter().zip(found).zip(marked) {
        if *owner == 1 {
            assert_eq!((found, marked), (Err(CacheError::Timeout), Err(CacheError::Timeout)));
        } else {
            assert_eq!((found, marked), (Ok(Some(record(5))), Ok(Marked::Granted)));
        }
    }
    assert!(owners.contains(&1));
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact), "it was only slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_outlives_a_masters_death_where_its_replica_was_up_to_date() {
    let mut cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let cache = redis_of(&cluster.url()).await;
    let keys = keys(60);
    warm_all(&*cache, &keys, 5).await;
    let replica = cluster.replica_of(1);
    cluster.nodes[replica].until_up_for_seconds(3);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    cluster.until_replicated(1, replica);
    let owners: Vec<usize> = keys.iter().map(|key| cluster.master_of(name(key))).collect();
    cluster.nodes[1].kill();
    for (found, owner) in cache.get(&keys, soon()).await.into_iter().zip(owners) {
        match owner {
            1 => assert!(matches!(found, Err(CacheError::Unavailable(_))), "{found:?}"),
            _ => assert_eq!(found, Ok(Some(record(5))), "another master's"),
        }
    }
    assert!(cache.probe_any(EPOCH, soon()).await.is_err(), "L1 is given up as a whole");
    cluster.until_promoted(replica, 1);
    eventually("a probe to succeed and every key to be answered", async || {
        let Ok(probed) = cache.probe_any(EPOCH, soon()).await else { return false };
        assert_eq!(probed, Probe::Intact);
        // On a busy machine another master may be given up too, and have to be found again.
        let found = cache.get(&keys, soon()).await;
        let Ok(found) = found.into_iter().collect::<Result<Vec<_>, _>>() else { return false };
        assert_eq!(found, vec![Some(record(5)); keys.len()]);
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_a_cluster_that_restarts_with_old_entries_needs_a_new_epoch() {
    let mut cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let cache = redis_of(&cluster.url()).await;
    warm_all(&*cache, &keys(60), 5).await;
    cluster.nodes[1].cli(&["SAVE"]);
    // Back before anybody took its place.
    cluster.nodes[1].restart();
    eventually("the cluster to have it back", async || match cache.probe_any(EPOCH, soon()).await {
        Ok(found) => {
            assert_eq!(found, Probe::Restored);
            true
        }
        Err(_) => false,
    })
    .await;
    assert_eq!(cache.probe_any(Epoch(2), soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn an_address_of_the_wrong_kind_is_told_with_what_to_do() {
    let told = async |url: &str| unprobed_of(url).probe_any(EPOCH, soon()).await.unwrap_err().to_string();
    let single = RedisServer::start();
    let error = told(&single.url().replace("redis://", "redis-cluster://")).await;
    assert!(error.contains("cluster support disabled"), "{error}");
    let error = told(&format!("redis-sentinel://{}/main", single.address())).await;
    assert!(error.contains("1 of 1 sentinels") && error.contains("unknown command"), "{error}");
    let cluster = empty_cluster().await;
    // Whether or not a node has the slot of the key that is tried: no node takes an MGET of two slots.
    for node in &cluster.nodes[..3] {
        let error = told(&node.url()).await;
        assert!(error.contains("is a node of a Redis Cluster") && error.contains("redis-cluster://"), "{error}");
    }
}
