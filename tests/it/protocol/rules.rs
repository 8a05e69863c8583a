//! Each rule of the protocol against the schedule that breaks it (docs: the table of counter-examples).

use super::*;
use crate::harness::faulty::{Fault, Held, Op};

#[tokio::test(start_paused = true)]
async fn a_put_whose_permit_was_evicted_installs_nothing() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Write);
    let first = a.begin_write("x");
    slow.done().await;
    let second = b.cached_write("x").await;
    world.evict("x").await;
    slow.let_go();
    assert!(first.await.unwrap().receipt.revision < second);
    assert_eq!(world.in_l1("x").await, None);
    nobody_sees_older([&a, &b], "x", second).await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_whose_lease_was_evicted_installs_nothing() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    world.evict("x").await;
    let slow = a.faults.hold(Op::Read);
    let reader = a.begin_read("x");
    slow.done().await;
    let new = b.cached_write("x").await;
    world.evict("x").await;
    slow.let_go();
    assert_eq!(reader.await.unwrap().revision, old, "it began before the write was answered");
    assert_eq!(world.in_l1("x").await, None);
    nobody_sees_older([&a, &b], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_a_write_overtook_installs_nothing() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    a.cached_write("x").await;
    world.evict("x").await;
    let slow = a.faults.hold(Op::Settle);
    let reader = a.begin_read("x");
    slow.arrived().await;
    let new = b.cached_write("x").await;
    slow.let_go();
    reader.await.unwrap();
    assert_eq!(world.in_l1("x").await, Some(new));
    nobody_sees_older([&a, &b], "x", new).await;
}

#[tokio::test(start_paused = true)]
async fn of_puts_that_cross_the_newer_stays() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Put);
    let first = a.begin_write("x");
    slow.arrived().await;
    let second = b.cached_write("x").await;
    slow.let_go();
    let first = first.await.unwrap();
    assert!(first.cached && first.receipt.revision < second);
    assert_eq!(world.in_l1("x").await, Some(second));
    nobody_sees_older([&a, &b], "x", second).await;
}

#[tokio::test(start_paused = true)]
async fn a_put_without_a_permit_keeps_older_ones_out() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let uncommitted = a.faults.hold(Op::Write);
    let newer = a.begin_write("x");
    uncommitted.arrived().await;
    world.evict("x").await;
    let committed = b.faults.hold(Op::Write);
    let older = b.begin_write("x");
    committed.done().await;
    uncommitted.let_go();
    let newer = newer.await.unwrap();
    assert!(newer.cached);
    committed.let_go();
    assert!(older.await.unwrap().receipt.revision < newer.receipt.revision);
    nobody_sees_older([&a, &b], "x", newer.receipt.revision).await;
}

/// L1 holds the older value clean, although L2 has committed a newer one that was not answered yet.
async fn unanswered_behind_a_clean_entry(
    world: &World,
    a: &Server,
    b: &Server,
) -> (JoinHandle<WriteAnswer>, Held, Revision) {
    let old = a.cached_write("x").await;
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.arrived().await;
    world.evict("x").await;
    b.read("x").await;
    assert_eq!(world.in_l1("x").await, Some(old));
    slow.done().await;
    (writer, slow, old)
}

#[tokio::test(start_paused = true)]
async fn a_strong_read_answers_only_after_l1_was_told() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let (writer, slow, old) = unanswered_behind_a_clean_entry(&world, &a, &b).await;
    let settle = b.faults.hold(Op::Settle);
    let strong = tokio::spawn({
        let b = b.clone();
        async move { b.read_strong("x").await }
    });
    settle.arrived().await;
    assert!(!strong.is_finished());
    settle.let_go();
    let strong = strong.await.unwrap();
    assert!(strong.revision > old && !strong.degraded, "{strong:?}");
    nobody_sees_older([&a, &b], "x", strong.revision).await;
    slow.let_go();
    assert_eq!(writer.await.unwrap().receipt.revision, strong.revision);
}

