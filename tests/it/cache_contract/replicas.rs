//! A master and its replicas: whether a promoted one holds old data, and writes that wait for replicas.

use std::time::Duration;

use featurestore::cache::{Effect::*, Marked, *};

use super::*;
use crate::harness::process::wait_until;

const BOUND: Duration = Duration::from_secs(20);

fn replica_of(master: &RedisServer) -> RedisServer {
    let of = format!("127.0.0.1 {}", master.port());
    let replica = RedisServer::start_with(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]);
    wait_until("the replica to follow", BOUND, || replica.cli(&["INFO", "replication"]).contains("link_status:up"));
    replica
}

fn master() -> RedisServer {
    RedisServer::start_with(&["--repl-diskless-sync-delay", "0"])
}

/// A master with an entry, and a replica that has been up for a while and has it too.
async fn filled_pair() -> (RedisServer, RedisServer) {
    let master = master();
    let replica = replica_of(&master);
    let cache = redis_at(&master).await;
    warm(&*cache, &key("a"), record(5)).await;
    replica.until_up_for_seconds(3);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    let marker = format!("{{}}fs:{EPOCH}");
    let is_there = || replica.cli(&["GET", &marker]) == master.cli(&["GET", &marker]);
    wait_until("the replica to have the marker", BOUND, is_there);
    (master, replica)
}

fn promote(server: &RedisServer) {
    assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
}

