//! The pause after a change of the epoch, while other servers may still use the one before.

use super::*;
use crate::harness::faulty::Op;

const PAUSE: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn a_write_in_the_pause_is_not_cached_and_costs_nothing_else() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    world.renew_epoch().await;
    a.look().await;
    assert!(matches!((a.l1(), b.l1()), (L1Use::Paused(_), L1Use::Trusted(_))));
    let written = a.write("x").await;
    assert_eq!(b.read("x").await.revision, old, "b cannot know yet, so nobody may have been told otherwise");
    assert!(!written.cached);
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0), "L1 was told of it in the new epoch");
    assert!(!world.is_dirty().await);
    let deleted = a.tiered.delete(vec![delete("y")]).await.items.remove(0).unwrap();
    let bulk = a.tiered.write_bulk(vec![write("z")], true).await.items.remove(0).unwrap();
    assert!(!deleted.1 && !bulk.1);

    tokio::time::advance(PAUSE).await;
    a.look().await;
    b.look().await;
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
    assert!(matches!(b.l1(), L1Use::Paused(_)), "it has just seen the change");
    let new = a.cached_write("x").await;
    nobody_sees_older([&a, &b], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_the_change_overtook_is_not_cached() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.done().await;
    world.renew_epoch().await;
    a.look().await;
    slow.let_go();
    let written = writer.await.unwrap();
    assert!(!written.cached);
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0));
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_bulk_that_the_change_overtook_is_told_again_and_does_not_cost_another_epoch() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let slow = a.faults.hold(Op::Settle);
    let bulk = tokio::spawn({
        let a = a.clone();
        async move { a.tiered.write_bulk(vec![write("x")], false).await }
    });
    slow.done().await;
    world.renew_epoch().await;
    a.look().await;
    slow.let_go();
    let (_, cached) = bulk.await.unwrap().items.remove(0).unwrap();
    assert!(!cached);
    assert_eq!(a.faults.count(Op::Settle), 2, "once in each epoch");
    // Remembered, the new epoch would be dirty, and after the next one the next such write would be.
    assert_eq!((a.remembered(), a.faults.count(Op::MarkDirty)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_that_comes_late_does_not_bring_the_old_epoch_back() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let slow = a.faults.hold(Op::Epoch);
    let looking = tokio::spawn({
        let a = a.clone();
        async move { a.look().await }
    });
    slow.done().await;
    world.renew_epoch().await;
    tokio::time::advance(Duration::from_millis(1)).await;
    a.look().await;
    slow.let_go();
    looking.await.unwrap();
    assert_eq!(a.l1(), L1Use::Paused(world.epoch().await));
}

#[tokio::test(start_paused = true)]
async fn reads_in_the_pause_are_degraded_and_fill_nothing() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let revision = a.cached_write("x").await;
    world.renew_epoch().await;
    a.look().await;
    for seen in [a.read("x").await, a.read_strong("x").await] {
        assert_eq!(seen, Seen { revision, tier: Tier::L2, degraded: true });
    }
    assert_eq!(world.in_l1("x").await, None);
    tokio::time::advance(PAUSE).await;
    a.look().await;
    assert!(!a.read("x").await.degraded);
    assert_eq!(a.read("x").await.tier, Tier::L1);
}

#[tokio::test(start_paused = true)]
async fn who_refuses_writes_that_l1_cannot_be_told_of_refuses_them_in_the_pause() {
    let world = World::shared();
    let server = world.unstarted(OnL1Loss::Reject);
    server.look().await;
    server.cached_write("x").await;
    world.renew_epoch().await;
    server.look().await;
    let before = server.faults.count(Op::Write);
    assert_eq!(server.try_write(write("x")).await.unwrap_err(), WriteError::L1Lost);
    assert_eq!(server.faults.count(Op::Write), before);
    tokio::time::advance(PAUSE).await;
    server.look().await;
    server.cached_write("x").await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_into_a_young_epoch_pauses() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.cached_write("x").await;
    world.renew_epoch().await;
    let late = world.server().await;
    assert!(matches!(late.l1(), L1Use::Paused(_)), "{:?}", late.l1());
    late.read("x").await;
    assert_eq!(world.in_l1("x").await, None);
    // Still in the old epoch, where the newcomer would not see it.
    let new = a.cached_write("x").await;
    nobody_sees_older([&a, &late], "x", new).await;
    tokio::time::advance(PAUSE).await;
    for server in [&a, &late] {
        server.look().await;
    }
    assert!(matches!(late.l1(), L1Use::Trusted(_)));
    nobody_sees_older([&a, &late], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_into_an_old_epoch_does_not_pause() {
    let world = World::shared();
    assert!(matches!(world.server().await.l1(), L1Use::Trusted(_)), "as old as can be");
    world.renew_epoch().await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(matches!(world.server().await.l1(), L1Use::Paused(_)), "a clock may be wrong by so much");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(world.server().await.l1(), L1Use::Trusted(_)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_alone_never_pauses() {
    let world = World::exclusive();
    world.renew_epoch().await;
    let [a] = world.trusting().await;
    world.renew_epoch().await;
    a.look().await;
    a.cached_write("x").await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_outlasts_the_pause_is_cached_where_everybody_looks() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.arrived().await;
    world.renew_epoch().await;
    for _ in 0..2 {
        a.look().await;
        b.look().await;
        tokio::time::advance(PAUSE).await;
    }
    a.look().await;
    b.look().await;
    // In the new epoch nothing is known of this write, and the old value is clean there.
    assert_eq!(b.read("x").await.revision, old);
    assert_eq!(world.in_l1("x").await, Some(old));
    slow.let_go();
    let written = writer.await.unwrap();
    assert!(written.cached);
    nobody_sees_older([&a, &b], "x", written.receipt.revision).await;
}
