//! Permits, leases and suspects of one server while others go on: each counts for whom it was given to, in the life of the
//! entry that it was given in.

use super::*;
use crate::harness::faulty::{Fault, Op};
use featurestore::cache::{CacheValue, Fill, PermitId, Put};

#[tokio::test(start_paused = true)]
async fn a_put_never_uses_the_permit_of_another_write() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Write);
    let first = a.begin_write("x");
    slow.done().await;
    let second = b.cached_write("x").await;
    world.evict("x").await;
    let uncommitted = b.faults.hold(Op::Write);
    let third = b.begin_write("x");
    uncommitted.arrived().await; // the entry's next life, with a permit
    slow.let_go();
    assert!(first.await.unwrap().receipt.revision < second);
    assert_eq!(world.in_l1("x").await, None);
    nobody_sees_older([&a, &b], "x", second).await;
    uncommitted.let_go();
    assert!(third.await.unwrap().cached);
}

#[tokio::test(start_paused = true)]
async fn a_fill_never_uses_the_lease_of_another_read() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    world.evict("x").await;
    let slow = a.faults.hold(Op::Read);
    let reader = a.begin_read("x");
    slow.done().await;
    let new = b.cached_write("x").await;
    world.evict("x").await;
    let unasked = b.faults.hold(Op::Read);
    let other = b.begin_read("x");
    unasked.arrived().await; // the entry's next life, with a lease
    slow.let_go();
    assert_eq!(reader.await.unwrap().revision, old, "it began before the write was answered");
    assert_eq!(world.in_l1("x").await, None);
    unasked.let_go();
    assert_eq!(other.await.unwrap().revision, new);
    nobody_sees_older([&a, &b], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_is_newer_than_what_l2_answers_is_right() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let old = a.cached_write("x").await;
    // As if a deposed primary answered: L1 has a write that L2 does not show, and another one is on its way.
    let (entry, soon) = (world.l1_key("x").await, Instant::now() + Duration::from_secs(9));
    let [first, second] = [PermitId::random(), PermitId::random()];
    world.memory.mark(&[(entry.clone(), first), (entry.clone(), second)], soon).await;
    let newer = Revision(old.0 + 1);
    let fill = Fill { value: CacheValue::Absent(newer), ttl: Duration::from_secs(600) };
    world.memory.put(&[Put { key: entry, permit: first, fill }], soon).await;
    assert_eq!(a.read("x").await, Seen { revision: newer, tier: Tier::L1, degraded: false });
}

#[tokio::test(start_paused = true)]
async fn a_read_that_l1_gave_no_answer_to_says_so_and_is_remembered() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let revision = a.cached_write("x").await;
    world.evict("x").await;
    a.faults.once(Op::Acquire, Fault::Lose);
    assert_eq!(a.read("x").await, Seen { revision, tier: Tier::L2, degraded: true });
    assert_eq!(a.remembered(), 1);
    a.look().await;
    assert_eq!(a.remembered(), 0);
    assert!(!a.read("x").await.degraded);
}
