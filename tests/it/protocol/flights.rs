//! Many readers of one key: none is answered by something older than its own call.

use super::*;
use crate::harness::faulty::Op;
use featurestore::cache::PermitId;

/// Lets everything run that can.
async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_never_joins_a_flight_that_has_asked_l1() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    let old = a.cached_write("x").await;
    let (entry, soon) = ([(world.l1_key("x").await, PermitId::random())], Instant::now() + Duration::from_secs(9));
    // A write begins and never reaches L2, so that the flight's ACQUIRE finds the old value clean.
    world.memory.mark(&entry, soon).await;
    let acquire = a.faults.hold(Op::Acquire);
    let first = a.begin_read("x");
    acquire.arrived().await;
    world.memory.unmark(&entry, soon).await;
    acquire.done().await;
    let new = a.cached_write("x").await;
    world.evict("x").await;
    let second = a.begin_read("x");
    let_others_run().await;
    acquire.let_go();
    assert_eq!(first.await.unwrap().revision, old);
    assert!(second.await.unwrap().revision >= new, "it began after the write was answered");
    nobody_sees_older([&a], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_never_joins_a_flight_that_has_asked_l2() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    let old = a.cached_write("x").await;
    world.evict("x").await;
    let slow = a.faults.hold(Op::Read);
    let first = a.begin_read("x");
    slow.done().await;
    let new = a.cached_write("x").await;
    world.evict("x").await;
    let second = a.begin_read("x");
    let_others_run().await;
    slow.let_go();
    assert_eq!(first.await.unwrap().revision, old);
    assert!(second.await.unwrap().revision >= new, "it began after the write was answered");
    nobody_sees_older([&a], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_l2_read_running_and_one_queued() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    a.cached_write("x").await;
    world.evict("x").await;
    let (slow, before) = (a.faults.hold(Op::Read), a.faults.count(Op::Read));
    let first = a.begin_read("x");
    slow.arrived().await;
    world.evict("x").await; // so that the queued flight finds nothing that the first one filled
    let acquire = a.faults.hold(Op::Acquire);
    let crowd: Vec<_> = (0..100).map(|_| a.begin_read("x")).collect();
    let_others_run().await;
    assert_eq!(a.faults.count(Op::Read) - before, 1);
    slow.let_go();
    acquire.arrived().await;
    acquire.let_go();
    first.await.unwrap();
    for reader in crowd {
        reader.await.unwrap();
    }
    assert_eq!(a.faults.count(Op::Read) - before, 2);
}
