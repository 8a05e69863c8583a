//! Two servers on one Redis and one MongoDB: what one acknowledged as cached, every later read of the other sees.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::harness::server::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_wrote_the_other_reads_at_once() {
    let pair = Pair::real();
    let (one, other) = (pair.serve().await, pair.serve().await);
    let (mut writer, mut reader) = (one.client().await, other.client().await);
    for n in 0..100 {
        let written = write(&mut writer, "a", f64::from(n)).await.unwrap();
        assert!(written.cached);
        let (row, degraded) = read(&mut reader, "a").await.unwrap();
        assert_eq!((row.revision, row.source(), degraded), (written.revision, Source::L1, false));
        assert_eq!(row.features, features([("n", double(f64::from(n)))]));
        std::mem::swap(&mut writer, &mut reader);
    }
    let deleted = writer.delete_features(delete(["a"])).await.unwrap().into_inner();
    assert!(deleted.results[0].cached);
    assert_eq!(read(&mut reader, "a").await.unwrap().0.status(), RowStatus::NotFound);
    one.stop().await;
    other.stop().await;
}

const KEYS: usize = 4;
const DURATION: Duration = Duration::from_secs(3);
/// A busy test machine is not a lost Redis.
const PATIENT: [(&str, &str); 2] = [("FEATURESTORE_L1_TIMEOUT", "10s"), PATIENT_READS];

/// The newest revision of each key that somebody was told of, in a write's answer or a read's.
struct Told {
    revisions: [AtomicI64; KEYS],
    reads: AtomicU64,
    degraded: AtomicU64,
    writes: AtomicU64,
    uncached: AtomicU64,
    stop: AtomicBool,
}

impl Told {
    /// What any call that begins now must at least see.
    fn now(&self, key: usize) -> i64 {
        self.revisions[key].load(SeqCst)
    }

    fn tell(&self, key: usize, revision: i64) {
        self.revisions[key].fetch_max(revision, SeqCst);
    }
}

async fn run_writer(told: Arc<Told>, mut client: Client, mut dice: StdRng) {
    while !told.stop.load(SeqCst) {
        let key = dice.random_range(0..KEYS);
        let at_least = told.now(key);
        let n = told.writes.fetch_add(1, SeqCst);
        let (revision, cached) = if dice.random_ratio(1, 10) {
            let deleted = client.delete_features(delete([key.to_string()])).await.unwrap().into_inner();
            (deleted.results[0].revision, deleted.results[0].cached)
        } else {
            let written = write(&mut client, &key.to_string(), n as f64).await.unwrap();
            assert!(written.revision > at_least, "{written:?} came after revision {at_least} was told");
            (written.revision, written.cached)
        };
        if cached {
            told.tell(key, revision);
        } else {
            // Another server may hide it until it is made good; nothing is promised of it.
            told.uncached.fetch_add(1, SeqCst);
        }
    }
}

async fn run_reader(told: Arc<Told>, mut client: Client, mut dice: StdRng) {
    while !told.stop.load(SeqCst) {
        let asked: Vec<usize> = if dice.random() { (0..KEYS).collect() } else { vec![dice.random_range(0..KEYS)] };
        let at_least: Vec<i64> = asked.iter().map(|key| told.now(*key)).collect();
        let consistency = if dice.random_ratio(1, 20) { Consistency::Strong } else { Consistency::Cached };
        let request =
            GetFeaturesRequest { consistency: consistency.into(), ..get(asked.iter().map(ToString::to_string)) };
        let answer = client.get_features(request).await.unwrap().into_inner();
        // A view of the epoch that is too old for a moment is no lie, but what was read then is not promised to others.
        told.degraded.fetch_add(u64::from(answer.degraded), SeqCst);
        for ((row, key), at_least) in answer.rows.iter().zip(asked).zip(at_least) {
            assert!(row.revision >= at_least, "revision {at_least} was told, and then {consistency:?} read {row:?}");
            if !answer.degraded {
                told.tell(key, row.revision);
            }
        }
        told.reads.fetch_add(1, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_never_go_backwards_over_two_servers_while_redis_loses_entries() {
    let seed: u64 = std::env::var("FEATURESTORE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("FEATURESTORE_TEST_SEED={seed}");
    let pair = Pair::real();
    let servers = [pair.serve_with(&PATIENT).await, pair.serve_with(&PATIENT).await];
    let mut setup = servers[0].client().await;
    for key in 0..KEYS {
        write(&mut setup, &key.to_string(), 0.0).await.unwrap();
    }
    let redis = pair.redis.as_ref().unwrap();
    let keys: Vec<String> = (0..KEYS).map(|key| redis.cli(&["KEYS", &format!("*:{key}")])).collect();

    let told = Arc::new(Told {
        revisions: Default::default(),
        reads: AtomicU64::new(0),
        degraded: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        uncached: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for (i, server) in servers.iter().cycle().take(12).enumerate() {
        let (told, client) = (told.clone(), server.client().await);
        let dice = StdRng::seed_from_u64(seed * 1000 + i as u64);
        if i < 4 {
            tasks.spawn(run_writer(told, client, dice));
        } else {
            tasks.spawn(run_reader(told, client, dice));
        }
    }
    let mut dice = StdRng::seed_from_u64(seed);
    let mut line = TcpStream::connect(("127.0.0.1", redis.port())).await.unwrap();
    let (start, mut evicted) = (Instant::now(), 0);
    let enough = |evicted: u64| {
        told.reads.load(SeqCst) > 100 && told.writes.load(SeqCst) > 20 && evicted > 20 && start.elapsed() > DURATION
    };
    while !enough(evicted) {
        assert!(start.elapsed() < 20 * DURATION, "hardly anything happens");
        // Redis may lose whatever it likes at any moment.
        let key = &keys[dice.random_range(0..KEYS)];
        line.write_all(format!("DEL {key}\r\n").as_bytes()).await.unwrap();
        let mut reply = [0; 4]; // ":0\r\n" or ":1\r\n"
        line.read_exact(&mut reply).await.unwrap();
        evicted += u64::from(reply[1] == b'1');
        // Now in the middle of a fill, now long after it.
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..10))).await;
        if let Some(ended) = tasks.try_join_next() {
            ended.unwrap();
        }
    }
    told.stop.store(true, SeqCst);
    tasks.join_all().await;
    let (reads, writes) = (told.reads.load(SeqCst), told.writes.load(SeqCst));
    let (degraded, uncached) = (told.degraded.load(SeqCst), told.uncached.load(SeqCst));
    println!("{reads} reads ({degraded} degraded), {writes} writes ({uncached} not cached), {evicted} evictions");
    assert!(2 * degraded < reads && 2 * uncached < writes, "L1 was hardly used");
    for server in servers {
        server.stop().await;
    }
}
