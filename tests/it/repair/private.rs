//! An L1 in each server's process over one MongoDB.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_is_seen_soon() {
    let pair = Pair::new(false, true);
    let (one, other) = (pair.serve().await, pair.serve().await);
    let (mut writer, mut reader) = (one.client().await, other.client().await);
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        write(&mut writer, "a", f64::from(n)).await;
        slowest = slowest.max(until_read(&mut reader, "a", Some(f64::from(n)), LAG).await);
        until_hit(&mut reader, "a").await;
        std::mem::swap(&mut writer, &mut reader);
    }
    println!("the slowest of twenty was seen after {slowest:?}");
    ByHand::of(&pair).await.set("a", 99.0).await;
    until_read(&mut reader, "a", Some(99.0), LAG).await;
    until_read(&mut writer, "a", Some(99.0), LAG).await;
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missed_while_the_changes_break_off_is_seen_afterwards() {
    let pair = Pair::new(false, true);
    let (server, hand) = (pair.serve().await, ByHand::of(&pair).await);
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await;
    until_hit(&mut client, "a").await;
    // The stream ends with its collection. The one that is made in its place has an epoch of its own.
    hand.features.drop().await.unwrap();
    println!("gone {:?} after the drop", until_read(&mut client, "a", None, LAG).await);
    eventually("it to be followed again", async || server.tiered.repairs().reading().leading).await;
    write(&mut client, "a", 2.0).await;
    until_hit(&mut client, "a").await;
    hand.set("a", 3.0).await;
    until_read(&mut client, "a", Some(3.0), LAG).await;
    server.stop().await;
}
