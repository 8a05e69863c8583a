//! One lost command is no outage: L1 is trusted again while the writes go on.

use super::*;
use crate::harness::faulty::{Fault, Op};

/// Writes through one lost MARK for a while, and tells how many of so many writes found L1 trusted after `by` of them.
async fn write_through_a_lost_mark(server: &Server, writes: usize, by: usize) {
    server.faults.once(Op::Mark, Fault::Lose);
    for i in 0..writes {
        server.write(&format!("k{}", i % 7)).await;
        if i >= by {
            assert!(matches!(server.l1(), L1Use::Trusted(_)), "write {i}: {:?}", server.l1());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_one_lost_mark_l1_is_trusted_again_under_steady_writes() {
    let world = World::shared();
    let [a] = world.trusting().await;
    let end = a.watch();
    // A look, a new epoch, and its pause: some 4 s.
    write_through_a_lost_mark(&a, 40, 12).await;
    assert_eq!(a.faults.count(Op::RenewEpoch), 1);
    assert_eq!(a.remembered(), 0);
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn two_servers_recover_together_from_one_lost_mark() {
    let world = World::shared();
    let [a, b] = world.trusting().await;
    let ends = [a.watch(), b.watch()];
    tokio::join!(write_through_a_lost_mark(&a, 40, 14), async {
        for i in 0..40 {
            let written = b.write("b").await;
            nobody_sees_older([&b], "b", written.receipt.revision).await;
            if i >= 14 {
                assert!(written.cached, "write {i}");
                nobody_sees_older([&a], "b", written.receipt.revision).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let made = a.faults.count(Op::RenewEpoch) + b.faults.count(Op::RenewEpoch);
    assert!(made <= 2, "{made} epochs asked for");
    ends.iter().for_each(CancellationToken::cancel);
}

#[tokio::test(start_paused = true)]
async fn alone_after_one_lost_mark_l1_is_trusted_again_under_steady_writes() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    let end = a.watch();
    write_through_a_lost_mark(&a, 40, 4).await;
    assert!(a.faults.count(Op::RenewEpoch) <= 1);
    end.cancel();
}

/// In real time: what matters is that there is always a write on its way.
#[tokio::test(flavor = "multi_thread")]
async fn alone_l1_is_trusted_again_though_there_is_always_a_write_on_its_way() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    let (end, stop) = (a.watch(), CancellationToken::new());
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (a, stop) = (a.clone(), stop.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    a.write(&format!("k{writer}-{}", i % 100)).await;
                }
            })
        })
        .collect();
    a.faults.once(Op::Mark, Fault::Lose);
    let start = Instant::now();
    while a.faults.count(Op::MarkDirty) == 0 || !matches!(a.l1(), L1Use::Trusted(_)) {
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}, {} remembered", a.l1(), a.remembered());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(a.faults.count(Op::RenewEpoch) <= 2, "{} epochs", a.faults.count(Op::RenewEpoch));
    stop.cancel();
    for writer in writers {
        writer.await.unwrap();
    }
    end.cancel();
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_can_be_remembered_cost_one_new_epoch() {
    let world = World::shared();
    let [a] = world.trusting().await;
    // Keys of a view that nobody has looked at yet are asked for in small parts, and the first lost SETTLE would be of one
    // part. Where reads brought no record all keys are asked for at once.
    a.read_strong("absent").await;
    a.faults.once(Op::Settle, Fault::Lose);
    let keys = (0..=100_000).map(|i| key(&i.to_string())).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let request = ReadRequest { keys, consistency: Consistency::Strong, min_revisions: HashMap::new(), deadline };
    assert!(a.tiered.read(&request).await.degraded);
    assert_eq!(a.remembered(), 100_000);
    a.tiered.look_at_l1().await;
    assert_eq!((a.remembered(), a.faults.count(Op::RenewEpoch)), (0, 1), "in a new epoch nothing need be remembered");
    tokio::time::advance(Duration::from_secs(3)).await;
    a.look().await;
    assert!(matches!(a.l1(), L1Use::Trusted(_)), "{:?}", a.l1());
    assert_eq!(a.faults.count(Op::RenewEpoch), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_does_not_forget_a_write_that_is_still_on_its_way() {
    let world = World::shared();
    let [a] = world.trusting().await;
    a.faults.once(Op::Mark, Fault::Lose);
    let slow = a.faults.hold(Op::Write);
    let writer = a.begin_write("x");
    slow.arrived().await;
    a.tiered.look_at_l1().await;
    assert_eq!(a.faults.count(Op::RenewEpoch), 1);
    assert_eq!((a.remembered(), a.tiered.trust().is_trusted()), (1, false));
    slow.let_go();
    let written = writer.await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    a.look().await;
    assert_eq!(a.remembered(), 0);
    nobody_sees_older([&a], "x", written.receipt.revision).await;
}
