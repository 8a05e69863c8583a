//! The contract of `Store`, on a replica set and on a standalone server.

use super::*;
use crate::store_contract::{fixture, keeps_the_contract};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_keeps_the_contract() {
    keeps_the_contract(Bench::on(Mongod::shared_replica_set(), fixture::rules()).await.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_server_keeps_the_contract() {
    keeps_the_contract(Bench::on(Mongod::shared_standalone(), fixture::rules()).await.store).await;
}
