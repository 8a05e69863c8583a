//! After everything: nothing is in flight, no permit or lease is left, and what L1 answers is what L2 holds. It asks for
//! nothing STRONG before that, since such a read takes out of L1 what is older.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bson::{Document, doc};
use tokio::task::block_in_place;

use super::{
    client::{Habits, entity_id},
    event::Bounds,
    world::{Mongo, RECOVERY, World, tail},
};
use crate::harness::{
    binary::Binary,
    client::{self as api, FeatureRow, RowStatus, Source, value::Kind::Int64Val},
    redis::RedisServer,
    server::eventually,
};

/// A little more than a permit lives; a lease lives shorter.
const PENDING: Duration = Duration::from_secs(7);

/// Counts the pending entries whose key has no end or one that is too far, those with a permit or lease that has not
/// ended, and those without.
const LOOK: &str = "
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local kept, live, clean = 0, 0, 0
for _, key in ipairs(redis.call('KEYS', '{}fs:*:*')) do
  local packed = redis.call('GET', key)
  if packed and string.sub(packed, 1, 1) == 'P' then
    local left = redis.call('PTTL', key)
    if left == -1 or left > 60000 then kept = kept + 1 end
    local e = cmsgpack.unpack(string.sub(packed, 3))
    local waits = e.lease and e.lease_ends > now
    for _, ends in pairs(e.permits) do waits = waits or ends > now end
    if waits then live = live + 1 else clean = clean + 1 end
  elseif packed then clean = clean + 1 end
end
return string.format('%d %d %d', kept, live, clean)";

/// How `different` begins where it is not only a miss.
pub const UNEQUAL: &str = "L1 and L2 differ";

/// Entries in Redis, as `LOOK` counts them.
pub struct Pending {
    pub kept: u64,
    pub live: u64,
    clean: u64,
}

/// What a key holds, as far as both tiers tell it: the revision, `last` and `base`; None: no such record.
type Held = Option<(i64, Option<i64>, Option<i64>)>;

/// Waits for all of it, and says how long that took. Panics if it does not come to rest.
pub async fn settled(world: &mut World, habits: &Habits) -> Duration {
    let start = Instant::now();
    for server in &world.servers {
        eventually("nothing to be in flight", async || under_way(server).await.is_empty()).await;
        eventually("both tiers to be healthy", async || is_healthy(server).await).await;
    }
    without_permits(world).await;
    let ids: Vec<String> = (0..habits.keys()).map(entity_id).collect();
    loop {
        let last = match (different(world, &ids).await, start.elapsed()) {
            (None, took) => return took,
            (Some(last), took) if took < RECOVERY => last,
            (Some(last), _) => panic!("not settled after {RECOVERY:?}: {last}"),
        };
        // What was not confirmed may be hidden for so long.
        let is_lie = last.starts_with(UNEQUAL) && start.elapsed() > Bounds::default().unconfirmed;
        let log = || world.servers.iter().map(|server| tail(&server.log())).collect::<Vec<_>>().join("\n--\n");
        assert!(!is_lie, "{last}, {:.1?} after the storm\n{}", start.elapsed(), log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a server has under way, by the gauges of its metrics.
pub async fn under_way(server: &Binary) -> Vec<String> {
    let text = server.metrics().await;
    let gauges: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && line.contains("in_flight")).collect();
    assert!(!gauges.is_empty(), "no such gauges: {text}");
    gauges.into_iter().filter(|gauge| !gauge.ends_with(" 0")).map(str::to_owned).collect()
}

async fn is_healthy(server: &Binary) -> bool {
    let text = server.metrics().await;
    let modes = ["l1", "l2"].map(|tier| format!("featurestore_tier_mode{{tier=\"{tier}\",mode=\"healthy\"}} 1"));
    modes.iter().all(|mode| text.lines().any(|line| line == mode))
}

/// Looks at all entries.
pub fn pending(redis: &RedisServer) -> Pending {
    let told = block_in_place(|| redis.cli(&["EVAL", LOOK, "0"]));
    let numbers: Vec<u64> = told.trim().split(' ').map(|number| number.parse().expect(&told)).collect();
    let [kept, live, clean] = numbers[..] else { panic!("{told}") };
    Pending { kept, live, clean }
}

/// Nobody calls any more, so every permit and lease ends when its time is over.
async fn without_permits(world: &World) {
    let (Some(redis), start) = (&world.redis, Instant::now()) else { return };
    loop {
        let Pending { kept, live, clean } = pending(redis);
        assert_eq!(kept, 0, "pending entries whose keys outlive their deadline");
        if live == 0 {
            println!("no permit or lease in {clean} entries after {:.1?}", start.elapsed());
            return;
        }
        assert!(start.elapsed() < PENDING, "{live} entries with a permit or lease {PENDING:?} after the last call");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Where a server does not answer a key from L1 with what L2 holds.
pub async fn different(world: &mut World, ids: &[String]) -> Option<String> {
    let mut answered = Vec::new();
    for server in &world.servers {
        let Ok(cached) = server.client().await.get_features(api::get(ids.to_vec())).await else {
            return Some("a read failed".to_owned());
        };
        answered.push(cached.into_inner().rows);
    }
    let stored = in_l2(world, ids).await;
    let mut no_hit = None;
    for (server, rows) in answered.into_iter().enumerate() {
        for row in rows {
            let (held, stored) = (held(&row), stored.get(&row.entity_id).copied().flatten());
            if held != stored {
                return Some(format!("{UNEQUAL}: server {server} answers {row:?}, L2 holds {stored:?}"));
            }
            // That there is no such record L1 keeps for seconds only, so one of them is always a miss.
            if row.source() != Source::L1 && row.status() == RowStatus::Found {
                no_hit = Some(format!("no hit: {row:?}"));
            }
        }
    }
    no_hit
}

fn held(row: &FeatureRow) -> Held {
    let number = |name: &str| match row.features.get(name)?.kind {
        Some(Int64Val(number)) => Some(number),
        _ => None,
    };
    (row.status() == RowStatus::Found).then(|| (row.revision, number("last"), number("base")))
}

/// What L2 holds: MongoDB by its driver; what lives in the server only that tells.
async fn in_l2(world: &mut World, ids: &[String]) -> BTreeMap<String, Held> {
    let node = match &mut world.mongo {
        Mongo::One(mongod) => mongod,
        Mongo::Three(set) => block_in_place(|| {
            let primary = set.wait_for_primary();
            set.node(primary)
        }),
        Mongo::None => {
            let mut client = world.servers[0].client().await;
            let rows = client.get_features(api::strong(ids.to_vec())).await.expect("a STRONG read").into_inner().rows;
            return rows.iter().map(|row| (row.entity_id.clone(), held(row))).collect();
        }
    };
    let features = node.database(&world.database).await.collection::<Document>("features");
    let mut stored = BTreeMap::new();
    for id in ids {
        let at = doc! { "_id": { "view": "default", "entity_id": id } };
        let found = features.find_one(at).await.unwrap_or_else(|failure| panic!("MongoDB does not answer: {failure}"));
        let live = found.filter(|document| !document.get_bool("deleted").unwrap_or(false));
        let held = live.map(|document| {
            let values = document.get_document("features").unwrap();
            let number = |name: &str| values.get_i64(name).ok();
            (document.get_i64("rev").unwrap(), number("last"), number("base"))
        });
        stored.insert(id.clone(), held);
    }
    stored
}
