//! Redis fails over to a replica that was behind, where L2 has no change stream, so that nobody can repair what was lost.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::{Deployment, Plan};
use crate::{
    harness::{
        mongod::Mongod,
        process::wait_until,
        proxy::{Line, Proxy},
        redis::RedisServer,
    },
    history::storm::seed,
};

/// For how long the replica is behind: many writes.
const BEHIND: Duration = Duration::from_secs(1);
/// How long nobody calls from the failover on: until the servers have come to the promoted one.
const GONE: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_promoted_replica_hides_nothing_over_the_embedded_store() {
    run_over_folder(Plan { seed: seed(26), length: Duration::ZERO }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_promoted_replica_hides_nothing_over_a_standalone_mongodb() {
    run_over_standalone(Plan { seed: seed(27), length: Duration::ZERO }).await;
}

pub(super) async fn run_over_folder(plan: Plan) {
    run("a replica promoted over the embedded store", 1, &[], plan).await;
}

pub(super) async fn run_over_standalone(plan: Plan) {
    let mongod = Mongod::shared_standalone();
    let database = block_in_place(|| mongod.settled_database());
    let settings = [("MONGO_URI", mongod.uri()), ("MONGO_DB", database)];
    run("a replica promoted over a standalone MongoDB", 2, &settings, plan).await;
}

async fn run(name: &'static str, servers: usize, l2: &[(&'static str, String)], Plan { seed, length }: Plan) {
    let mut redis = block_in_place(|| [RedisServer::start(), RedisServer::start()]);
    let [front, link] = [Proxy::to(redis[0].port()).await, Proxy::to(redis[0].port()).await];
    let mut settings = vec![("REDIS_URL", format!("redis://127.0.0.1:{}", front.port()))];
    settings.extend(l2.iter().cloned());
    let deployment = Deployment::start(&vec![settings.as_slice(); servers], seed, 0).await;
    deployment.until_all_use_l1().await;
    let start = Instant::now();
    let mut master = 0;
    while {
        let replica = 1 - master;
        link.lead_to(redis[master].port());
        link.set(Line::Pass);
        block_in_place(|| {
            redis[replica].cli(&["REPLICAOF", "127.0.0.1", &link.port().to_string()]);
            wait_until("a replica to follow", Duration::from_secs(30), || redis[master].has_replicas(1));
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        link.set(Line::Stall);
        tokio::time::sleep(BEHIND).await;
        // A write that fails meanwhile would warn everybody of what is to come.
        deployment.hold(true).await;
        block_in_place(|| redis[master].kill());
        block_in_place(|| redis[replica].cli(&["REPLICAOF", "NO", "ONE"]));
        front.lead_to(redis[replica].port());
        link.set(Line::Cut);
        block_in_place(|| redis[master].start_again());
        tokio::time::sleep(GONE).await;
        deployment.hold(false).await;
        let took = deployment.until_all_use_l1().await;
        println!("{name}: used {took:.1?} after the failover");
        tokio::time::sleep(Duration::from_secs(1)).await;
        master = replica;
        start.elapsed() < length
    } {}
    deployment.judge(name, seed, None).await;
}
