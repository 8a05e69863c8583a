//! A MongoDB replica set of three whose primary dies, steps down or freezes while the server serves: what was
//! acknowledged stays, nothing is applied twice, and records in L1 are answered all the while.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::harness::{
    client::*,
    mongod_set::MongodSet,
    redis::RedisServer,
    server::{Server, eventually},
};

const WRITERS: usize = 4;

/// A server over the set and a Redis.
struct Bench {
    set: MongodSet,
    server: Server,
    _redis: RedisServer,
}

impl Bench {
    async fn start() -> Self {
        let set = tokio::task::spawn_blocking(MongodSet::start).await.unwrap();
        let redis = RedisServer::start();
        let (redis_url, uri, database) = (redis.url(), set.uri(), set.settled_database());
        // A busy machine is not a lost Redis: every cached record is to be answered by L1.
        let patient = ("FEATURESTORE_L1_TIMEOUT", "5s");
        let settings = [("REDIS_URL", &*redis_url), ("MONGO_URI", &*uri), ("MONGO_DB", &*database), patient];
        let server = Server::start(&settings).await;
        Self { set, server, _redis: redis }
    }
}

/// What writers were told: by entity and request id, the number written and the revision answered.
type Acknowledged = HashMap<(String, String), (f64, i64)>;

/// Writes its own keys one number after the other; a write that was not answered OK is repeated with its request id until
/// it is.
async fn write_until(stop: Arc<AtomicBool>, mut client: Client, writer: usize, failed: Arc<AtomicU64>) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for n in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        let (id, request_id) = (format!("w{writer}-{}", n % 3), format!("{writer}-{n}"));
        let number = f64::from(n);
        let written = loop {
            let request = UpsertFeaturesRequest {
                request_id: request_id.clone(),
                ..upsert(record(&id, [("n", double(number))]))
            };
            match client.upsert_features(request).await {
                Ok(written) => break written.into_inner(),
                Err(status) => {
                    failed.fetch_add(1, SeqCst);
                    let expected = [tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];
                    assert!(expected.contains(&status.code()), "{status:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        acknowledged.insert((id, request_id), (number, written.revision));
    }
    acknowledged
}

/// Reads one record that nobody writes; it is in L1, so no state of MongoDB may take it away.
async fn read_until(stop: Arc<AtomicBool>, mut client: Client) -> u64 {
    let mut reads = 0;
    while !stop.load(SeqCst) {
        let row = row(&mut client, get(["cached"])).await;
        assert_eq!((row.status(), row.source()), (RowStatus::Found, Source::L1), "{row:?}");
        reads += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    reads
}

/// Runs writers and readers through `trouble`, and holds what stands afterwards to what was acknowledged.
async fn through(trouble: impl AsyncFnOnce(&mut MongodSet)) {
    let mut bench = Bench::start().await;
    let mut client = bench.server.client().await;
    put(&mut client, record("cached", [("n", double(1.0))])).await;
    assert_eq!(row(&mut client, get(["cached"])).await.source(), Source::L1);

    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_until(stop.clone(), bench.server.client().await, writer, failed.clone()));
    }
    let reader = tokio::spawn(read_until(stop.clone(), bench.server.client().await));
    let before = Instant::now();
    trouble(&mut bench.set).await;
    eventually("writes to be taken again", async || {
        client.upsert_features(upsert(record("after", [("n", double(1.0))]))).await.is_ok()
    })
    .await;
    println!("writes are taken again after {:?}", before.elapsed());
    tokio::time::sleep(Duration::from_millis(300)).await; // some more of what the writers do in good weather
    stop.store(true, SeqCst);
    let acknowledged: Vec<Acknowledged> = writers.join_all().await;
    let reads = reader.await.unwrap();
    let all: usize = acknowledged.iter().map(HashMap::len).sum();
    println!("{all} acknowledged, {} refused, {reads} reads of a cached record", failed.load(SeqCst));
    assert!(reads > 0 && all > 0);

    let mut newest: HashMap<&str, (f64, i64)> = HashMap::new();
    for ((id, _), told) in acknowledged.iter().flatten() {
        let stands = newest.entry(id).or_insert(*told);
        // The writer of a key is alone, so its numbers rise with its revisions: nothing was applied a second time later.
        assert_eq!(stands.0 < told.0, stands.1 < told.1, "{id}: {stands:?} and {told:?}");
        if told.0 > stands.0 {
            *stands = *told;
        }
    }
    for (id, (number, revision)) in newest {
        for request in [get([id]), strong([id])] {
            let row = row(&mut client, request).await;
            let expected = (revision, features([("n", double(number))]));
            assert_eq!((row.revision, row.features.clone()), expected, "{row:?}");
        }
    }
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_loses_no_acknowledged_write_and_applies_none_twice() {
    through(async |set| {
        let killed = set.kill_primary();
        set.wait_for_primary();
        set.node(killed).start_again();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_steps_down_loses_nothing_either() {
    through(async |set| set.step_down()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_is_deposed_and_does_no_harm_when_it_thaws() {
    through(async |set| {
        let frozen = set.wait_for_primary();
        set.node(frozen).signal("STOP");
        // It answers nothing until it is thawed, and then still believes for a moment that it is the primary.
        set.wait_for_another_primary(frozen);
        set.node(frozen).signal("CONT");
    })
    .await;
}
