//! The address of Redis comes to lead to another one while the first lives on: servers whose connections stand go on with
//! it, and those that reconnect use the other. And back, to what that one held.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::{Deployment, Plan};
use crate::{
    harness::{
        mongod::Mongod,
        proxy::{Line, Proxy},
        redis::RedisServer,
    },
    history::storm::seed,
};

/// For how long only one of the servers has come to the other Redis.
const APART: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_address_that_leads_to_another_redis_hides_nothing() {
    run(Plan { seed: seed(22), length: Duration::ZERO }).await;
}

pub(super) async fn run(Plan { seed, length }: Plan) {
    let redis = block_in_place(|| [RedisServer::start(), RedisServer::start()]);
    let mongod = Mongod::shared_replica_set();
    let database = block_in_place(|| mongod.settled_database());
    let lines = [Proxy::to(redis[0].port()).await, Proxy::to(redis[0].port()).await];
    let settings = lines.each_ref().map(|line| {
        let url = format!("redis://127.0.0.1:{}", line.port());
        [("REDIS_URL", url), ("MONGO_URI", mongod.uri()), ("MONGO_DB", database.clone())]
    });
    let deployment = Deployment::start(&[&settings[0], &settings[1]], seed, 0).await;
    deployment.until_all_use_l1().await;
    let start = Instant::now();
    while {
        for to in [1, 0] {
            lines.iter().for_each(|line| line.lead_to(redis[to].port()));
            for line in &lines {
                line.set(Line::Cut);
                tokio::time::sleep(Duration::from_millis(100)).await;
                line.set(Line::Pass);
                tokio::time::sleep(APART).await;
            }
            let took = deployment.until_all_use_l1().await;
            println!("led to Redis {to}: it is used {took:.1?} after the last reconnect and {APART:?}");
        }
        start.elapsed() < length
    } {}
    deployment.judge("address of Redis led elsewhere", seed, None).await;
}
