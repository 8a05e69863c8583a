//! What a read costs, counted where it lands: commands by Redis' own count, queries by MongoDB's own profiler.

use std::{collections::BTreeSet, time::Duration};

use mongodb::{
    Database,
    bson::{Document, doc},
};
use tonic::Code;

use crate::harness::{
    backends::Backends,
    client::*,
    mongod::Mongod,
    redis::RedisServer,
    server::{Pair, Server, eventually},
};

/// Counts from a moment on.
struct Costs<'a> {
    redis: &'a RedisServer,
    database: Database,
    mget: u64,
    evalsha: u64,
    queries: u64,
}

impl<'a> Costs<'a> {
    /// From now on; the database must be profiled.
    async fn from_now(redis: &'a RedisServer, database: &Database) -> Self {
        let (mget, evalsha) = (redis.calls("mget"), redis.calls("evalsha"));
        Self { redis, database: database.clone(), mget, evalsha, queries: queries(database).await }
    }

    /// MGETs, operations on entries, and MongoDB queries since.
    async fn until_now(&self) -> (u64, u64, u64) {
        let (mget, evalsha) = (self.redis.calls("mget") - self.mget, self.redis.calls("evalsha") - self.evalsha);
        (mget, evalsha, queries(&self.database).await - self.queries)
    }
}

async fn profiled(mongod: &Mongod, name: &str) -> Database {
    let database = mongod.database(name).await;
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    database
}

/// Whatever was asked of the records: finds, getMores, counts. But not what the repairer does, who follows a change stream.
async fn queries(database: &Database) -> u64 {
    let no = doc! { "$exists": false };
    let about = doc! {
        "ns": format!("{}.features", database.name()), "op": { "$in": ["query", "getmore", "command"] },
        "command.aggregate": &no, "originatingCommand.aggregate": &no, "command.killCursors": &no,
    };
    database.collection::<Document>("system.profile").count_documents(about).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_duplicates_and_gaps_comes_back_in_order_at_the_price_of_one_round_trip_a_step() {
    let pair = Pair::real();
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let mut client = server.client().await;
    let database = profiled(pair.mongod.unwrap(), pair.database()).await;

    let written = |i: usize| !i.is_multiple_of(4);
    let records = (0..400).filter(|i| written(*i)).map(|i| record(&format!("e{i}"), [("n", double(i as f64))]));
    let chunk = BulkUpsertRequest { records: records.collect(), ..BulkUpsertRequest::default() };
    let mut answers = client.bulk_upsert(tokio_stream::iter([chunk])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().written, 300);

    // The repairer tells Redis of each of these writes too.
    eventually("it to have done so", async || server.tiered.repairs().reading().written >= 300).await;

    // The first use of a script in a new Redis costs one more trip, to load it.
    client.get_features(get(["another"])).await.unwrap();

    // 500 ids of 350 entities in a jumbled order: one in four is not there, 150 come twice.
    let asked: Vec<usize> = (0..500).map(|i| (i % 350) * 37 % 400).collect();
    let distinct = asked.iter().collect::<BTreeSet<_>>().len() as u64;
    assert_eq!(distinct, 350);
    let request = get(asked.iter().map(|i| format!("e{i}")));
    for (temperature, source, cost) in [("cold", Source::L2, (1, 2 * distinct, 1)), ("warm", Source::L1, (1, 0, 0))] {
        let costs = Costs::from_now(redis, &database).await;
        let read = client.get_features(request.clone()).await.unwrap().into_inner();
        assert_eq!(costs.until_now().await, cost, "MGETs, ACQUIREs and SETTLEs, queries of a {temperature} batch");
        assert!(!read.degraded, "{temperature}");
        assert_eq!(read.rows.len(), asked.len());
        for (row, i) in read.rows.iter().zip(&asked) {
            assert_eq!(row.entity_id, format!("e{i}"), "{temperature}");
            assert_eq!(row.source(), source, "{temperature}: {row:?}");
            if written(*i) {
                assert_eq!(row.status(), RowStatus::Found, "{temperature}: {row:?}");
                assert_eq!(row.features, features([("n", double(*i as f64))]), "{temperature}");
            } else {
                assert_eq!(row.status(), RowStatus::NotFound, "{temperature}: {row:?}");
            }
        }
    }
    server.stop().await;
}

/// How often Redis found something to read from a client, at least, while `work` ran: what is beyond that is the
/// watcher's, who comes once a second.
async fn trips(redis: &RedisServer, mut work: impl AsyncFnMut(usize)) -> u64 {
    let reads = || {
        let stats = redis.cli(&["INFO", "stats"]);
        let reads = stats.lines().find_map(|line| line.strip_prefix("total_reads_processed:")).unwrap();
        reads.parse::<u64>().unwrap()
    };
    let mut fewest = u64::MAX;
    for round in 0..10 {
        let before = reads();
        work(round).await;
        fewest = fewest.min(reads() - before);
    }
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_makes_three_trips_to_redis_when_cold_and_one_when_warm() {
    let pair = Pair::new(true, false);
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let mut client = server.client().await;
    // Few enough that a pipeline fits into what Redis reads at once (16 KiB).
    let ids = |round: usize| (0..40).map(move |i| format!("r{round}-{i}"));
    let idle = trips(redis, async |_| {}).await;
    for (temperature, expected) in [("cold", 3), ("warm", 1)] {
        let read = async |round| {
            let read = client.get_features(get(ids(round))).await.unwrap().into_inner();
            assert!(!read.degraded);
        };
        assert_eq!(trips(redis, read).await - idle, expected, "{temperature}");
    }
    server.stop().await;
}

/// Lets every find of the records take this long, so that callers have the time to come together.
async fn slow_finds(backends: &Backends, by: Duration) {
    let data = doc! {
        "failCommands": ["find"], "namespace": "featurestore.features",
        "blockConnection": true, "blockTimeMS": by.as_millis() as i64,
    };
    let command = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    backends.mongod.database("admin").await.run_command(command).await.unwrap();
}

/// A thousand reads of one key at once, over connections enough for all of them to be on their way together.
async fn a_thousand_reads(server: &Server, timeout: Duration) -> Vec<Result<GetFeaturesResponse, tonic::Status>> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = server.client().await;
        for _ in 0..125 {
            let mut client = client.clone();
            let mut request = tonic::Request::new(get(["hot"]));
            request.set_timeout(timeout);
            calls.spawn(async move { client.get_features(request).await.map(tonic::Response::into_inner) });
        }
    }
    calls.join_all().await
}