#[tokio::test(start_paused = true)]
async fn a_strong_read_that_l1_was_not_told_of_says_so_and_is_remembered() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let (_writer, _slow, old) = unanswered_behind_a_clean_entry(&world, &a, &b).await;
    b.faults.once(Op::Settle, Fault::Lose);
    let strong = b.read_strong("x").await;
    assert!(strong.revision > old && strong.degraded, "{strong:?}");
    assert_eq!(b.remembered(), 1);
    nobody_sees_older([&b], "x", strong.revision).await;
    b.look().await;
    assert_eq!(b.remembered(), 0);
    nobody_sees_older([&a, &b], "x", strong.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_never_brings_back_what_is_older_than_it_has_seen() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let (_writer, _slow, old) = unanswered_behind_a_clean_entry(&world, &a, &b).await;
    let refused = b.try_write(Write { if_revision: Some(old), ..write("x") }).await.unwrap();
    assert!(refused.receipt.revision > old);
    assert_eq!(b.faults.count(Op::Unmark), 0, "L2 saw it");
    nobody_sees_older([&a, &b], "x", refused.receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_is_taken_back_only_if_l2_surely_never_saw_it() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    a.faults.once(Op::Write, Fault::Lose);
    assert!(a.try_write(write("x")).await.is_err());
    assert_eq!(a.faults.count(Op::Unmark), 1);
    assert_eq!(b.read("x").await, Seen { revision: old, tier: Tier::L1, degraded: false });

    a.faults.once(Op::Write, Fault::LoseReply);
    let unknown = a.try_write(write("x")).await.unwrap_err();
    assert!(matches!(&unknown, WriteError::Store(error) if error.may_have_happened()), "{unknown:?}");
    assert_eq!(a.faults.count(Op::Unmark), 1, "L2 may have seen it");
    let seen = b.read("x").await;
    assert!(seen.revision > old, "{seen:?}");
    nobody_sees_older([&a, &b], "x", seen.revision).await;
}

#[tokio::test(start_paused = true)]
async fn without_l1s_confirmation_a_write_is_not_cached_until_the_key_was_removed() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let uncommitted = a.faults.hold(Op::Write);
    let newer = a.begin_write("x");
    uncommitted.arrived().await;
    world.evict("x").await;
    let committed = b.faults.hold(Op::Write);
    let older = b.begin_write("x");
    committed.done().await;
    a.faults.once(Op::Put, Fault::Lose);
    uncommitted.let_go();
    let newer = newer.await.unwrap();
    assert!(!newer.cached);
    assert_eq!(a.remembered(), 1);
    assert!(world.is_dirty().await);
    committed.let_go();
    assert!(older.await.unwrap().receipt.revision < newer.receipt.revision);
    // Its own readers are not misled, and a while later nobody is.
    nobody_sees_older([&a], "x", newer.receipt.revision).await;
    let ends = [a.watch(), b.watch()];
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(matches!((a.l1(), b.l1()), (L1Use::Trusted(_), L1Use::Trusted(_))), "{:?} {:?}", a.l1(), b.l1());
    assert_eq!(a.remembered(), 0);
    nobody_sees_older([&a, &b], "x", newer.receipt.revision).await;
    ends.iter().for_each(CancellationToken::cancel);
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_comes_too_late_lets_nothing_in() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let late = a.faults.late(Op::Mark);
    let slow = a.faults.hold(Op::Write);
    let first = a.begin_write("x");
    slow.done().await;
    let second = b.cached_write("x").await;
    world.evict("x").await;
    late.done().await; // in the entry's next life
    slow.let_go();
    let first = first.await.unwrap();
    assert!(first.receipt.revision < second);
    assert_eq!(a.faults.count(Op::Put), 0, "nothing was permitted");
    assert_eq!(world.in_l1("x").await, None);
    late.let_go();
    nobody_sees_older([&a, &b], "x", second).await;
}

#[tokio::test(start_paused = true)]
async fn a_warming_bulk_reads_back_only_under_its_leases() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let slow = a.faults.hold(Op::Read);
    let bulk = tokio::spawn({
        let a = a.clone();
        async move { a.tiered.write_bulk(vec![write("x"), write("y")], true).await }
    });
    slow.done().await;
    let second = b.cached_write("x").await;
    world.evict("x").await;
    slow.let_go();
    for item in bulk.await.unwrap().items {
        assert!(item.unwrap().1);
    }
    assert_eq!(world.in_l1("x").await, None);
    assert!(world.in_l1("y").await.is_some(), "where nothing came between it is warm");
    nobody_sees_older([&a, &b], "x", second).await;
}

#[tokio::test(start_paused = true)]
async fn a_bulk_is_answered_only_after_l1_was_told() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let old = a.cached_write("x").await;
    let settle = a.faults.hold(Op::Settle);
    let bulk = tokio::spawn({
        let a = a.clone();
        async move { a.tiered.write_bulk(vec![write("x"), write("y")], false).await }
    });
    settle.arrived().await;
    assert_eq!(b.read("x").await.revision, old, "the entry stands");
    assert!(!bulk.is_finished());
    settle.let_go();
    let (receipt, cached) = bulk.await.unwrap().items.remove(0).unwrap();
    assert!(cached);
    nobody_sees_older([&a, &b], "x", receipt.revision).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_default_read_answered_keeps_older_writes_out() {
    let world = World::shared();
    let [a, b, c] = world.trusting().await;
    let unanswered = a.faults.hold(Op::Write);
    let newer = a.begin_write("x");
    unanswered.arrived().await;
    world.evict("x").await;
    let committed = b.faults.hold(Op::Write);
    let older = b.begin_write("x");
    committed.done().await;
    unanswered.done().await;
    let seen = c.read("x").await;
    committed.let_go();
    assert!(older.await.unwrap().receipt.revision < seen.revision);
    nobody_sees_older([&a, &b, &c], "x", seen.revision).await;
    unanswered.let_go();
    assert_eq!(newer.await.unwrap().receipt.revision, seen.revision);
}
