//! Who repairs, from where it goes on, and what happens where that cannot be told.

use super::*;
use crate::harness::{
    binary::{Binary, run},
    proxy::{Line, Proxy},
};

async fn backends() -> (Pair, ByHand) {
    let pair = Pair::real();
    let hand = ByHand::of(&pair).await;
    (pair, hand)
}

async fn leads(binary: &Binary) -> bool {
    binary.metrics().await.lines().any(|line| line == "featurestore_repair_leader 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_dies_another_server_repairs() {
    let (pair, hand) = backends().await;
    let mut servers = [Binary::start(&pair.settings()), Binary::start(&pair.settings())];
    for server in &servers {
        server.until_serving().await;
    }
    eventually("one of them to repair", async || leads(&servers[0]).await || leads(&servers[1]).await).await;
    if leads(&servers[1]).await {
        servers.swap(0, 1);
    }
    assert!(!leads(&servers[1]).await, "one at a time");
    let mut client = servers[1].client().await;
    eventually("writes to be cached", async || write(&mut client, "a", 1.0).await.cached).await;
    until_hit(&mut client, "a").await;
    servers[0].kill();
    hand.set("a", 2.0).await;
    println!("seen {:?} after the leader's death", until_read(&mut client, "a", Some(2.0), HANDOVER).await);
    assert!(leads(&servers[1]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_nobody_repaired_is_made_good_at_the_next_start() {
    let (pair, hand) = backends().await;
    let server = pair.serve().await;
    let mut client = server.client().await;
    until_leads(&server).await;
    write(&mut client, "a", 1.0).await;
    until_hit(&mut client, "a").await;
    let epoch = hand.epoch().await;
    server.stop().await;
    assert_eq!(hand.lease().await.get_str("holder").unwrap(), "", "it has resigned");
    hand.set("a", 2.0).await;
    let server = pair.serve().await;
    println!("seen {:?} after the start", until_read(&mut server.client().await, "a", Some(2.0), LAG).await);
    assert_eq!(hand.epoch().await, epoch);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_stored_position_is_lost_l1_starts_cold() {
    let nonsense = doc! { "$set": { "position": { "_data": "82AB" } } };
    let gone = doc! { "$unset": { "position": 1 } };
    for loss in [nonsense, gone] {
        let (pair, hand) = backends().await;
        let server = pair.serve().await;
        let mut client = server.client().await;
        until_leads(&server).await;
        write(&mut client, "a", 1.0).await;
        until_hit(&mut client, "a").await;
        let epoch = hand.epoch().await;
        server.stop().await;
        hand.set("a", 2.0).await;
        hand.meta.update_one(doc! { "_id": "repairer" }, loss).await.unwrap();
        let server = pair.serve().await;
        let mut client = server.client().await;
        until_read(&mut client, "a", Some(2.0), LAG).await;
        assert_ne!(hand.epoch().await, epoch);
        // And from there it goes on.
        until_hit(&mut client, "a").await;
        eventually("a new position to be stored", async || {
            hand.lease().await.get_document("position").is_ok_and(|token| token.get_str("_data").unwrap().len() > 10)
        })
        .await;
        hand.set("a", 3.0).await;
        until_read(&mut client, "a", Some(3.0), LAG).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_records_are_dropped_l1_starts_cold() {
    let (pair, hand) = backends().await;
    let server = pair.serve().await;
    let mut client = server.client().await;
    until_leads(&server).await;
    write(&mut client, "a", 1.0).await;
    until_hit(&mut client, "a").await;
    let epoch = hand.epoch().await;
    hand.features.drop().await.unwrap();
    println!("gone {:?} after the drop", until_read(&mut client, "a", None, LAG).await);
    assert_ne!(hand.epoch().await, epoch);
    // The new collection is followed too.
    eventually("writes to be cached", async || write(&mut client, "a", 2.0).await.cached).await;
    until_hit(&mut client, "a").await;
    hand.set("a", 3.0).await;
    until_read(&mut client, "a", Some(3.0), HANDOVER).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_reach_l1_resigns() {
    let pair = Pair::real();
    let way = Proxy::to(pair.redis.as_ref().unwrap().port()).await;
    let url = format!("redis://127.0.0.1:{}", way.port());
    // Two servers that share the lease and the Redis, each with its own way to it.
    let cut_off = pair.serve_with(&[("REDIS_URL", &url)]).await;
    until_leads(&cut_off).await;
    let server = pair.serve().await;
    assert!(!server.tiered.repairs().reading().leading);
    way.set(Line::Cut);
    until_leads(&server).await;
    assert!(!cut_off.tiered.repairs().reading().leading);
    let (mut client, hand) = (server.client().await, ByHand::of(&pair).await);
    write(&mut client, "a", 1.0).await;
    until_hit(&mut client, "a").await;
    hand.set("a", 2.0).await;
    until_read(&mut client, "a", Some(2.0), LAG).await;
    server.stop().await;
    cut_off.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_command_epoch_new_running_servers_start_cold() {
    let pair = Pair::real();
    let (server, hand) = (pair.serve().await, ByHand::of(&pair).await);
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await;
    until_hit(&mut client, "a").await;
    let epoch = hand.epoch().await;
    let settings = pair.settings().into_iter().map(|(name, value)| (name, value.to_owned())).collect::<Vec<_>>();
    let made = tokio::task::spawn_blocking(move || {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run(&["epoch", "new"], &settings)
    });
    let made = made.await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let new = hand.epoch().await;
    assert!(new != epoch && String::from_utf8_lossy(&made.stdout).contains(&new), "{made:?}");
    eventually("the server to see it", async || server.tiered.trust().epoch().unwrap().epoch.to_string() == new).await;
    until_hit(&mut client, "a").await;
    server.stop().await;
    // Where MongoDB is not there it says so.
    let nowhere = [("MONGO_URI", "mongodb://127.0.0.1:1/")];
    let refused = tokio::task::spawn_blocking(move || run(&["epoch", "new"], &nowhere)).await.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no new epoch was made"), "{refused:?}");
}
