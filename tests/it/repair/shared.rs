//! What default reads see of changes that L1 was not told of.

use super::*;
use crate::harness::{binary::Binary, mongod::Mongod, redis::RedisServer};

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_mongodb_by_hand_is_seen_soon() {
    let pair = Pair::real();
    let (server, hand) = (pair.serve().await, ByHand::of(&pair).await);
    let mut client = server.client().await;
    for id in ["updated", "deleted", "replaced", "many", "many too"] {
        assert!(write(&mut client, id, 1.0).await.cached);
        until_hit(&mut client, id).await;
    }
    assert_eq!(read(&mut client, "inserted").await, None); // and L1 holds that
    until_hit(&mut client, "inserted").await;
    until_leads(&server).await;

    let mut whole = hand.features.find_one(at("replaced")).await.unwrap().unwrap();
    hand.set("updated", 2.0).await;
    println!("updateOne: {:?}", until_read(&mut client, "updated", Some(2.0), LAG).await);
    // As if an older copy were pasted over it.
    let pasted = doc! { "$set": { "features.n": 5.0, "rev": 1_000_000_i64 } };
    hand.features.update_one(at("updated"), pasted).await.unwrap();
    println!("updateOne with an old revision: {:?}", until_read(&mut client, "updated", Some(5.0), LAG).await);
    hand.features.delete_one(at("deleted")).await.unwrap();
    println!("deleteOne: {:?}", until_read(&mut client, "deleted", None, LAG).await);
    // With the same revision.
    whole.insert("features", doc! { "n": 3.0 });
    hand.features.replace_one(at("replaced"), whole.clone()).await.unwrap();
    println!("replaceOne: {:?}", until_read(&mut client, "replaced", Some(3.0), LAG).await);
    whole.insert("_id", at("inserted").get_document("_id").unwrap().clone());
    hand.features.insert_one(whole).await.unwrap();
    println!("insertOne: {:?}", until_read(&mut client, "inserted", Some(3.0), LAG).await);
    let some = doc! { "_id.entity_id": { "$in": ["many", "many too"] } };
    hand.features.update_many(some, doc! { "$set": { "features.n": 4.0 } }).await.unwrap();
    for id in ["many", "many too"] {
        println!("updateMany: {:?}", until_read(&mut client, id, Some(4.0), LAG).await);
    }
    let repairs = server.tiered.repairs().reading();
    assert!(repairs.edited >= 5 && repairs.lag < LAG, "{repairs:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_a_server_that_crashed_before_it_told_l1_is_seen_by_others() {
    let pair = Pair::real();
    let settings = [&pair.settings()[..], &[("FEATURESTORE_L1_TIMEOUT", "100ms")]].concat();
    let hand = ByHand::of(&pair).await;
    let mut crashing = Binary::start(&settings);
    crashing.until_serving().await;
    let mut writer = crashing.client().await;
    eventually("writes to be cached", async || write(&mut writer, "a", 1.0).await.cached).await;
    // Until it knows that somebody repairs it would mark the epoch as dirty.
    eventually("it to repair", async || hand.lease().await.contains_key("stored")).await;
    let server = pair.serve().await;
    let mut reader = server.client().await;
    until_hit(&mut reader, "a").await;
    let epoch = hand.epoch().await;

    let redis = pair.redis.as_ref().unwrap();
    redis.freeze();
    assert!(!write(&mut writer, "a", 2.0).await.cached);
    crashing.kill();
    redis.thaw();
    // Until Redis is trusted MongoDB answers; then what the dead server could not tell may be hidden for its lease's time.
    let start = Instant::now();
    loop {
        let row = row(&mut reader, get(["a"])).await;
        if row.source() == Source::L1 && row.features == features([("n", double(2.0))]) {
            break;
        }
        assert!(start.elapsed() < HANDOVER, "{row:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("a hit shows the write {:?} after the crash", start.elapsed());
    assert_eq!((hand.epoch().await, hand.is_dirty().await), (epoch, false), "everybody else went on");
    server.stop().await;
}

/// Writes while Redis does not answer; tells whether the epoch is the same when L1 is trusted again, and will stay so. Redis
/// is frozen and not restarted: one that comes back empty in another run is another L1, which always costs a new epoch.
async fn keeps_its_epoch(mongod: &Mongod, name: &str) -> bool {
    let redis = RedisServer::start();
    let (url, uri) = (redis.url(), mongod.uri());
    let server = Server::start(&[("REDIS_URL", &url), ("MONGO_URI", &uri), ("MONGO_DB", name)]).await;
    let mut client = server.client().await;
    eventually("the repairer's position to be known", async || {
        server.tiered.store().info().silent || server.tiered.repairs().reading().leading
    })
    .await;
    eventually("writes to be cached", async || write(&mut client, "a", 1.0).await.cached).await;
    let epoch = server.tiered.trust().epoch().unwrap();
    redis.freeze();
    assert!(!write(&mut client, "a", 2.0).await.cached);
    redis.thaw();
    eventually("writes to be cached again", async || write(&mut client, "a", 3.0).await.cached).await;
    let now = server.tiered.store().epoch(tokio::time::Instant::now() + LAG).await.unwrap();
    let same = now.epoch == epoch.epoch && !now.dirty;
    server.stop().await;
    same
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_l1_was_not_told_of_costs_a_new_epoch_only_where_nobody_repairs() {
    let (replicas, standalone) = (Mongod::shared_replica_set(), Mongod::shared_standalone());
    assert!(keeps_its_epoch(replicas, &replicas.settled_database()).await);
    assert!(!keeps_its_epoch(standalone, &standalone.settled_database()).await);
}

/// For how long L1 keeps a record that was just written with these settings, over this MongoDB.
async fn l1_keeps(mongod: &Mongod, ttl: &str) -> Duration {
    let redis = RedisServer::start();
    let (url, uri, name) = (redis.url(), mongod.uri(), mongod.settled_database());
    let backends = [("REDIS_URL", &*url), ("MONGO_URI", &uri), ("MONGO_DB", &name), ("FEATURESTORE_L1_TTL", ttl)];
    let server = Server::start(&backends).await;
    let mut client = server.client().await;
    eventually("a write to be cached", async || write(&mut client, "a", 1.0).await.cached).await;
    // A fill of what was missed is kept no longer than a write.
    for key in redis.cli(&["KEYS", "*:default:a"]).lines() {
        redis.cli(&["DEL", key]);
    }
    until_hit(&mut client, "a").await;
    let keys = redis.cli(&["KEYS", "*:default:a"]);
    let left: i64 = redis.cli(&["PTTL", keys.lines().next().unwrap()]).parse().unwrap();
    server.stop().await;
    Duration::from_millis(left.try_into().expect("it has a time to live"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_stays_in_l1_for_five_minutes_at_most_where_nobody_tells_of_changes() {
    const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);
    let (replicas, standalone) = (Mongod::shared_replica_set(), Mongod::shared_standalone());
    let kept = l1_keeps(standalone, "1h").await;
    assert!(kept > Duration::from_secs(60) && kept <= FIVE_MINUTES, "{kept:?}");
    let kept = l1_keeps(standalone, "60s").await;
    assert!(kept <= Duration::from_secs(60), "the shorter one holds: {kept:?}");
    let kept = l1_keeps(replicas, "1h").await;
    assert!(kept > FIVE_MINUTES, "a change stream tells of them: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_zero_again_once_no_change_waits() {
    let pair = Pair::real();
    let server = pair.serve().await;
    let mut client = server.client().await;
    until_leads(&server).await;
    let reading = || server.tiered.repairs().reading();
    // More than one, as a single one may have been made good in less than a millisecond.
    for n in 1..=3 {
        let before = reading().written;
        write(&mut client, "a", f64::from(n)).await;
        eventually("it to be made good", async || reading().written > before).await;
        eventually("none to wait", async || reading().lag == Duration::ZERO).await;
    }
    server.stop().await;
}
