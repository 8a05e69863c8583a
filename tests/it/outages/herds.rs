//! Redis forgets everything while hundreds read: nobody fails for it at a load that L2 can take, what is beyond is shed and
//! not absent, and afterwards L1 answers again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use mongodb::bson::doc;
use rand::RngExt as _;
use tokio::task::JoinSet;

use super::*;
use crate::harness::{backends::Backends, server::Pair};

const HOT: usize = 50;
const MANY: usize = 2000;
/// Ten times what it takes to fill L1 again on a busy machine.
const HITS_ARE_BACK: Duration = Duration::from_secs(100);
/// Records of a message.
const CHUNK: usize = 200;
/// A busy test machine is neither a lost Redis nor a herd.
const PATIENT: [(&str, &str); 3] = [
    ("FEATURESTORE_DEADLINES_READ", "20s"),
    ("FEATURESTORE_DEADLINES_WRITE", "60s"),
    ("FEATURESTORE_L1_TIMEOUT", "10s"),
];

fn id(i: usize) -> String {
    format!("k{i}")
}

async fn fill(server: &Server) {
    let records = |from: usize| (from..from + CHUNK).map(|i| record(&id(i), [("n", double(i as f64))]));
    let chunks = (0..MANY).step_by(CHUNK).map(|from| BulkUpsertRequest { warm_cache: true, ..chunk(1, records(from)) });
    let (answers, ended) = bulk(&mut server.client().await, chunks).await;
    assert!(ended.is_none() && answers.iter().all(|answer| answer.written == CHUNK as u64), "{ended:?}");
}

/// Readers that go on until they are stopped.
#[derive(Default)]
struct Herd {
    stop: Arc<AtomicBool>,
    shed: Arc<AtomicU64>,
    readers: JoinSet<()>,
}

impl Herd {
    /// So many readers of so many of these keys at a time.
    async fn join(&mut self, server: &Server, readers: usize, keys: usize, at_a_time: usize) {
        let mut connected = server.client().await;
        for i in 0..readers {
            if i % 50 == 0 {
                // Enough of them that all are on their way together.
                connected = server.client().await;
            }
            let (stop, shed, mut client) = (self.stop.clone(), self.shed.clone(), connected.clone());
            self.readers.spawn(async move {
                while !stop.load(SeqCst) {
                    // What the test machine can bear beside others.
                    let pause = rand::rng().random_range(200..600);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    let asked: Vec<usize> = (0..at_a_time).map(|_| rand::rng().random_range(0..keys)).collect();
                    let answer = client.get_features(get(asked.iter().copied().map(id))).await;
                    let rows = match answer {
                        Ok(answer) => answer.into_inner().rows,
                        Err(status) => {
                            let refusal = Refusal::of(&status);
                            assert_eq!(refusal.code, tonic::Code::ResourceExhausted, "{status:?}");
                            assert!(refusal.retry && refusal.reason == "TOO_BUSY", "{status:?}");
                            shed.fetch_add(1, SeqCst);
                            continue;
                        }
                    };
                    for (row, i) in rows.iter().zip(asked) {
                        if row.status() == RowStatus::Error {
                            assert_eq!(row.error.as_ref().unwrap().code, tonic::Code::ResourceExhausted as i32);
                            shed.fetch_add(1, SeqCst);
                        } else {
                            assert_eq!(row.status(), RowStatus::Found, "{row:?}");
                            assert_eq!(row.features, features([("n", double(i as f64))]));
                        }
                    }
                }
            });
        }
    }

    fn shed(&self) -> u64 {
        self.shed.load(SeqCst)
    }

    async fn disperse(self) {
        self.stop.store(true, SeqCst);
        self.readers.join_all().await;
    }
}

fn asked(server: &Server) -> (u64, u64) {
    let reading = server.tiered.l1_meter.reading();
    (reading.hits, reading.misses)
}

/// Waits until L1 answers 19 of 20 that are asked for.
async fn until_hits_are_back(server: &Server) {
    let (mut then, start) = (asked(server), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = asked(server);
        let (hits, misses) = (now.0 - then.0, now.1 - then.1);
        if hits > 0 && hits >= 19 * misses {
            return;
        }
        assert!(start.elapsed() < HITS_ARE_BACK, "{hits} hits and {misses} misses after {HITS_ARE_BACK:?}");
        then = now;
    }
}

