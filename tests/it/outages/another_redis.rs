//! One L2 has one L1. Servers come to have different ones by an address that leads elsewhere, another URL, another database or
//! an L1 in the process; L2 comes to be another one by a copy. What was acknowledged as cached is never hidden by that, and
//! no call fails.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst},
};

use super::*;
use crate::harness::{
    mongod::Mongod,
    process::temp_dir,
    proxy::{Line, Proxy},
    redis::RedisServer,
};

/// How long L1 may be bypassed after the last server has left the one before: the lease, the pause, and a busy machine.
const BYPASSED: Duration = Duration::from_secs(20);

/// Settings over a database of its own.
fn over_mongodb(redis: Option<&str>) -> Vec<(&'static str, String)> {
    let mongod = Mongod::shared_replica_set();
    let mut settings = vec![("MONGO_URI", mongod.uri()), ("MONGO_DB", mongod.settled_database())];
    settings.extend(redis.map(|url| ("REDIS_URL", url.to_owned())));
    settings
}

fn with<'a>(settings: &'a [(&'static str, String)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let all = settings.iter().map(|(name, value)| (*name, value.as_str()));
    all.filter(|(name, _)| more.iter().all(|(new, _)| new != name)).chain(more.iter().copied()).collect()
}

async fn is_another(server: &Server) -> bool {
    eventually("L1 to be found to be another one", async || server.tiered.l1_is_another()).await;
    !server.tiered.reach().borrow().l1 && server.metric("featurestore_l1_is_another").await == 1.0
}

/// Servers that clients know of, as a load balancer has them.
#[derive(Clone, Default)]
struct Fleet(Arc<Mutex<Vec<(usize, Client)>>>);

impl Fleet {
    async fn add(&self, number: usize, server: &Server) {
        let client = server.client().await;
        self.0.lock().unwrap().push((number, client));
    }

    fn remove(&self, number: usize) {
        self.0.lock().unwrap().retain(|(known, _)| *known != number);
    }

    fn any(&self, turn: usize) -> Client {
        let all = self.0.lock().unwrap();
        all[turn % all.len()].1.clone()
    }
}

/// What callers see meanwhile: nothing fails, and nothing is older than what was acknowledged as cached before.
struct Load {
    stop: Arc<AtomicBool>,
    callers: tokio::task::JoinSet<()>,
    calls: Arc<AtomicUsize>,
}

impl Load {
    fn start(fleet: &Fleet) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut callers = tokio::task::JoinSet::new();
        for key in 0..4 {
            let cached = Arc::new(AtomicI64::new(0));
            for caller in 0..3 {
                let (fleet, stop, calls, cached) = (fleet.clone(), stop.clone(), calls.clone(), cached.clone());
                callers.spawn(async move {
                    let id = format!("rolled{key}");
                    for turn in caller.. {
                        if stop.load(SeqCst) {
                            return;
                        }
                        let mut client = fleet.any(turn);
                        if caller == 0 {
                            let written = write(&mut client, &id, turn as f64).await.unwrap();
                            if written.cached {
                                cached.fetch_max(written.revision, SeqCst);
                            }
                        } else {
                            let at_least = cached.load(SeqCst);
                            let (row, degraded) = read(&mut client, &id).await.unwrap();
                            assert!(row.revision >= at_least, "{row:?}, degraded {degraded}: {at_least} was cached");
                        }
                        calls.fetch_add(1, SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }
        }
        Self { stop, callers, calls }
    }

    async fn stop(mut self) -> usize {
        self.stop.store(true, SeqCst);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        self.calls.load(SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_change_of_redis_under_load_fails_no_call_and_hides_nothing() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let settings = over_mongodb(Some(&old.url()));
    let (old_url, new_url) = (old.url(), new.url());
    let at = |url| with(&settings, &[("REDIS_URL", url), PATIENT_READS]);
    let (first, second) = (Server::start(&at(&old_url)).await, Server::start(&at(&old_url)).await);
    let fleet = Fleet::default();
    fleet.add(0, &first).await;
    fleet.add(1, &second).await;
    let load = Load::start(&fleet);
    tokio::time::sleep(Duration::from_secs(2)).await;

    // One after the other, as a deployment rolls.
    fleet.remove(0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    first.stop().await;
    let first = Server::start_at_once(&at(&new_url)).await;
    eventually("it to be ready", async || first.tiered.reach().borrow().ready).await;
    fleet.add(2, &first).await;
    assert!(is_another(&first).await, "while the second one uses the old Redis");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(first.tiered.l1_is_another(), "however long that takes");

    fleet.remove(1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    second.stop().await;
    let left = Instant::now();
    let second = Server::start_at_once(&at(&new_url)).await;
    eventually("it to be ready", async || second.tiered.reach().borrow().ready).await;
    fleet.add(3, &second).await;
    for server in [&first, &second] {
        let mut client = server.client().await;
        until_writes_are_cached(&mut client, "after").await;
        until_l1_answers(server, "after", |_| {}).await;
    }
    let bypassed = left.elapsed();
    let calls = load.stop().await;
    println!("{calls} calls, none failed; L1 was used again {bypassed:.1?} after the last server left the old Redis");
    assert!(bypassed < BYPASSED, "{bypassed:?}");
    assert!(!first.tiered.l1_is_another() && first.metric("featurestore_l1_is_another").await == 0.0);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_leads_to_another_redis_is_noticed_by_who_connects() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let line = Proxy::to(old.port()).await;
    let settings = over_mongodb(Some(&format!("redis://127.0.0.1:{}", line.port())));
    let a = Server::start(&with(&settings, &[PATIENT_READS])).await;
    let (mut to_a, n) = (a.client().await, 0.0);
    until_writes_are_cached(&mut to_a, "a").await;
    line.lead_to(new.port());
    let b = Server::start_at_once(&with(&settings, &[PATIENT_READS])).await;
    assert!(is_another(&b).await);
    let mut to_b = b.client().await;
    for n in [n + 1.0, n + 2.0] {
        let written = write(&mut to_a, "a", n).await.unwrap();
        let (row, degraded) = read(&mut to_b, "a").await.unwrap();
        assert!(written.cached && row.revision >= written.revision && degraded, "{row:?}");
        assert!(!write(&mut to_b, "b", n).await.unwrap().cached);
    }
    // Now the first one is led to the new one too.
    line.set(Line::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    line.set(Line::Pass);
    for server in [&a, &b] {
        let mut client = server.client().await;
        until_writes_are_cached(&mut client, "a").await;
        let written = write(&mut client, "a", 9.0).await.unwrap();
        for reader in [&a, &b] {
            until_l1_answers(reader, "a", |row| assert!(row.revision >= written.revision)).await;
        }
    }
    a.stop().await;
    b.stop().await;
}

/// The L1 before is left for another one and taken up again.
async fn and_back(settings: &[(&'static str, String)], other: Option<&str>) {
    let one = RedisServer::start();
    let url = one.url();
    let at = |url: Option<&str>| -> Vec<(&'static str, String)> {
        let others = settings.iter().filter(|(name, _)| *name != "REDIS_URL").cloned();
        others.chain(url.map(|url| ("REDIS_URL", url.to_owned()))).collect()
    };
    let mut newest = 0;
    for (turn, url) in [Some(url.as_str()), other, Some(url.as_str())].into_iter().enumerate() {
        let settings = at(url);
        let server = Server::start(&with(&settings, &[PATIENT_READS])).await;
        let mut client = server.client().await;
        for _ in 0..3 {
            let (row, _) = read(&mut client, "back").await.unwrap();
            assert!(row.revision >= newest, "{row:?} is older than {newest}, in turn {turn}");
        }
        until_writes_are_cached(&mut client, "back").await;
        let written = write(&mut client, "back", turn as f64).await.unwrap();
        assert!(written.cached);
        newest = written.revision;
        until_l1_answers(&server, "back", |row| assert!(row.revision >= newest)).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_l1_that_was_left_for_another_one_holds_nothing_when_it_is_taken_up_again() {
    let other = RedisServer::start();
    for other in [Some(other.url()), None] {
        let folder = temp_dir();
        let embedded = [("FEATURESTORE_DATA_DIR", folder.path().display().to_string())];
        let mongodb = over_mongodb(None);
        tokio::join!(and_back(&embedded, other.as_deref()), and_back(&mongodb, other.as_deref()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_of_the_same_redis_is_another_l1_and_another_user_is_not() {
    let redis = RedisServer::start();
    redis.cli(&["ACL", "SETUSER", "other", "on", ">p", "~*", "&*", "+@all"]);
    let settings = over_mongodb(Some(&redis.url()));
    let a = Server::start(&with(&settings, &[])).await;
    let url = format!("{}/3", redis.url());
    let b = Server::start_at_once(&with(&settings, &[("REDIS_URL", &url)])).await;
    assert!(is_another(&b).await);
    let url = format!("redis://other:p@{}", redis.address());
    let c = Server::start(&with(&settings, &[("REDIS_URL", &url)])).await;
    let mut to_a = a.client().await;
    for n in [1.0, 2.0] {
        let written = write(&mut to_a, "a", n).await.unwrap();
        assert!(written.cached);
        for server in [&a, &b, &c] {
            let (row, _) = read(&mut server.client().await, "a").await.unwrap();
            assert!(row.revision >= written.revision, "{row:?}");
        }
        assert!(!write(&mut b.client().await, "b", n).await.unwrap().cached);
        assert!(write(&mut c.client().await, "c", n).await.unwrap().cached);
    }
    for server in [a, b, c] {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_l1_in_the_process_beside_redis_makes_no_write_cached() {
    let redis = RedisServer::start();
    let settings = over_mongodb(Some(&redis.url()));
    let a = Server::start(&with(&settings, &[])).await;
    let without: Vec<_> = settings.iter().filter(|(name, _)| *name != "REDIS_URL").cloned().collect();
    let b = Server::start(&with(&without, &[])).await;
    let (mut to_a, mut to_b) = (a.client().await, b.client().await);
    assert!(write(&mut to_a, "a", 1.0).await.unwrap().cached);
    let written = write(&mut to_b, "b", 1.0).await.unwrap();
    assert!(!written.cached);
    // It follows the changes, so it may be read from all the same.
    until_l1_answers(&b, "b", |row| assert!(row.revision >= written.revision)).await;
    until_l1_answers(&a, "b", |_| {}).await;
    a.stop().await;
    // Alone it is everybody's.
    until_writes_are_cached(&mut to_b, "b").await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_l2_shares_no_entry_with_the_original_over_one_redis() {
    let redis = RedisServer::start();
    let settings = over_mongodb(Some(&redis.url()));
    let original = Server::start(&with(&settings, &[])).await;
    let mut to_original = original.client().await;
    until_writes_are_cached(&mut to_original, "a").await;
    let written = write(&mut to_original, "a", 1.0).await.unwrap();
    let database = settings.iter().find(|(name, _)| *name == "MONGO_DB").unwrap().1.clone();
    let copied = format!("{database}_copy");
    let from = Mongod::shared_replica_set().database(&database).await;
    for collection in ["features", "meta"] {
        let out = mongodb::bson::doc! { "$out": { "db": &copied, "coll": collection } };
        from.collection::<mongodb::bson::Document>(collection).aggregate([out]).await.unwrap();
    }
    let copy = Server::start(&with(&settings, &[("MONGO_DB", &copied)])).await;
    let mut to_copy = copy.client().await;
    until_writes_are_cached(&mut to_copy, "a").await;
    assert!(write(&mut to_copy, "a", 666.0).await.unwrap().cached);
    for _ in 0..3 {
        let (row, _) = read(&mut to_original, "a").await.unwrap();
        assert_eq!(row.revision, written.revision, "{row:?}");
    }
    original.stop().await;
    copy.stop().await;

    // Folders.
    let root = temp_dir();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    let url = redis.url();
    let at = |dir: &std::path::Path| [("REDIS_URL", url.clone()), ("FEATURESTORE_DATA_DIR", dir.display().to_string())];
    let server = Server::start(&with(&at(&one), &[])).await;
    write(&mut server.client().await, "f", 1.0).await.unwrap();
    server.stop().await;
    let copied = std::process::Command::new("cp").arg("-a").arg(&one).arg(&two).status().unwrap();
    assert!(copied.success());
    let (original, copy) = (Server::start(&with(&at(&one), &[])).await, Server::start(&with(&at(&two), &[])).await);
    let (before, _) = read(&mut original.client().await, "f").await.unwrap();
    assert!(write(&mut copy.client().await, "f", 666.0).await.unwrap().cached);
    let (after, _) = read(&mut original.client().await, "f").await.unwrap();
    assert_eq!((after.revision, after.features), (before.revision, before.features));
    original.stop().await;
    copy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_repairs_a_promoted_replica_starts_cold() {
    let mut master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = RedisServer::start_with(&["--replicaof", &of]);
    eventually("the replica to follow", async || replica.cli(&["INFO", "replication"]).contains("link_status:up"))
        .await;
    let front = Proxy::to(master.port()).await;
    let url = format!("redis://127.0.0.1:{}", front.port());
    let server = Server::start(&[("REDIS_URL", &url), PATIENT_READS]).await;
    let mut client = server.client().await;
    until_writes_are_cached(&mut client, "a").await;
    write(&mut client, "a", 1.0).await.unwrap();
    eventually("the replica to have it", async || replica.cli(&["KEYS", "*:a"]).contains(":a")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The replica is cut off, and does not get what is acknowledged now.
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let written = write(&mut client, "a", 2.0).await.unwrap();
    assert!(written.cached);
    master.kill();
    front.lead_to(replica.port());
    front.set(Line::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    front.set(Line::Pass);
    until_l1_answers(&server, "a", |row| assert!(row.revision >= written.revision, "{row:?}")).await;
    server.stop().await;
}
