//! An L1 that stalls, at whichever step a call meets it: the call waits for it once, and what L1 did not confirm is
//! remembered before the answer.

use super::*;
use crate::harness::faulty::{Fault, Op};

const L1_TIMEOUT: Duration = Duration::from_millis(50);
/// For the keys of a step, and the grain of the clock at each of them.
const A_LITTLE: Duration = Duration::from_millis(10);

const OF_L1: [Op; 7] = [Op::Get, Op::Acquire, Op::Settle, Op::Mark, Op::Put, Op::Unmark, Op::Remove];

/// From now on these are never answered.
fn stall(server: &Server, ops: &[Op]) {
    for op in ops {
        server.faults.always(*op, Fault::Silent);
    }
}

/// How long it takes, by the paused clock: nothing but L1 takes time.
async fn waited<T>(what: &str, call: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let answer = call.await;
    let waited = start.elapsed();
    assert!(waited <= L1_TIMEOUT + A_LITTLE, "{what} waited {waited:?}");
    answer
}

/// Reads x, which must be at least this new, and one that is not there; says whether that was degraded.
async fn read_both(server: &Server, consistency: Consistency, at_least: Revision) -> bool {
    let keys = vec![key("x"), key("y")];
    let min_revisions = HashMap::from([(key("x"), at_least)]);
    let deadline = Instant::now() + Duration::from_secs(2);
    let answer = server.tiered.read(&ReadRequest { keys, consistency, min_revisions, deadline }).await;
    assert!(answer.rows.iter().all(Result::is_ok), "{:?}", answer.rows);
    answer.degraded
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_it_once() {
    for stalled in [&OF_L1[..], &[Op::Acquire, Op::Settle], &[Op::Settle]] {
        for consistency in [Consistency::Cached, Consistency::Strong] {
            for outdated in [false, true] {
                let world = World::shared();
                let [a, b] = world.trusting().await;
                a.cached_write("x").await;
                let mut at_least = Revision::NONE;
                if outdated {
                    // L1 holds the first one clean, and the reader asks for the second one.
                    a.faults.always(Op::Put, Fault::Lose);
                    a.faults.always(Op::Mark, Fault::Lose);
                    a.faults.always(Op::Settle, Fault::Lose);
                    at_least = a.write("x").await.receipt.revision;
                } else {
                    world.evict("x").await;
                }
                stall(&b, stalled);
                let what = format!("{consistency:?} at least {at_least} while {stalled:?} stall");
                let degraded = waited(&what, read_both(&b, consistency, at_least)).await;
                assert!(degraded, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_queues_behind_a_flight_waits_for_it_once() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.cached_write("x").await;
    world.evict("x").await;
    let slow = a.faults.hold(Op::Read);
    let first = a.begin_read("x");
    slow.arrived().await;
    stall(&a, &[Op::Get, Op::Acquire]);
    let second = tokio::spawn({
        let a = a.clone();
        async move { waited("a queued read", a.read("x")).await }
    });
    tokio::time::sleep(L1_TIMEOUT / 2).await;
    slow.let_go();
    assert!(!first.await.unwrap().degraded);
    assert!(second.await.unwrap().degraded);
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_for_it_once_and_is_remembered() {
    for stalled in [&OF_L1[..], &[Op::Mark], &[Op::Put, Op::Remove, Op::Settle]] {
        for batch in [false, true] {
            let world = World::shared();
            let [a] = world.trusting().await;
            a.cached_write("x").await;
            stall(&a, stalled);
            let what = format!("a write while {stalled:?} stall, batch: {batch}");
            let cached = waited(&what, async {
                match batch {
                    false => vec![a.write("x").await.cached],
                    // One that is there and one that is not: PUT and DEL.
                    true => {
                        let deletes = vec![delete("x"), delete("y")];
                        let items = a.tiered.delete(deletes).await.items;
                        items.into_iter().map(|item| item.unwrap().1).collect()
                    }
                }
            })
            .await;
            assert!(cached.iter().all(|cached| !cached), "{what}");
            assert_eq!(a.remembered(), cached.len(), "{what}");
            assert!(world.is_dirty().await, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_l2_refuses_waits_for_it_once() {
    let world = World::shared();
    let [a] = world.trusting().await;
    stall(&a, &OF_L1);
    a.faults.once(Op::Write, Fault::Lose);
    waited("a refused write", async { a.try_write(write("x")).await.unwrap_err() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_bulk_waits_for_it_once_warm_or_not() {
    for stalled in [&OF_L1[..], &[Op::Acquire, Op::Settle], &[Op::Settle], &[Op::Acquire]] {
        for warm in [false, true] {
            let world = World::shared();
            let [a] = world.trusting().await;
            a.cached_write("x").await;
            stall(&a, stalled);
            let what = format!("a bulk while {stalled:?} stall, warm: {warm}");
            let answer = waited(&what, a.tiered.write_bulk(vec![write("x"), write("y")], warm)).await;
            let told = !stalled.contains(&Op::Settle);
            assert!(answer.items.iter().all(|item| matches!(item, Ok((_, cached)) if *cached == told)), "{what}");
            assert_eq!(a.remembered(), if told { 0 } else { 2 }, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn l1_is_told_all_the_same_of_a_write_that_did_not_wait_for_it() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    a.cached_write("x").await;
    a.faults.once(Op::Mark, Fault::Silent);
    let written = waited("the write", a.write("x")).await;
    assert!(!written.cached);
    a.tiered.settled().await;
    assert_eq!(world.in_l1("x").await, None, "the older value was removed before anybody looked at L1");
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn after_three_calls_nobody_waits_for_it() {
    let world = World::shared();
    let [a] = world.trusting().await;
    stall(&a, &OF_L1);
    for _ in 0..3 {
        waited("a read", a.read("x")).await;
    }
    let start = Instant::now();
    a.read("x").await;
    a.read_strong("x").await;
    a.write("x").await;
    a.tiered.delete(vec![delete("x")]).await;
    a.tiered.write_bulk(vec![write("x")], true).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}
