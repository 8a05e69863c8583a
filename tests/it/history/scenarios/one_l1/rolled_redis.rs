//! A rolling change of Redis, and back: servers are restarted one after the other with another URL while clients call, and
//! the Redis that was left keeps what it held.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::{Deployment, Plan};
use crate::{
    harness::{mongod::Mongod, redis::RedisServer},
    history::storm::seed,
};

/// For how long only one of the servers has come to the other Redis.
const APART: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_change_of_redis_and_back_hides_nothing() {
    run(Plan { seed: seed(21), length: Duration::ZERO }).await;
}

/// There and back once, and again until the time is over.
pub(super) async fn run(Plan { seed, length }: Plan) {
    let redis = block_in_place(|| [RedisServer::start(), RedisServer::start()]);
    let mongod = Mongod::shared_replica_set();
    let settings = [
        ("REDIS_URL", redis[0].url()),
        ("MONGO_URI", mongod.uri()),
        ("MONGO_DB", block_in_place(|| mongod.settled_database())),
    ];
    let mut deployment = Deployment::start(&[&settings, &settings], seed, 0).await;
    deployment.until_all_use_l1().await;
    let start = Instant::now();
    while {
        for to in [1, 0] {
            for server in 0..2 {
                deployment.restart(server, Duration::ZERO, &[("REDIS_URL", &redis[to].url())]).await;
                tokio::time::sleep(APART).await;
            }
            let took = deployment.until_all_use_l1().await;
            println!("rolled to Redis {to}: it is used {took:.1?} after the last restart and {APART:?}");
        }
        start.elapsed() < length
    } {}
    deployment.judge("rolled Redis", seed, None).await;
}
