//! A copy of L2 is used beside the original, over the same Redis: neither sees what only the other one holds.

use std::{path::Path, time::Duration};

use bson::{Document, doc};
use tokio::task::block_in_place;

use super::{Deployment, Plan, server};
use crate::{
    harness::{client as api, mongod::Mongod, redis::RedisServer},
    history::storm::seed,
};

const SHORT: Duration = Duration::from_secs(6);
/// Numbers the writes to the copy; the original's never come so far.
const APART: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_of_a_database_and_its_original_do_not_meet_in_redis() {
    run_over_mongodb(Plan { seed: seed(23), length: SHORT }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_of_a_data_folder_and_its_original_do_not_meet_in_redis() {
    run_over_folders(Plan { seed: seed(24), length: SHORT }).await;
}

pub(super) async fn run_over_mongodb(plan: Plan) {
    let (redis, mongod) = (block_in_place(RedisServer::start), Mongod::shared_replica_set());
    let database = block_in_place(|| mongod.settled_database());
    let (copy, url) = (format!("{database}_copy"), redis.url());
    let settings =
        |database: &str| [("REDIS_URL", url.clone()), ("MONGO_URI", mongod.uri()), ("MONGO_DB", database.to_owned())];
    let original = server(&settings(&database));
    original.until_serving().await;
    let mut client = original.client().await;
    // So that there is something to copy.
    client.upsert_features(api::upsert(api::record("before", []))).await.expect("a write");
    let in_it = mongod.database(&database).await;
    for name in ["features", "meta"] {
        let out = doc! { "$out": { "db": &copy, "coll": name } };
        in_it.collection::<Document>(name).aggregate([out]).await.expect("a copy");
    }
    let copied = server(&settings(&copy));
    judge(
        Deployment::over(vec![original], plan.seed, 0).await,
        Deployment::over(vec![copied], plan.seed, APART).await,
        plan,
    )
    .await;
}

pub(super) async fn run_over_folders(plan: Plan) {
    let redis = block_in_place(RedisServer::start);
    let settings = [("REDIS_URL", redis.url())];
    let mut original = server(&settings);
    original.until_serving().await;
    // One of its own, for its folder.
    let mut copied = server(&[]);
    copied.until_serving().await;
    for server in [&mut original, &mut copied] {
        server.signal("TERM");
        assert_eq!(block_in_place(|| server.exit_code(Duration::from_secs(60))), 0, "{}", server.log());
    }
    std::fs::remove_dir_all(copied.data_dir()).unwrap();
    copy_folder(&original.data_dir(), &copied.data_dir());
    original.start_again();
    copied.start_again_with(&[("REDIS_URL", &redis.url())]);
    judge(
        Deployment::over(vec![original], plan.seed, 0).await,
        Deployment::over(vec![copied], plan.seed, APART).await,
        plan,
    )
    .await;
}

/// Each against its own L2.
async fn judge(original: Deployment, copy: Deployment, Plan { seed, length }: Plan) {
    tokio::time::sleep(length).await;
    original.until_all_use_l1().await;
    copy.until_all_use_l1().await;
    original.judge("the original beside a copy of L2", seed, None).await;
    copy.judge("the copy of L2 beside its original", seed, None).await;
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success(), "{} cannot be copied to {}", from.display(), to.display());
}
