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

    let key = {
        let redis = world.redis();
        let key = block_in_place(|| redis.cli(&["KEYS", "*:default:key0"])).trim().to_owned();
        block_in_place(|| redis.cli(&["COPY", &key, "kept"]));
        key
    };
    write(&mut client, 2.0).await;
    eventually("the tiers to be equal", async || different(&mut world, &ids).await.is_none()).await;
    assert_eq!(pending(world.redis()).live, 0);
    block_in_place(|| world.redis().cli(&["COPY", "kept", &key, "REPLACE"]));
    let told = different(&mut world, &ids).await.expect("L1 holds an old value");
    assert!(told.starts_with(UNEQUAL), "{told}");

    block_in_place(|| world.redis().cli(&["EVAL", PERMIT, "1", &key]));
    assert_eq!((pending(world.redis()).kept, pending(world.redis()).live), (0, 1));
    block_in_place(|| world.redis().cli(&["PERSIST", &key]));
    assert_eq!(pending(world.redis()).kept, 1);
}