fn l2_reads(server: &Server) -> u64 {
    let reading = server.tiered.l2_meter.reading();
    reading.hits + reading.misses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_under_load_fails_no_read_and_is_filled_again_at_little_cost() {
    let pair = Pair::real();
    // A read waits for a place for a quarter of its deadline: too long for this herd, which L2 can take, to be shed.
    let server = pair.serve_with(&[&PATIENT[..], &[("FEATURESTORE_DEADLINES_READ", "10min")]].concat()).await;
    fill(&server).await;
    let mut herd = Herd::default();
    herd.join(&server, 200, HOT, 1).await;
    herd.join(&server, 10, MANY, 100).await;
    until_hits_are_back(&server).await;
    for _ in 0..2 {
        let (before, start) = (l2_reads(&server), Instant::now());
        pair.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
        eventually("L2 to be asked", async || l2_reads(&server) > before + HOT as u64).await;
        until_hits_are_back(&server).await;
        let reads = l2_reads(&server) - before;
        println!("{reads} reads of L2 for {MANY} keys, hits are back after {:?}", start.elapsed());
        // Once each, and once more where a reader came while the first was on its way.
        assert!(reads < 3 * MANY as u64, "{reads}");
    }
    assert_eq!(herd.shed(), 0);
    assert!(server.tiered.l2_breaker().is_healthy());
    herd.disperse().await;
    server.stop().await;
}

/// How long every find of the records takes from now on.
async fn finds_take(backends: &Backends, by: Duration) {
    let data = doc! {
        "failCommands": ["find"], "namespace": "featurestore.features",
        "blockConnection": true, "blockTimeMS": by.as_millis() as i64,
    };
    let mode = if by.is_zero() { "off" } else { "alwaysOn" };
    let command = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data };
    backends.mongod.database("admin").await.run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_beyond_what_l2_may_be_asked_is_shed_and_stands_in_no_writes_way() {
    let backends = Backends::start();
    let server = backends.serve(&[&PATIENT[..], &[("FEATURESTORE_L2_MAX_READS", "1")]].concat()).await;
    fill(&server).await;
    let mut herd = Herd::default();
    // Few enough keys that one read at a time fills L1 with them again soon.
    herd.join(&server, 200, 100, 1).await;
    until_hits_are_back(&server).await;
    let shed = herd.shed();
    finds_take(&backends, Duration::from_millis(500)).await;
    backends.redis.cli(&["FLUSHALL"]);
    eventually("some to be shed", async || herd.shed() > shed).await;
    let mut writer = server.client().await;
    eventually("a write to be cached", async || write(&mut writer, "k0", 0.0).await.unwrap().cached).await;
    assert!(server.tiered.l2_reads().waiting() > 0, "the herd is still there");
    assert!(server.tiered.l2_breaker().is_healthy());
    println!("{} reads were shed", herd.shed() - shed);
    assert!(server.metric("featurestore_l2_reads_shed_total").await >= 1.0);
    finds_take(&backends, Duration::ZERO).await;
    until_hits_are_back(&server).await;
    herd.disperse().await;
    for gauge in ["l2_reads_in_flight", "l2_reads_waiting", "flights_in_flight", "tasks_in_flight", "calls_in_flight"] {
        let name = format!("featurestore_{gauge}");
        eventually(&name, async || server.metric(&name).await == 0.0).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_negative_entry_never_hides_a_write() {
    let pair = Pair::real();
    let (one, other) = (pair.serve().await, pair.serve().await);
    let (mut writer, mut reader) = (one.client().await, other.client().await);
    for i in 0..20 {
        let id = format!("late {i}");
        for client in [&mut reader, &mut writer] {
            assert_eq!(read(client, &id).await.unwrap().0.status(), RowStatus::NotFound);
        }
        assert_eq!(read(&mut reader, &id).await.unwrap().0.source(), Source::L1, "a negative entry");
        if i % 2 == 0 {
            assert!(write(&mut writer, &id, 1.0).await.unwrap().cached);
        } else {
            let (answers, _) = bulk(&mut writer, [chunk(1, [record(&id, [])])]).await;
            assert!(answers[0].cached);
        }
        for client in [&mut reader, &mut writer] {
            assert_eq!(read(client, &id).await.unwrap().0.status(), RowStatus::Found);
        }
    }
    one.stop().await;
    other.stop().await;
}
