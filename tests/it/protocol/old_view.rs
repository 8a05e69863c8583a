//! A view of the epoch that is too old, because L2 does not tell it.

use super::*;
use crate::harness::faulty::{Fault, Op};
use featurestore::store::StoreError;

const VIEW_LIFE: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn reads_are_hits_only_and_degraded() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let revision = a.cached_write("x").await;
    a.cached_write("y").await;
    world.evict("y").await;
    a.faults.always(Op::Epoch, Fault::Lose);
    tokio::time::advance(VIEW_LIFE).await;
    assert!(matches!(a.l1(), L1Use::HitsOnly(_)));
    assert_eq!(a.read("x").await, Seen { revision, tier: Tier::L1, degraded: true });
    let missed = a.read("y").await;
    assert!(missed.degraded && missed.tier == Tier::L2, "{missed:?}");
    assert_eq!(world.in_l1("y").await, None, "nothing is filled");
    assert!(a.read_strong("x").await.degraded);
}

#[tokio::test(start_paused = true)]
async fn a_write_refreshes_it_and_stays_cached() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    tokio::time::advance(VIEW_LIFE).await;
    a.cached_write("x").await;
    assert!(matches!(a.l1(), L1Use::Trusted(_)));
    // The same where it grows old on the way.
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.done().await;
    tokio::time::advance(VIEW_LIFE).await;
    slow.let_go();
    let written = writer.await.unwrap();
    assert!(written.cached);
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0));
    assert_eq!(a.faults.count(Op::Settle), 0, "its PUT was enough");
    b.look().await;
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_bulk_refreshes_it_and_stays_cached() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Settle);
    let bulk = tokio::spawn({
        let a = a.clone();
        async move { a.tiered.write_bulk(vec![write("x")], false).await }
    });
    slow.done().await;
    tokio::time::advance(VIEW_LIFE).await;
    slow.let_go();
    let (receipt, cached) = bulk.await.unwrap().items.remove(0).unwrap();
    assert!(cached);
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0));
    b.look().await;
    nobody_sees_older([&a, &b], "x", receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_finds_another_epoch_is_not_cached() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.done().await;
    world.renew_epoch().await;
    tokio::time::advance(VIEW_LIFE).await;
    slow.let_go();
    assert!(!writer.await.unwrap().cached);
    assert!(matches!(a.l1(), L1Use::Paused(_)), "{:?}", a.l1());
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0), "L1 was told of it in the new epoch");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_cannot_learn_the_epoch_is_refused_and_takes_no_hit_away() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.write("x").await;
    a.faults.always(Op::Epoch, Fault::Silent);
    tokio::time::advance(VIEW_LIFE).await;
    let before = a.faults.count(Op::Mark);
    let refused = a.try_write(write("y")).await.unwrap_err();
    assert!(matches!(refused, WriteError::Store(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!((a.faults.count(Op::Mark) - before, a.faults.count(Op::MarkDirty), a.remembered()), (0, 0, 0));
    assert!(!world.is_dirty().await, "nothing happened behind L1's back");
    assert!(matches!(a.l1(), L1Use::HitsOnly(_)), "what L1 holds is still served");
}

#[tokio::test(start_paused = true)]
async fn keys_are_not_forgotten_under_it() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.faults.once(Op::Put, Fault::Lose);
    let written = a.write("x").await;
    assert!(!written.cached);
    assert_eq!(a.remembered(), 1);
    // The epoch changes, and this server cannot see it: what it removes in the old one is worth nothing.
    a.faults.always(Op::Epoch, Fault::Lose);
    tokio::time::advance(VIEW_LIFE).await;
    world.renew_epoch().await;
    a.tiered.look_at_l1().await;
    assert_eq!((a.remembered(), a.faults.count(Op::Remove), a.faults.count(Op::RenewEpoch)), (1, 0, 0));
    assert!(!a.tiered.trust().is_trusted());
    a.faults.heal();
    a.look().await;
    assert_eq!(a.remembered(), 0);
    nobody_sees_older([&a], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_that_was_answered_too_late_forgets_nothing() {
    let world = World::shared();
    let [a] = world.trusting().await;
    // L1 does not remove it either, so only the new epoch could make it forgotten.
    a.faults.once(Op::Put, Fault::Lose);
    a.write("x").await;
    let slow = a.faults.hold(Op::RenewEpoch);
    let bypassed = a.faults.hold(Op::Remove);
    let looking = tokio::spawn({
        let a = a.clone();
        async move { a.look().await }
    });
    bypassed.arrived().await;
    bypassed.let_go();
    slow.done().await;
    a.faults.always(Op::Settle, Fault::Lose);
    a.read_strong("x").await;
    assert_eq!(a.remembered(), 1);
    tokio::time::advance(VIEW_LIFE).await;
    slow.let_go();
    looking.await.unwrap();
    assert_eq!(a.remembered(), 1);
}