const SLOW: Duration = Duration::from_millis(1500);
const PATIENT: Duration = Duration::from_secs(60);

async fn hot_key(backends: &Backends) -> (Server, Client, Database) {
    let patient = [("FEATURESTORE_DEADLINES_READ", "60s"), ("FEATURESTORE_L1_TIMEOUT", "5s")];
    let server = backends.serve(&patient).await;
    let mut client = server.client().await;
    client.upsert_features(upsert(record("hot", [("n", double(1.0))]))).await.unwrap();
    let database = profiled(&backends.mongod, "featurestore").await;
    slow_finds(backends, SLOW).await;
    (server, client, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_cold_reads_of_one_key_share_a_read_of_l2() {
    let mut backends = Backends::start();
    let (server, _, database) = hot_key(&backends).await;
    for l1 in [true, false] {
        if l1 {
            let key = backends.redis.cli(&["KEYS", "*:hot"]);
            assert_eq!(backends.redis.cli(&["DEL", &key]), "1");
        } else {
            backends.redis.kill();
            eventually("L1 to be given up", async || !server.tiered.trust().breaker.is_healthy()).await;
        }
        let before = queries(&database).await;
        for answer in a_thousand_reads(&server, PATIENT).await {
            let answer = answer.unwrap();
            assert_eq!(answer.rows[0].features, features([("n", double(1.0))]));
            assert_eq!(answer.degraded, !l1);
        }
        let reads = queries(&database).await - before;
        println!("{reads} reads of L2 for 1000 callers, L1 {}", if l1 { "used" } else { "bypassed" });
        // Two where a caller came after the first was sent.
        assert!((1..=2).contains(&reads), "{reads} reads of L2, L1 used: {l1}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_give_up_do_not_cancel_the_fill() {
    let backends = Backends::start();
    let (server, mut client, database) = hot_key(&backends).await;
    let key = backends.redis.cli(&["KEYS", "*:hot"]);
    assert_eq!(backends.redis.cli(&["DEL", &key]), "1");
    let before = queries(&database).await;
    for answer in a_thousand_reads(&server, Duration::from_millis(200)).await {
        let status = answer.unwrap_err();
        // The client's own clock may be the first to notice.
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    }
    // Until it is filled the entry is pending and begins with a P.
    eventually("the fill", async || backends.redis.cli(&["GETRANGE", &key, "0", "0"]) == "V").await;
    let row = client.get_features(get(["hot"])).await.unwrap().into_inner().rows.remove(0);
    assert_eq!((row.status(), row.source()), (RowStatus::Found, Source::L1));
    let reads = queries(&database).await - before;
    assert!((1..=2).contains(&reads), "{reads} reads of L2");
    server.stop().await;
}
