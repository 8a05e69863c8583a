//! Redis comes back with what it held before: nothing of that may hide a write that was acknowledged meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
};

use super::*;
use crate::harness::{binary::Binary, redis::RedisServer, server::Pair};

const KEYS: usize = 20;

fn id(i: usize) -> String {
    format!("k{i}")
}

/// The newest acknowledged revision of each key, and readers that hold every answer to it.
#[derive(Clone)]
struct Watch {
    acked: Arc<[AtomicI64]>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn new() -> Self {
        Self { acked: (0..KEYS).map(|_| AtomicI64::new(0)).collect(), stop: Arc::default() }
    }

    /// Writes all keys; says whether each was cached.
    async fn write_all(&self, client: &mut Client, n: f64) -> Vec<bool> {
        let mut cached = Vec::new();
        for i in 0..KEYS {
            let written = write(client, &id(i), n).await.unwrap();
            self.acked[i].fetch_max(written.revision, SeqCst);
            cached.push(written.cached);
        }
        cached
    }

    /// Reads every key once; true if L1 answered for all.
    async fn check_all(&self, client: &mut Client) -> bool {
        let at_least: Vec<i64> = self.acked.iter().map(|acked| acked.load(SeqCst)).collect();
        let answer = client.get_features(get((0..KEYS).map(id))).await.unwrap().into_inner();
        for (row, at_least) in answer.rows.iter().zip(at_least) {
            assert!(row.revision >= at_least, "acknowledged {at_least}, then read {row:?}");
        }
        !answer.degraded && answer.rows.iter().all(|row| row.source() == Source::L1)
    }

    /// Reads every key once; true if L1 answered for all, with nothing older than what was acknowledged.
    async fn are_all_new(&self, client: &mut Client) -> bool {
        let answer = client.get_features(get((0..KEYS).map(id))).await.unwrap().into_inner();
        let is_new =
            |(row, acked): (&FeatureRow, &AtomicI64)| row.revision >= acked.load(SeqCst) && row.source() == Source::L1;
        answer.rows.iter().zip(&*self.acked).all(is_new)
    }

    /// Reads and checks all the time until it is stopped.
    fn readers(&self, clients: Vec<Client>) -> tokio::task::JoinSet<u64> {
        let mut readers = tokio::task::JoinSet::new();
        for mut client in clients {
            let watch = self.clone();
            readers.spawn(async move {
                let mut reads = 0;
                while !watch.stop.load(SeqCst) {
                    watch.check_all(&mut client).await;
                    reads += 1;
                }
                reads
            });
        }
        readers
    }

    /// Stops the readers once L1 answers for all keys again, and writes are cached.
    async fn until_recovered(&self, client: &mut Client, readers: tokio::task::JoinSet<u64>) {
        let start = Instant::now();
        eventually("L1 to answer for all", async || self.check_all(client).await).await;
        println!("L1 answers for all {:?} after it came back", start.elapsed());
        eventually("writes to be cached", async || self.write_all(client, 9.0).await.iter().all(|cached| *cached))
            .await;
        eventually("L1 to answer for all of that", async || self.check_all(client).await).await;
        self.stop.store(true, SeqCst);
        let reads: u64 = readers.join_all().await.into_iter().sum();
        assert!(reads > 0);
    }
}

/// Fills L1 with all keys, and takes it away while they are written again.
async fn lose(pair: &mut Pair, client: &mut Client, watch: &Watch, take_away: impl FnOnce(&mut RedisServer)) {
    eventually("L1 to hold all", async || {
        watch.write_all(client, 1.0).await.iter().all(|cached| *cached) && watch.check_all(client).await
    })
    .await;
    take_away(pair.redis());
    let cached = watch.write_all(client, 2.0).await;
    assert!(cached.iter().all(|cached| !cached), "{cached:?}");
    watch.check_all(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thawed_redis_still_holds_hides_no_write() {
    let mut pair = Pair::real();
    let server = pair.serve_with(&[PATIENT_READS]).await;
    let (mut client, watch) = (server.client().await, Watch::new());
    lose(&mut pair, &mut client, &watch, |redis| redis.freeze()).await;
    let readers = watch.readers(vec![server.client().await, server.client().await]);
    pair.redis().thaw();
    watch.until_recovered(&mut client, readers).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_redis_restored_from_its_snapshot_holds_hides_no_write() {
    let mut pair = Pair::real();
    // No automatic snapshot; one is taken by hand, and loaded at the start.
    let server = pair.serve_with(&[PATIENT_READS]).await;
    let (mut client, watch) = (server.client().await, Watch::new());
    lose(&mut pair, &mut client, &watch, |redis| {
        assert_eq!(redis.cli(&["SAVE"]), "OK");
        redis.kill();
    })
    .await;
    let readers = watch.readers(vec![server.client().await, server.client().await]);
    pair.redis().start_again();
    assert!(pair.redis().cli(&["DBSIZE"]).parse::<usize>().unwrap() > KEYS, "it came back empty");
    watch.until_recovered(&mut client, readers).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restored_so_fast_that_no_write_fails_hides_no_write_either() {
    let mut pair = Pair::real();
    let server = pair.serve_with(&[PATIENT_READS]).await;
    let (mut client, watch) = (server.client().await, Watch::new());
    for n in 0..3 {
        watch.write_all(&mut client, 1.0).await;
        assert_eq!(pair.redis().cli(&["SAVE"]), "OK");
        // These are confirmed by L1, and then L1 forgets them.
        watch.write_all(&mut client, f64::from(n)).await;
        let readers = watch.readers(vec![server.client().await, server.client().await]);
        pair.redis().restart();
        watch.until_recovered(&mut client, readers).await;
        watch.stop.store(false, SeqCst);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_could_not_tell_redis_is_made_good_when_it_starts_again() {
    let mut pair = Pair::real();
    let data = crate::harness::process::temp_dir();
    for freeze in [true, false] {
        let watch = Watch::new();
        let backends: Vec<_> = pair.settings().into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let mut settings: Vec<_> = backends.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.push(PATIENT_READS);
        settings.push(("FEATURESTORE_DATA_DIR", data.path().to_str().unwrap()));
        let mut server = Binary::start(&settings);
        server.until_serving().await;
        let mut client = server.client().await;
        eventually("writes to be cached", async || watch.write_all(&mut client, 0.0).await.iter().all(|c| *c)).await;
        lose(&mut pair, &mut client, &watch, |redis| {
            if freeze {
                redis.freeze();
            } else {
                assert_eq!(redis.cli(&["SAVE"]), "OK");
                redis.kill();
            }
        })
        .await;
        server.kill();
        let server = Binary::start(&settings);
        if freeze {
            pair.redis().thaw();
        } else {
            pair.redis().start_again();
        }
        server.until_serving().await;
        if freeze {
            // Nothing shows that this Redis missed something. What was answered `cached = false` may be hidden by it until
            // the repairer comes to it, and from then on never again.
            let (mut reader, start) = (server.client().await, Instant::now());
            eventually("the repairer to make it good", async || watch.are_all_new(&mut reader).await).await;
            println!("made good {:?} after the start", start.elapsed());
        }
        let readers = watch.readers(vec![server.client().await, server.client().await]);
        watch.until_recovered(&mut server.client().await, readers).await;
    }
}
