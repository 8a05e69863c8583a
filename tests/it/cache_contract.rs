//! Every L1 keeps the contract of `featurestore::cache::Cache`.

mod cluster;
mod equivalence;
mod operations;
mod redis_faults;
mod replicas;
mod sentinels;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use featurestore::{
    cache::{
        Cache, CacheError, CacheKey, CacheValue, Epoch, Fill, PermitId, Probe, Put, Settle, memory::MemoryCache,
        redis::*,
    },
    record::{
        EntityId, FeatureName, FeatureView, Features, Millis, RecordKey, Revision, Snapshot, encoding::StoredRecord,
    },
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use crate::harness::{redis::RedisServer, redis_cluster::RedisCluster, sentinel::Sentinels, server::eventually};

const EPOCH: Epoch = Epoch(0xfeed);

/// A look at whichever L1 is there, as by a server whose epoch holds for it.
trait ProbeAny: Cache {
    async fn probe_any(&self, epoch: Epoch, deadline: Instant) -> Result<Probe, CacheError> {
        match self.probe(epoch, None, deadline).await? {
            Probe::Another { found, .. } => self.probe(epoch, Some(&found), deadline).await,
            found => Ok(found),
        }
    }
}

impl<C: Cache + ?Sized> ProbeAny for C {}

/// Ten times what anything here should take.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn memory() -> Arc<dyn Cache> {
    Arc::new(MemoryCache::new(64 << 20))
}

fn unprobed(server: &RedisServer) -> RedisCache {
    RedisCache::new(&RedisConfig::parse(&server.url()).unwrap()).unwrap()
}

/// A usable cache over this server.
async fn redis_at(server: &RedisServer) -> Arc<dyn Cache> {
    let cache = unprobed(server);
    cache.probe_any(EPOCH, soon()).await.unwrap();
    Arc::new(cache)
}

/// A usable cache at this address.
async fn redis_of(url: &str) -> Arc<dyn Cache> {
    let cache = unprobed_of(url);
    // On a busy machine too few may answer at once.
    eventually("a probe to succeed", async || cache.probe_any(EPOCH, soon()).await.is_ok()).await;
    Arc::new(cache)
}

fn unprobed_of(url: &str) -> RedisCache {
    RedisCache::new(&RedisConfig::parse(url).unwrap()).unwrap()
}

/// A cluster of all tests that leave it as it is, for one at a time, and empty.
async fn empty_cluster() -> MutexGuard<'static, RedisCluster> {
    static SHARED: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    let shared = tokio::task::spawn_blocking(|| SHARED.get_or_init(|| Mutex::new(RedisCluster::start())));
    let cluster = shared.await.unwrap().lock().await;
    cluster.nodes[..3].iter().for_each(|master| assert_eq!(master.cli(&["FLUSHALL"]), "OK"));
    cluster
}

/// The same with sentinels.
async fn empty_sentinels() -> MutexGuard<'static, Sentinels> {
    static SHARED: OnceLock<Mutex<Sentinels>> = OnceLock::new();
    let shared = tokio::task::spawn_blocking(|| SHARED.get_or_init(|| Mutex::new(Sentinels::start())));
    let sentinels = shared.await.unwrap().lock().await;
    assert_eq!(sentinels.servers[0].cli(&["FLUSHALL"]), "OK");
    sentinels
}

fn key(id: &str) -> CacheKey {
    let view = FeatureView::parse("v").unwrap();
    CacheKey::new(EPOCH, &RecordKey { view, entity_id: EntityId::parse(id).unwrap() })
}

/// The key as Redis has it.
fn name(key: &CacheKey) -> &str {
    std::str::from_utf8(key.as_bytes()).unwrap()
}

fn id(number: u8) -> PermitId {
    PermitId([number; 8])
}

/// A record at a revision, with one feature.
fn record(revision: i64) -> CacheValue {
    record_of(revision, "ключ")
}

fn record_of(revision: i64, text: &str) -> CacheValue {
    let value = featurestore::proto::Value { kind: Some(featurestore::proto::value::Kind::StringVal(text.to_owned())) };
    CacheValue::Record(StoredRecord::encode(&Snapshot {
        features: Features::from([(FeatureName::parse("a").unwrap(), value)]),
        model_version: String::new(),
        revision: Revision(revision),
        event_time: Millis(1),
        write_time: Millis(2),
        expire_at: None,
    }))
}

fn fill(value: CacheValue) -> Fill {
    Fill { value, ttl: Duration::from_secs(600) }
}

/// A settle under a lease.
fn settle(key: &CacheKey, token: u8, value: CacheValue) -> Settle {
    Settle { key: key.clone(), revision: value.revision(), fill: Some((id(token), fill(value))) }
}

/// A settle that only removes.
fn outdate(key: &CacheKey, revision: i64) -> Settle {
    Settle { key: key.clone(), revision: Revision(revision), fill: None }
}

fn put(key: &CacheKey, permit: u8, value: CacheValue) -> Put {
    Put { key: key.clone(), permit: id(permit), fill: fill(value) }
}

/// The one result of a batch of one.
fn only<T>(mut results: Vec<T>) -> T {
    assert_eq!(results.len(), 1);
    results.pop().unwrap()
}

async fn get(cache: &dyn Cache, key: &CacheKey) -> Option<CacheValue> {
    only(cache.get(std::slice::from_ref(key), soon()).await).unwrap()
}

/// Fills an entry as a reader does.
async fn warm(cache: &dyn Cache, key: &CacheKey, value: CacheValue) {
    only(cache.acquire(&[(key.clone(), id(200))], soon()).await).unwrap();
    only(cache.settle(&[settle(key, 200, value.clone())], soon()).await).unwrap();
    assert_eq!(get(cache, key).await, Some(value));
}