#[tokio::test]
async fn a_promoted_replica_keeps_the_cache() {
    let (mut master, replica) = filled_pair().await;
    let cache = unprobed(&replica);
    assert!(matches!(cache.probe_any(EPOCH, soon()).await, Err(CacheError::Unavailable(_))), "it is no master");
    master.kill();
    promote(&replica);
    assert_eq!(cache.probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
    assert_eq!(get(&cache, &key("a")).await, Some(record(5)));
    assert_eq!(unprobed(&replica).probe_any(EPOCH, soon()).await, Ok(Probe::Intact));
}

#[tokio::test]
async fn a_replica_that_restarted_from_its_file_before_it_was_promoted_holds_old_data() {
    let (mut master, mut replica) = filled_pair().await;
    assert_eq!(replica.cli(&["SAVE"]), "OK");
    master.kill();
    replica.restart();
    promote(&replica);
    assert_eq!(replica.cli(&["EXISTS", name(&key("a"))]), "1");
    assert_eq!(unprobed(&replica).probe_any(EPOCH, soon()).await, Ok(Probe::Restored));
}

#[tokio::test]
async fn a_replica_that_copied_such_data_holds_old_data_too() {
    let bystander = master();
    let (mut master, mut replica) = filled_pair().await;
    assert_eq!(replica.cli(&["SAVE"]), "OK");
    master.kill();
    replica.restart();
    promote(&replica);
    // It has been up all the time, and nobody has looked at what it copies.
    let port = replica.port().to_string();
    assert_eq!(bystander.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
    wait_until("it to copy", BOUND, || bystander.cli(&["EXISTS", name(&key("a"))]) == "1");
    promote(&bystander);
    assert_eq!(unprobed(&bystander).probe_any(EPOCH, soon()).await, Ok(Probe::Restored));
}

#[tokio::test]
async fn a_demoted_master_is_given_up_at_the_first_write_or_probe() {
    for probes in [false, true] {
        let (old, new) = (master(), master());
        let cache = redis_at(&old).await;
        warm(&*cache, &key("a"), record(5)).await;
        let port = new.port().to_string();
        assert_eq!(old.cli(&["REPLICAOF", "127.0.0.1", &port]), "OK");
        if probes {
            assert!(matches!(cache.probe_any(EPOCH, soon()).await, Err(CacheError::Unavailable(_))));
        } else {
            let marked = only(cache.mark(&[(key("a"), id(1))], soon()).await);
            assert!(matches!(marked, Err(CacheError::Unavailable(_))), "{marked:?}");
        }
        let read = only(cache.get(&[key("a")], soon()).await);
        assert!(matches!(read, Err(CacheError::Unavailable(_))), "{read:?}");
    }
}

fn waiting(url: &str) -> RedisCache {
    RedisCache::new(&RedisConfig::parse(url).unwrap().with_wait_replicas(1)).unwrap()
}

/// Probes until the replicas confirm in time; on a busy machine the first time may be too short for them.
async fn until_confirmed(cache: &RedisCache) {
    eventually("the replicas to confirm", async || cache.probe_any(EPOCH, soon()).await == Ok(Probe::Intact)).await;
}

#[tokio::test]
async fn a_mark_and_a_removal_count_once_the_replicas_have_them() {
    let master = master();
    let cache = waiting(&master.url());
    assert!(matches!(cache.probe_any(EPOCH, soon()).await, Err(CacheError::Unavailable(_))), "there is no replica");
    let replica = replica_of(&master);
    wait_until("the master to see it", BOUND, || master.has_replicas(1));
    until_confirmed(&cache).await;
    warm(&cache, &key("a"), record(5)).await;
    let ask = |permit| [(key("a"), id(permit))];
    assert_eq!(cache.mark(&ask(1), soon()).await, [Ok(Marked::Granted)]);
    assert_eq!(cache.put(&[put(&key("a"), 1, record(6))], soon()).await, [Ok(Installed)]);
    assert_eq!(cache.settle(&[outdate(&key("a"), 7)], soon()).await, [Ok(Dropped)]);

    replica.freeze();
    let shortly = || Instant::now() + Duration::from_millis(300);
    let ask = [(key("b"), id(2))];
    let (marked, hit) = tokio::join!(async { (cache.mark(&ask, shortly()).await, Instant::now()) }, async {
        (get(&cache, &key("a")).await, Instant::now())
    },);
    assert_eq!((marked.0, hit.0), (vec![Err(CacheError::Timeout)], None));
    assert!(hit.1 < marked.1, "a read does not wait behind the write");
    assert_eq!(cache.settle(&[outdate(&key("b"), 7)], shortly()).await, [Err(CacheError::Timeout)]);
    assert_eq!(cache.remove(&[key("b")], shortly()).await, [Err(CacheError::Timeout)]);
    cache.acquire(&[(key("c"), id(1))], soon()).await;
    assert_eq!(cache.settle(&[settle(&key("c"), 1, record(1))], soon()).await, [Ok(Installed)], "a fill does not wait");
    assert!(matches!(cache.probe_any(EPOCH, soon()).await, Err(CacheError::Unavailable(_))), "too few replicas");

    replica.thaw();
    wait_until("the replica to answer", BOUND, || master.cli(&["WAIT", "1", "100"]) == "1");
    until_confirmed(&cache).await;
    assert_eq!(cache.mark(&[(key("b"), id(3))], soon()).await, [Ok(Marked::Granted)]);
}

#[tokio::test]
async fn in_a_cluster_each_master_waits_for_its_own_replicas() {
    let cluster = empty_cluster().await;
    let cache = waiting(&cluster.url());
    until_confirmed(&cache).await;
    let keys: Vec<_> = (0..30).map(|n| key(&format!("k{n}"))).collect();
    let marks = |permit| keys.iter().map(|key| (key.clone(), id(permit))).collect::<Vec<_>>();
    assert!(cache.mark(&marks(1), soon()).await.into_iter().all(|marked| marked == Ok(Marked::Granted)));
    let replica = &cluster.nodes[cluster.replica_of(1)];
    replica.freeze();
    let marked = cache.mark(&marks(2), Instant::now() + Duration::from_millis(500)).await;
    replica.thaw();
    for (key, marked) in keys.iter().zip(marked) {
        let expected = if cluster.master_of(name(key)) == 1 { Err(CacheError::Timeout) } else { Ok(Marked::Granted) };
        assert_eq!(marked, expected);
    }
}
