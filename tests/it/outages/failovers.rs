//! Redis Cluster and Sentinel behind a server: slots move, masters die, replicas are too few. No call fails, and no
//! acknowledged write is hidden.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst},
};

use super::*;
use crate::harness::{redis_cluster::RedisCluster, sentinel::Sentinels, server::Pair};

const KEYS: usize = 30;

/// What every call that begins now must at least see, and what was done so far.
#[derive(Default)]
struct Load {
    acked: [AtomicI64; KEYS],
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    uncached: AtomicU64,
}

impl Load {
    fn start(clients: [Client; 3]) -> (Arc<Self>, tokio::task::JoinSet<()>) {
        let (load, mut tasks) = (Arc::new(Self::default()), tokio::task::JoinSet::new());
        let [writer, reader, another] = clients;
        tasks.spawn(load.clone().write(writer));
        tasks.spawn(load.clone().read(reader));
        tasks.spawn(load.clone().read(another));
        (load, tasks)
    }

    async fn write(self: Arc<Self>, mut client: Client) {
        for n in 0.. {
            if self.stop.load(SeqCst) {
                return;
            }
            let key = n % KEYS;
            let written = write(&mut client, &key.to_string(), n as f64).await.unwrap();
            self.acked[key].fetch_max(written.revision, SeqCst);
            self.writes.fetch_add(1, SeqCst);
            self.uncached.fetch_add(u64::from(!written.cached), SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn read(self: Arc<Self>, mut client: Client) {
        while !self.stop.load(SeqCst) {
            let at_least: Vec<i64> = self.acked.iter().map(|acked| acked.load(SeqCst)).collect();
            let answer = client.get_features(get((0..KEYS).map(|key| key.to_string()))).await.unwrap().into_inner();
            for (row, at_least) in answer.rows.iter().zip(at_least) {
                assert_ne!(row.status(), RowStatus::Error, "{row:?}");
                assert!(row.revision >= at_least, "acknowledged {at_least}, then read {row:?}");
            }
            self.reads.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until writes are cached again and L1 answers for all, stops, and gives how many writes were not cached.
    async fn end(&self, mut client: Client, mut tasks: tokio::task::JoinSet<()>) -> u64 {
        until_writes_are_cached(&mut client, "another").await;
        let (reads, writes, uncached) = (&self.reads, &self.writes, &self.uncached);
        eventually("some load", async || reads.load(SeqCst) > 20 && writes.load(SeqCst) > 20).await;
        self.stop.store(true, SeqCst);
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        eventually("L1 to answer for all", async || {
            let answer = client.get_features(get((0..KEYS).map(|key| key.to_string()))).await.unwrap().into_inner();
            !answer.degraded && answer.rows.iter().all(|row| row.source() == Source::L1)
        })
        .await;
        println!("{reads:?} reads, {writes:?} writes, {uncached:?} of them not cached");
        uncached.load(SeqCst)
    }
}

async fn clients(server: &Server) -> [Client; 3] {
    [server.client().await, server.client().await, server.client().await]
}

async fn over(url: &str, more: &[(&str, &str)]) -> (Pair, Server) {
    let pair = Pair::new(false, true);
    let server = pair.serve_with(&[&[("REDIS_URL", url)], more].concat()).await;
    (pair, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_slots_move_nothing_fails_and_l1_goes_on() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let (_pair, server) = over(&cluster.url(), &[]).await;
    let (load, tasks) = Load::start(clients(&server).await);
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.move_slots(0, 1, 300);
        cluster.move_slots(1, 2, 300);
        cluster
    });
    let cluster = cluster.await.unwrap();
    let uncached = load.end(server.client().await, tasks).await;
    // None on an idle machine; on a busy one a probe may take too long.
    let writes = load.writes.load(SeqCst);
    assert!(uncached * 2 < writes, "{uncached} of {writes} writes were not cached");
    server.stop().await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masters_death_in_a_cluster_fails_no_call() {
    let mut cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let (_pair, server) = over(&cluster.url(), &[]).await;
    let (load, tasks) = Load::start(clients(&server).await);
    until_writes_are_cached(&mut server.client().await, "another").await;
    let replica = cluster.replica_of(2);
    cluster.nodes[2].kill();
    eventually("L1 to be missed", async || load.uncached.load(SeqCst) > 0).await;
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.until_promoted(replica, 2);
        cluster
    });
    let cluster = cluster.await.unwrap();
    load.end(server.client().await, tasks).await;
    server.stop().await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masters_death_behind_sentinels_fails_no_call() {
    let mut sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let (_pair, server) = over(&sentinels.url(), &[]).await;
    let (load, tasks) = Load::start(clients(&server).await);
    until_writes_are_cached(&mut server.client().await, "another").await;
    sentinels.servers[0].kill();
    eventually("L1 to be missed", async || load.uncached.load(SeqCst) > 0).await;
    load.end(server.client().await, tasks).await;
    assert!(sentinels.servers[1].cli(&["ROLE"]).starts_with("master"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cached_is_still_cached_after_a_failover() {
    let mut sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let (_pair, server) = over(&sentinels.url(), &[]).await;
    let mut client = server.client().await;
    for key in 0..KEYS {
        until_writes_are_cached(&mut client, &key.to_string()).await;
    }
    // So that the replica has beats of its own time.
    sentinels.servers[1].until_up_for_seconds(5);
    let epoch = server.tiered.trust().epoch().unwrap().epoch;
    sentinels.servers[0].kill();
    let took = until_l1_answers(&server, "0", |row| assert_eq!(row.status(), RowStatus::Found)).await;
    println!("L1 answers {took:?} after its master died");
    assert_eq!(server.tiered.trust().epoch().unwrap().epoch, epoch);
    let answer = client.get_features(get((1..KEYS).map(|key| key.to_string()))).await.unwrap().into_inner();
    assert!(answer.rows.iter().all(|row| row.source() == Source::L1), "{answer:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_most_sentinels_are_silent_l1_is_bypassed() {
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let (_pair, server) = over(&sentinels.url(), &[]).await;
    let mut client = server.client().await;
    until_writes_are_cached(&mut client, "a").await;
    until_l1_answers(&server, "a", |_| ()).await;
    sentinels.freeze(1..3);
    eventually("L1 to be bypassed", async || {
        let (row, degraded) = read(&mut client, "a").await.unwrap();
        assert_eq!(row.status(), RowStatus::Found);
        row.source() == Source::L2 && degraded
    })
    .await;
    // However long it lasts: the master itself answers all the time.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let (row, degraded) = read(&mut client, "a").await.unwrap();
        assert!(row.source() == Source::L2 && degraded, "{row:?}, degraded: {degraded}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let written = write(&mut client, "a", 7.0).await.unwrap();
    assert!(!written.cached, "{written:?}");
    sentinels.thaw(1..3);
    until_l1_answers(&server, "a", |row| assert!(row.revision >= written.revision, "{row:?}")).await;
    until_writes_are_cached(&mut client, "a").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_fails_no_call() {
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    // The sentinels stop no writes: what the master of old is told after the promotion is lost, unless replicas confirm.
    let (_pair, server) = over(&sentinels.url(), &[("FEATURESTORE_L1_WAIT_REPLICAS", "1")]).await;
    let (load, tasks) = Load::start(clients(&server).await);
    until_writes_are_cached(&mut server.client().await, "another").await;
    let sentinels = tokio::task::spawn_blocking(move || {
        sentinels.fail_over(1);
        sentinels
    });
    let sentinels = sentinels.await.unwrap();
    load.end(server.client().await, tasks).await;
    server.stop().await;
    drop(sentinels);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_master_costs_a_call_the_timeout_of_l1_at_most() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let (_pair, server) = over(&cluster.url(), &[("FEATURESTORE_L1_TIMEOUT", "200ms")]).await;
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await.unwrap();
    cluster.nodes[1].freeze();
    for key in 0..KEYS {
        let (read, took) = timed(read(&mut client, &key.to_string())).await;
        assert_ne!(read.unwrap().0.status(), RowStatus::Error);
        // Once for L1, and what L2 takes on a busy machine.
        assert!(took < Duration::from_millis(200 + 1000), "{took:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_cached_only_while_enough_replicas_know_of_it() {
    let sentinels = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let (_pair, server) = over(&sentinels.url(), &[("FEATURESTORE_L1_WAIT_REPLICAS", "1")]).await;
    let mut client = server.client().await;
    until_writes_are_cached(&mut client, "a").await;
    sentinels.servers[1].freeze();
    assert!(!write(&mut client, "a", 1.0).await.unwrap().cached);
    assert!(!write(&mut client, "b", 1.0).await.unwrap().cached);
    assert_eq!(read(&mut client, "a").await.unwrap().0.features, features([("n", double(1.0))]));
    sentinels.servers[1].thaw();
    until_writes_are_cached(&mut client, "a").await;
    server.stop().await;
}
