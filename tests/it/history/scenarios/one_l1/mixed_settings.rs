//! Servers over one L2 that were given different L1s: one database of Redis, another one, and an L1 in the process. They
//! are restarted in turn, so that each comes to be the one whose L1 counts.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::{Deployment, Plan};
use crate::{
    harness::{mongod::Mongod, redis::RedisServer},
    history::storm::seed,
};

/// The server whose L1 is its own.
const PRIVATE: u8 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_of_mixed_settings_hide_nothing_from_each_other() {
    run(Plan { seed: seed(25), length: Duration::ZERO }).await;
}

pub(super) async fn run(Plan { seed, length }: Plan) {
    let (redis, mongod) = (block_in_place(RedisServer::start), Mongod::shared_replica_set());
    let database = block_in_place(|| mongod.settled_database());
    let private = [("MONGO_URI", mongod.uri()), ("MONGO_DB", database)];
    let over = |number| {
        let url = ("REDIS_URL", format!("{}/{number}", redis.url()));
        private.iter().cloned().chain([url]).collect::<Vec<_>>()
    };
    let mut deployment = Deployment::start(&[&over(0), &over(1), &private], seed, 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let start = Instant::now();
    while {
        for server in [0, 1, 2] {
            // So long that no lease of its own is left.
            deployment.restart(server, Duration::from_secs(6), &[]).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        start.elapsed() < length
    } {}
    deployment.judge("mixed settings of L1", seed, Some(PRIVATE)).await;
}
