//! Callers who leave at random moments: nothing of their calls is left, and what they began in both tiers is whole.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::harness::{
    client::*,
    server::{Pair, eventually},
};

const CALLS: usize = 1000;
const AT_ONCE: usize = 64;
const KEYS: usize = 20;

const GAUGES: [&str; 7] = [
    "calls_in_flight",
    "bytes_in_flight",
    "tasks_in_flight",
    "writes_in_flight",
    "flights_in_flight",
    "l2_reads_in_flight",
    "l2_reads_waiting",
];

/// One call of some sort, whatever it is answered.
async fn call(mut client: Client, sort: u32, keys: Vec<String>) {
    match sort {
        0 => _ = client.get_features(get(keys)).await,
        1 => _ = client.get_features(strong(keys)).await,
        2 => _ = client.upsert_features(upsert(record(&keys[0], [("n", double(1.0))]))).await,
        3 => _ = client.delete_features(delete(keys)).await,
        _ => {
            let records = keys.iter().map(|key| record(key, [("n", double(2.0))]));
            _ = bulk(&mut client, [BulkUpsertRequest { warm_cache: sort == 4, ..chunk(1, records) }]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_calls_that_were_cancelled_at_random_moments() {
    let seed: u64 = std::env::var("FEATURESTORE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("FEATURESTORE_TEST_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let pair = Pair::real();
    // So few reads of L2 at once that callers leave its queue too.
    let server = pair.serve_with(&[("FEATURESTORE_L2_MAX_READS", "2")]).await;
    let clients = [server.client().await, server.client().await, server.client().await, server.client().await];
    let (places, mut calls) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for i in 0..CALLS {
        if i % 50 == 0 {
            pair.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
        }
        let place = places.clone().acquire_owned().await.unwrap();
        let keys: std::collections::BTreeSet<String> =
            (0..dice.random_range(1..5)).map(|_| dice.random_range(0..KEYS).to_string()).collect();
        let (sort, patience) = (dice.random_range(0..6), Duration::from_micros(dice.random_range(0..30_000)));
        let client = clients[i % clients.len()].clone();
        calls.spawn(async move {
            let _place = place;
            tokio::time::timeout(patience, call(client, sort, keys.into_iter().collect())).await.is_err()
        });
    }
    let cancelled = calls.join_all().await.into_iter().filter(|cancelled| *cancelled).count();
    println!("{cancelled} of {CALLS} calls were cancelled");
    assert!(cancelled > CALLS / 10, "{cancelled}");
    for gauge in GAUGES {
        let name = format!("featurestore_{gauge}");
        eventually(&format!("{name} to be zero"), async || server.metric(&name).await == 0.0).await;
    }
    // Both tiers say the same of every key, and nothing that was cancelled keeps L1 from being used.
    let mut client = server.client().await;
    let ids = || (0..KEYS).map(|i| i.to_string());
    eventually("L1 to answer for all", async || {
        let Ok(answer) = client.get_features(get(ids())).await else { return false };
        let answer = answer.into_inner();
        !answer.degraded && answer.rows.iter().all(|row| row.source() == Source::L1)
    })
    .await;
    let (hits, stored) = (rows(&mut client, get(ids())).await, rows(&mut client, strong(ids())).await);
    for (hit, stored) in hits.iter().zip(&stored) {
        assert_eq!((hit.revision, &hit.features), (stored.revision, &stored.features), "{hit:?} {stored:?}");
    }
    server.stop().await;
}
