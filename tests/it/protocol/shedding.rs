//! More reads of L2 than are made at once: some wait, the rest is told to come again. That is neither absence nor an
//! outage, and it stands in no write's way.

use super::*;
use crate::harness::faulty::{Fault, Op};
use featurestore::store::StoreError;

/// What may wait for one read of L2 that is made at a time.
const QUEUE: usize = 16;

async fn one_read_at_a_time(world: &World) -> Server {
    let server = world.with_settings(|settings| settings.max_l2_reads = 1);
    server.look().await;
    server
}

fn begin(server: &Server, id: String, consistency: Consistency) -> JoinHandle<Result<Seen, RowError>> {
    let server = server.clone();
    tokio::spawn(async move { server.try_read(&id, consistency).await })
}

/// Lets everything run that can.
async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_is_shed_at_once_and_asks_neither_tier() {
    let world = World::exclusive();
    let a = one_read_at_a_time(&world).await;
    let slow = a.faults.hold(Op::Read);
    let first = begin(&a, "first".into(), Consistency::Cached);
    slow.arrived().await;
    let waiting: Vec<_> = (0..QUEUE).map(|i| begin(&a, i.to_string(), Consistency::Cached)).collect();
    let_others_run().await;
    assert_eq!((a.tiered.l2_reads().taken(), a.tiered.l2_reads().waiting()), (1, QUEUE));

    let (start, acquired) = (Instant::now(), a.faults.count(Op::Acquire));
    for consistency in [Consistency::Cached, Consistency::Strong] {
        assert_eq!(a.try_read("one more", consistency).await, Err(RowError::TooBusy));
    }
    assert_eq!((start.elapsed(), a.faults.count(Op::Acquire)), (Duration::ZERO, acquired));
    // Who asks for what others wait for already waits with them.
    let joining = begin(&a, "0".into(), Consistency::Cached);
    // A write has a lane of its own, and a hit needs none.
    let written = a.cached_write("one more").await;
    assert_eq!(a.read("one more").await, Seen { revision: written, tier: Tier::L1, degraded: false });

    slow.let_go();
    for reader in waiting.into_iter().chain([first, joining]) {
        assert!(!reader.await.unwrap().unwrap().degraded);
    }
    assert_eq!(a.faults.count(Op::Read), 1 + QUEUE, "one for each key");
    assert!(a.tiered.l2_breaker().is_healthy() && a.tiered.trust().breaker.is_healthy());
    assert_eq!((a.tiered.l2_reads().taken(), a.tiered.l2_reads().waiting(), a.remembered()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_shed_long_before_the_deadline() {
    let world = World::exclusive();
    let a = one_read_at_a_time(&world).await;
    let slow = a.faults.hold(Op::Read);
    let first = begin(&a, "first".into(), Consistency::Cached);
    slow.arrived().await;
    let start = Instant::now();
    assert_eq!(a.try_read("x", Consistency::Cached).await, Err(RowError::TooBusy));
    assert_eq!(a.try_read("x", Consistency::Strong).await, Err(RowError::TooBusy));
    assert!(start.elapsed() <= Duration::from_millis(1010), "{:?}", start.elapsed());
    slow.let_go();
    first.await.unwrap().unwrap();
    // Its key is free again, and no lease of its own keeps it from being filled.
    a.read("x").await;
    assert!(world.in_l1("x").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn reads_that_leave_l1_alone_are_shed_too() {
    let world = World::exclusive();
    let a = one_read_at_a_time(&world).await;
    a.tiered.trust().breaker.trip();
    let slow = a.faults.hold(Op::Read);
    let first = begin(&a, "first".into(), Consistency::Cached);
    slow.arrived().await;
    let readers: Vec<_> = (0..QUEUE + 5).map(|i| begin(&a, i.to_string(), Consistency::Cached)).collect();
    let_others_run().await;
    slow.let_go();
    first.await.unwrap().unwrap();
    let mut shed = 0;
    for reader in readers {
        match reader.await.unwrap() {
            Ok(seen) => assert!(seen.degraded),
            Err(error) => {
                assert_eq!(error, RowError::TooBusy);
                shed += 1;
            }
        }
    }
    assert_eq!(shed, 5);
}

#[tokio::test(start_paused = true)]
async fn writes_that_are_too_many_are_refused_before_anything_happens() {
    let world = World::exclusive();
    let a = world.with_settings(|settings| settings.max_writes = 1);
    a.look().await;
    let slow = a.faults.hold(Op::Write);
    let abandoned = a.begin_write("x");
    slow.arrived().await;
    abandoned.abort();
    let marked = a.faults.count(Op::Mark);
    assert_eq!(a.try_write(write("y")).await.unwrap_err(), WriteError::TooBusy);
    assert_eq!(a.tiered.delete(vec![delete("y")]).await.items.remove(0).unwrap_err(), WriteError::TooBusy);
    assert_eq!(a.tiered.write_bulk(vec![write("y")], false).await.items.remove(0).unwrap_err(), WriteError::TooBusy);
    assert_eq!((a.faults.count(Op::Mark), a.tiered.writes().taken()), (marked, 1));
    slow.let_go();
    a.tiered.settled().await;
    assert_eq!(a.tiered.writes().taken(), 0);
    a.cached_write("y").await;
}

#[tokio::test(start_paused = true)]
async fn while_l2_is_given_up_a_miss_takes_no_lease() {
    let world = World::exclusive();
    let [a] = world.trusting().await;
    a.faults.always(Op::Read, Fault::Lose);
    while a.tiered.l2_breaker().is_healthy() {
        a.try_read("x", Consistency::Cached).await.unwrap_err();
    }
    let (acquired, marked) = (a.faults.count(Op::Acquire), a.faults.count(Op::Mark));
    let refused = a.try_read("y", Consistency::Cached).await.unwrap_err();
    assert!(matches!(refused, RowError::Store(StoreError::Unavailable(_))), "{refused:?}");
    a.try_write(write("y")).await.unwrap_err();
    assert_eq!((a.faults.count(Op::Acquire), a.faults.count(Op::Mark)), (acquired, marked));
}
