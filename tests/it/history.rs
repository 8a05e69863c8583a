//! The proof under faults: concurrent clients over two server processes, a nemesis that breaks things by seed, and a
//! checker that judges every answer afterwards. `check` says what is held. These are its short forms; `tests/storm.sh`
//! runs it for long.

#![allow(unreachable_pub, reason = "as in the harness")]

pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod event;
mod nemesis;
pub(crate) mod report;
mod scenarios;
mod settled;
pub(crate) mod storm;
pub(crate) mod world;

use std::time::Duration;

use client::Habits;
use storm::{Storm, seed};
use world::Tiers;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_lies_in_a_storm_over_redis_and_mongodb() {
    let (seed, length) = (seed(1), Duration::from_secs(20));
    let faults = "all".to_owned();
    let storm = Storm { name: "one-node", tiers: Tiers::OneNode, faults, seed, length, habits: Habits::default() };
    let report = storm.run().await;
    assert!(report.verdict.violations.is_empty(), "seed {seed}: {:?}", report.verdict.rules());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_lies_while_mongodb_elects() {
    let (seed, length) = (seed(2), Duration::from_secs(20));
    let faults = "mongodb".to_owned();
    let storm =
        Storm { name: "three-nodes", tiers: Tiers::ThreeNodes, faults, seed, length, habits: Habits::default() };
    let report = storm.run().await;
    assert!(report.verdict.violations.is_empty(), "seed {seed}: {:?}", report.verdict.rules());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_lies_while_the_embedded_pair_is_killed() {
    let (seed, length) = (seed(3), Duration::from_secs(8));
    let faults = "servers".to_owned();
    let storm = Storm { name: "embedded", tiers: Tiers::Embedded, faults, seed, length, habits: Habits::default() };
    let report = storm.run().await;
    assert!(report.verdict.violations.is_empty(), "seed {seed}: {:?}", report.verdict.rules());
}

/// `tests/storm.sh --scenario` sets what it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "as long as STORM_SECONDS says; run it by tests/storm.sh"]
async fn no_answer_lies_in_a_long_storm_over_many_l1() {
    let seconds = std::env::var("STORM_SECONDS").expect("STORM_SECONDS").parse().expect("STORM_SECONDS is a number");
    let plan = scenarios::one_l1::Plan { seed: seed(1), length: Duration::from_secs(seconds) };
    scenarios::one_l1::run(&std::env::var("STORM_SCENARIO").expect("STORM_SCENARIO"), plan).await;
}

/// `tests/storm.sh` sets what it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "as long as STORM_SECONDS says; run it by tests/storm.sh"]
async fn no_answer_lies_in_a_long_storm() {
    let given = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let seconds = given("STORM_SECONDS", "600").parse().expect("STORM_SECONDS is a number");
    let (name, tiers) = match given("STORM_TIERS", "three-nodes").as_str() {
        "one-node" => ("one-node", Tiers::OneNode),
        "three-nodes" => ("three-nodes", Tiers::ThreeNodes),
        "embedded" => ("embedded", Tiers::Embedded),
        other => panic!("STORM_TIERS={other}: one-node, three-nodes or embedded"),
    };
    let (seed, length) = (seed(1), Duration::from_secs(seconds));
    let storm = Storm { name, tiers, faults: given("STORM_FAULTS", "all"), seed, length, habits: Habits::default() };
    let report = storm.run().await;
    assert!(report.verdict.violations.is_empty(), "seed {seed}: {:?}", report.verdict.rules());
}
