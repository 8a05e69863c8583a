//! What L1 did not confirm, of many at once: one mark in L2 for all of them.

use super::*;
use crate::harness::faulty::{Fault, Op};

#[tokio::test(start_paused = true)]
async fn a_bulk_that_l1_was_not_told_of_marks_the_epoch_once() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.faults.always(Op::Settle, Fault::Lose);
    // It fails, so that no item can rely on what an earlier one marked.
    a.faults.always(Op::MarkDirty, Fault::Lose);
    let answer = a.tiered.write_bulk((0..20).map(|i| write(&i.to_string())).collect(), false).await;
    assert!(answer.items.iter().all(|item| matches!(item, Ok((_, false)))), "{:?}", answer.items);
    assert_eq!((a.faults.count(Op::MarkDirty), a.remembered()), (1, 20));
}

#[tokio::test(start_paused = true)]
async fn a_delete_of_many_that_l1_was_not_told_of_marks_the_epoch_once() {
    let world = World::shared();
    let [a] = world.trusting().await;
    for op in [Op::Put, Op::Remove, Op::MarkDirty] {
        a.faults.always(op, Fault::Lose);
    }
    let answer = a.tiered.delete((0..20).map(|i| delete(&i.to_string())).collect()).await;
    assert!(answer.items.iter().all(|item| matches!(item, Ok((_, false)))), "{:?}", answer.items);
    assert_eq!((a.faults.count(Op::MarkDirty), a.remembered()), (1, 20));
}

#[tokio::test(start_paused = true)]
async fn a_slow_mark_delays_many_items_once() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.faults.always(Op::Settle, Fault::Lose);
    a.faults.always(Op::MarkDirty, Fault::Silent);
    let start = Instant::now();
    a.tiered.write_bulk((0..20).map(|i| write(&i.to_string())).collect(), false).await;
    assert!(start.elapsed() <= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_write_behind_l1s_back_happens_only_after_the_epoch_was_marked() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.faults.once(Op::Mark, Fault::Lose);
    a.faults.once(Op::MarkDirty, Fault::Lose);
    assert!(a.try_write(write("x")).await.is_err());
    assert_eq!(a.faults.count(Op::Write), 0);
    a.faults.once(Op::Mark, Fault::Lose);
    let mark = a.faults.hold(Op::MarkDirty);
    let writer = a.begin_write("x");
    mark.done().await;
    assert_eq!(a.faults.count(Op::Write), 0);
    mark.let_go();
    assert!(writer.await.unwrap().cached, "L1 confirmed afterwards that it holds nothing older");
}
