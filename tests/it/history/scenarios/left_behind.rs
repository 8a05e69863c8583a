//! What judges the end of a storm must see an L1 that lies, and a permit that stays.

use tokio::task::block_in_place;

use crate::{
    harness::{
        client::{self as api, Client},
        server::eventually,
    },
    history::{
        client::entity_id,
        settled::{UNEQUAL, different, pending},
        world::{Tiers, World},
    },
};

/// A permit and a lease that have not ended, in an entry that has.
const PERMIT: &str = "
local clock = redis.call('TIME')
local now = clock[1] * 1000
local e = {floor = 1, permits = {someones = now + 60000}, lease = 'another1', lease_ends = now - 1000}
redis.call('SET', KEYS[1], 'P\\1' .. cmsgpack.pack(e), 'PX', 60000)
return ''";

async fn write(client: &mut Client, n: f64) {
    let written = async || {
        let record = api::record(&entity_id(0), [("n", api::double(n))]);
        client.upsert_features(api::upsert(record)).await.is_ok_and(|written| written.into_inner().cached)
    };
    eventually("a cached write", written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_left_behind_is_seen() {
    let mut world = World::start(Tiers::OneNode).await;
    let (mut client, ids) = (world.servers[0].client().await, [entity_id(0)]);
    write(&mut client, 1.0).await;
    eventually("the tiers to be equal", async || different(&mut world, &ids).await.is_none()).await;

    // More than one where a new epoch began meanwhile; what the servers no longer look at does no harm.
    let listed = block_in_place(|| world.redis().cli(&["KEYS", "*:default:key0"]));
    let keys: Vec<(&str, String)> = listed.lines().map(|key| (key, format!("kept:{key}"))).collect();
    assert!(!keys.is_empty());
    for (key, kept) in &keys {
        block_in_place(|| world.redis().cli(&["COPY", key, kept]));
    }
    write(&mut client, 2.0).await;
    eventually("the tiers to be equal", async || different(&mut world, &ids).await.is_none()).await;
    eventually("every permit to end", async || pending(world.redis()).live == 0).await;

    // The repairer still passes over these writes, and mends what is done to L1 here: so it is done until it is seen.
    eventually("an old value in L1 to be told", async || {
        for (key, kept) in &keys {
            block_in_place(|| world.redis().cli(&["COPY", kept, key, "REPLACE"]));
        }
        different(&mut world, &ids).await.is_some_and(|told| told.starts_with(UNEQUAL))
    })
    .await;

    let (key, _) = keys[0];
    eventually("a permit and a lease to be told", async || {
        block_in_place(|| world.redis().cli(&["EVAL", PERMIT, "1", key]));
        let told = pending(world.redis());
        (told.kept, told.live) == (0, 1)
    })
    .await;
    eventually("an entry without an end to be told", async || {
        block_in_place(|| world.redis().cli(&["EVAL", PERMIT, "1", key]));
        block_in_place(|| world.redis().cli(&["PERSIST", key]));
        pending(world.redis()).kept == 1
    })
    .await;
}
