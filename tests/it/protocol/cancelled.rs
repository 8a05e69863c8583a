//! A client that gives up in the middle of its write: the write ends all the same, and nothing is left over.

use super::*;
use crate::harness::faulty::{Fault, Op};

/// Where a write stops while its client goes away.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Before(Op),
    After(Op),
}

async fn abandon(stop: Stop, prepare: impl AsyncFnOnce(&Server)) {
    let world = World::shared();
    let [a] = world.trusting().await;
    let old = a.cached_write("x").await;
    prepare(&a).await;
    let held = a.faults.hold(match stop {
        Stop::Before(op) | Stop::After(op) => op,
    });
    let caller = a.begin_write("x");
    match stop {
        Stop::Before(_) => held.arrived().await,
        Stop::After(_) => held.done().await,
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    held.let_go();
    a.tiered.settled().await;
    a.faults.heal();
    // Whatever was remembered is dealt with by looks and a pause.
    let end = a.watch();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(a.remembered(), 0, "{stop:?}");
    let strong = a.read_strong("x").await;
    assert!(strong.revision > old && !strong.degraded, "{stop:?}: {strong:?}");
    nobody_sees_older([&a], "x", strong.revision).await;
    assert_eq!(a.read("x").await, Seen { revision: strong.revision, tier: Tier::L1, degraded: false }, "{stop:?}");
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_write_ends_wherever_its_client_leaves() {
    for op in [Op::Mark, Op::Write, Op::Put] {
        for stop in [Stop::Before(op), Stop::After(op)] {
            abandon(stop, async |_| {}).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_has_to_learn_the_epoch_first_ends_wherever_its_client_leaves() {
    for stop in [Stop::Before(Op::Epoch), Stop::After(Op::Epoch)] {
        abandon(stop, async |_| tokio::time::advance(Duration::from_secs(2)).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_behind_l1s_back_ends_wherever_its_client_leaves() {
    for op in [Op::MarkDirty, Op::Write, Op::Settle] {
        for stop in [Stop::Before(op), Stop::After(op)] {
            abandon(stop, async |a| a.faults.once(Op::Mark, Fault::Lose)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_l1_did_not_confirm_ends_wherever_its_client_leaves() {
    for stop in [Stop::Before(Op::MarkDirty), Stop::After(Op::MarkDirty)] {
        abandon(stop, async |a| a.faults.once(Op::Put, Fault::Lose)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulk_and_a_delete_end_though_their_clients_leave() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let ids = ["x", "y", "z"];
    for deletes in [false, true] {
        let held = a.faults.hold(Op::WriteBatch);
        let caller = tokio::spawn({
            let a = a.clone();
            async move {
                if deletes {
                    a.tiered.delete(ids.map(delete).to_vec()).await
                } else {
                    a.tiered.write_bulk(ids.map(write).to_vec(), true).await
                }
            }
        });
        held.arrived().await;
        caller.abort();
        held.let_go();
        a.tiered.settled().await;
        for id in ids {
            let in_l1 = world.in_l1(id).await;
            assert!(in_l1.is_some(), "{id} is warm");
            assert_eq!(a.read_strong(id).await.revision, in_l1.unwrap());
        }
    }
    assert_eq!(a.remembered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fill_ends_though_its_reader_leaves() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let revision = a.cached_write("x").await;
    world.evict("x").await;
    let held = a.faults.hold(Op::Read);
    let reader = a.begin_read("x");
    held.arrived().await;
    reader.abort();
    held.let_go();
    a.tiered.settled().await;
    assert_eq!(world.in_l1("x").await, Some(revision));
}
