//! What a write holds (its request's part of the bytes in flight), it holds until it ends, whoever left meanwhile.

use std::sync::Arc;

use super::*;
use crate::harness::faulty::Op;

#[tokio::test(start_paused = true)]
async fn what_a_write_holds_is_given_back_when_the_write_ends_and_not_with_its_call() {
    for sort in 0..3 {
        let world = World::exclusive();
        let a = world.with_settings(|_| ());
        a.look().await;
        // Each is one write, and so one of the same to the store.
        let slow = a.faults.hold(Op::Write);
        let (held, tiered) = (Arc::new(()), a.tiered.clone());
        let share = held.clone();
        let call = tokio::spawn(async move {
            match sort {
                0 => _ = tiered.upsert_holding(share, write("x")).await,
                1 => _ = tiered.delete_holding(share, vec![delete("x")]).await,
                _ => _ = tiered.write_bulk_holding(share, vec![write("x")], false).await,
            }
        });
        slow.arrived().await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!(Arc::strong_count(&held), 2, "{sort}");
        slow.let_go();
        a.tiered.settled().await;
        assert_eq!(Arc::strong_count(&held), 1, "{sort}");
    }
}
