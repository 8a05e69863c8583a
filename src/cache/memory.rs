//! L1 in this process: the entry state machine under locks, with a limit in bytes.
//!
//! A key belongs to one shard, which is a mutex around a cache without locks. An operation holds
//! the lock only while the machine runs, and awaits nothing. Time is monotonic. An entry that has
//! ended is a miss, but uses memory until it is replaced or evicted. Not here: what an operation
//! does (`entry`).

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter, unsync};
use tokio::time::Instant;

use super::{
    Acquired, Cache, CacheError, CacheInfo, CacheKey, CacheValue, Effect, Epoch, Fill, L1Name, Marked, PermitId, Probe,
    Put, Settle,
    entry::{self, Install, Lifetimes},
};

type Entry = entry::Entry<CacheValue, PermitId>;
type Shard = unsync::Cache<Hashed, Entry, Weight, AsHashed>;

/// A key and its hash, which chooses the shard and the slot in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hashed {
    key: CacheKey,
    hash: u64,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A borrowed `Hashed`, for lookups.
struct Sought<'a> {
    key: &'a CacheKey,
    hash: u64,
}

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Hashed> for Sought<'_> {
    fn equivalent(&self, other: &Hashed) -> bool {
        *self.key == other.key
    }
}

/// Passes on the hash that a key brings with it.
#[derive(Debug, Clone, Copy, Default)]
struct AsHashed(u64);

impl BuildHasher for AsHashed {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for AsHashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys write only their hash");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What an entry takes beside its bytes: its slot, its part of the table, allocation headers.
const OVERHEAD_BYTES: u64 = 288;
/// What a permit takes, in bytes.
const PERMIT_BYTES: u64 = 40;
/// The least size of a shard, unless the whole cache is smaller: an entry must fit into a shard.
const MIN_SHARD_BYTES: u64 = 8 << 20;
/// Enough that threads rarely wait for each other. More would make batches slower, because a batch
/// locks each shard once.
const SHARDS_A_CORE: u64 = 4;
const MAX_SHARDS: u64 = 64;

/// L1 in this process.
#[derive(Debug)]
pub struct MemoryCache {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    started: Instant,
    lives: Lifetimes,
    name: L1Name,
}

impl MemoryCache {
    /// An empty cache of about `capacity_bytes` at most: keys, values and their overhead.
    pub fn new(capacity_bytes: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shards = (capacity_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS.min(SHARDS_A_CORE * cores));
        let shard = || Mutex::new(new_shard(capacity_bytes / shards));
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: DefaultHashBuilder::default(),
            started: Instant::now(),
            lives: Lifetimes::default(),
            name: L1Name {
                id: L1Name::random_id().into(),
                histories: [].into(),
                shared: false,
                address: "in process".into(),
            },
        }
    }

    /// With other lifetimes than the contract's, for tests.
    pub fn with_lifetimes(self, lives: Lifetimes) -> Self {
        Self { lives, ..self }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn shard<'a>(&self, key: &'a CacheKey) -> (MutexGuard<'_, Shard>, Sought<'a>) {
        let hash = self.hasher.hash_one(key.as_bytes());
        (lock(&self.shards[self.shard_of(hash)]), Sought { key, hash })
    }

    fn shard_of(&self, hash: u64) -> usize {
        // Bits from the middle. The table of a shard uses the lowest and the highest ones, so these
        // still spread the keys of one shard.
        ((hash >> 32 & 0xffff) as usize * self.shards.len()) >> 16
    }

    /// Looks up many keys, shard by shard. A hit takes about six dependent loads from memory. All
    /// keys of a shard are looked up before any value is cloned, so that the processor overlaps
    /// their loads.
    fn get_many(&self, keys: &[CacheKey], now: u64) -> Vec<Option<CacheValue>> {
        let hashes: Vec<u64> = keys.iter().map(|key| self.hasher.hash_one(key.as_bytes())).collect();
        // The keys of each shard as a linked list of indices into `keys`, plus one; 0 ends the
        // list.
        let (mut firsts, mut nexts) = ([0_u32; MAX_SHARDS as usize], vec![0_u32; keys.len()]);
        for (i, hash) in hashes.iter().enumerate() {
            let first = &mut firsts[self.shard_of(*hash)];
            nexts[i] = std::mem::replace(first, i as u32 + 1);
        }
        let mut values = vec![None; keys.len()];
        for (shard, first) in self.shards.iter().zip(firsts) {
            if first == 0 {
                continue;
            }
            let shard = lock(shard);
            let (mut found, mut next) = (Vec::with_capacity(16), first);
            while let Some(i) = next.checked_sub(1) {
                let i = i as usize;
                let entry = shard.get(&Sought { key: &keys[i], hash: hashes[i] });
                if let Some(value) = entry.and_then(|entry| entry.hit(now)) {
                    found.push((i, value));
                }
                next = nexts[i];
            }
            for (i, value) in found {
                values[i] = Some(value.clone());
            }
        }
        values
    }

    /// Runs one operation on one entry, and stores, keeps or removes the result.
    fn change<T>(&self, key: &CacheKey, operation: impl FnOnce(&mut Option<Entry>) -> T) -> T {
        let (mut shard, sought) = self.shard(key);
        let mut slot = shard.get(&sought).cloned();
        let was_there = slot.is_some();
        let reply = operation(&mut slot);
        match slot {
            Some(entry) => shard.insert(Hashed { key: key.detached(), hash: sought.hash }, entry),
            None if was_there => drop(shard.remove(&sought)),
            None => {}
        }
        reply
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_shard(bytes: u64) -> Shard {
    // The estimate also limits the record of evicted entries, which the weight does not count.
    let options = OptionsBuilder::new()
        .weight_capacity(bytes)
        .estimated_items_capacity((bytes / 1024).max(1) as usize)
        .ghost_allocation(0.25)
        .build()
        .expect("capacities are given");
    Shard::with_options(options, Weight, AsHashed::default(), unsync::DefaultLifecycle::default())
}

#[derive(Debug)]
struct Weight;

impl Weighter<Hashed, Entry> for Weight {
    fn weight(&self, Hashed { key, .. }: &Hashed, entry: &Entry) -> u64 {
        let value = match entry.value() {
            Some(CacheValue::Record(record)) => record.as_bytes().len(),
            _ => 0,
        };
        (key.as_bytes().len() + value) as u64 + PERMIT_BYTES * entry.permits() as u64 + OVERHEAD_BYTES
    }
}

/// Copies the value into its own buffer, as the given one may be part of a larger one.
fn install(fill: &Fill) -> Install<CacheValue> {
    let value = match &fill.value {
        CacheValue::Record(record) => CacheValue::Record(record.detached()),
        CacheValue::Absent(revision) => CacheValue::Absent(*revision),
    };
    Install { value, ttl_ms: u64::try_from(fill.ttl.as_millis()).unwrap_or(u64::MAX) }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, keys: &[CacheKey], _: Instant) -> Vec<Result<Option<CacheValue>, CacheError>> {
        let now = self.now();
        if let [key] = keys {
            let (shard, sought) = self.shard(key);
            return vec![Ok(shard.get(&sought).and_then(|entry| entry.hit(now)).cloned())];
        }
        self.get_many(keys, now).into_iter().map(Ok).collect()
    }

    async fn acquire(&self, asks: &[(CacheKey, PermitId)], _: Instant) -> Vec<Result<Acquired, CacheError>> {
        let now = self.now();
        let ask = |(key, token): &_| self.change(key, |slot| Entry::acquire(slot, *token, now, &self.lives));
        asks.iter().map(ask).map(Ok).collect()
    }

    async fn settle(&self, settles: &[Settle], _: Instant) -> Vec<Result<Effect, CacheError>> {
        let now = self.now();
        let settle = |Settle { key, revision, fill }: &_| {
            let fill = fill.as_ref().map(|(token, fill)| (*token, install(fill)));
            self.change(key, |slot| Entry::settle(slot, *revision, fill, now))
        };
        settles.iter().map(settle).map(Ok).collect()
    }

    async fn mark(&self, marks: &[(CacheKey, PermitId)], _: Instant) -> Vec<Result<Marked, CacheError>> {
        let now = self.now();
        let mark = |(key, permit): &_| self.change(key, |slot| Entry::mark(slot, *permit, now, &self.lives));
        marks.iter().map(mark).map(Ok).collect()
    }

    async fn put(&self, puts: &[Put], _: Instant) -> Vec<Result<Effect, CacheError>> {
        let now = self.now();
        let put = |Put { key, permit, fill }: &_| {
            let revision = fill.value.revision();
            self.change(key, |slot| Entry::put(slot, *permit, revision, install(fill), now))
        };
        puts.iter().map(put).map(Ok).collect()
    }

    async fn unmark(&self, marks: &[(CacheKey, PermitId)], _: Instant) -> Vec<Result<Effect, CacheError>> {
        let now = self.now();
        let unmark = |(key, permit): &_| self.change(key, |slot| Entry::unmark(slot, *permit, now));
        marks.iter().map(unmark).map(Ok).collect()
    }

    async fn remove(&self, keys: &[CacheKey], _: Instant) -> Vec<Result<(), CacheError>> {
        for key in keys {
            let (mut shard, sought) = self.shard(key);
            shard.remove(&sought);
        }
        vec![Ok(()); keys.len()]
    }

    fn clear(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    async fn probe(&self, _: Epoch, named: Option<&L1Name>, _: Instant) -> Result<Probe, CacheError> {
        match named {
            Some(named) if self.name.is(named) => Ok(Probe::Intact),
            _ => Ok(Probe::Another { found: self.name.clone(), goes_on: false }),
        }
    }

    fn name(&self) -> Option<L1Name> {
        Some(self.name.clone())
    }

    fn info(&self) -> CacheInfo {
        CacheInfo { kind: "memory", address: self.name.address.to_string(), shared: false }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{
        EntityId, FeatureView, Features, Millis, RecordKey, Revision, Snapshot, encoding::StoredRecord,
    };

    fn key(number: usize) -> CacheKey {
        let view = FeatureView::parse("").unwrap();
        CacheKey::new(Epoch(1), &RecordKey { view, entity_id: EntityId::parse(&number.to_string()).unwrap() })
    }

    #[tokio::test]
    async fn what_it_keeps_is_no_part_of_a_larger_buffer() {
        let cache = MemoryCache::new(1 << 20);
        let (key, token, soon) = (key(1), PermitId([1; 8]), Instant::now());
        let snapshot = Snapshot {
            features: Features::new(),
            model_version: "v".to_owned(),
            revision: Revision(1),
            event_time: Millis(1),
            write_time: Millis(1),
            expire_at: None,
        };
        let record = StoredRecord::encode(&snapshot);
        let larger = Bytes::from([record.as_bytes(), &[0; 32 << 10][..]].concat());
        let record = StoredRecord::parse(larger.slice(..record.as_bytes().len())).unwrap();
        cache.acquire(&[(key.clone(), token)], soon).await;
        let fill = Fill { value: CacheValue::Record(record), ttl: std::time::Duration::from_secs(9) };
        cache.settle(&[Settle { key: key.clone(), revision: Revision(1), fill: Some((token, fill)) }], soon).await;
        let [Ok(Some(CacheValue::Record(kept)))] = &cache.get(&[key], soon).await[..] else { panic!("a hit") };
        assert!(!larger.as_ptr_range().contains(&kept.as_bytes().as_ptr()));
    }

    #[tokio::test]
    async fn it_never_holds_more_than_its_capacity() {
        let capacity = 16 << 20;
        let cache = MemoryCache::new(capacity);
        assert!(cache.shards.len() > 1);
        let (soon, ttl) = (Instant::now(), std::time::Duration::from_secs(9));
        let value = CacheValue::Absent(Revision(1));
        for number in 0..80_000 {
            let (key, token) = (key(number), PermitId([1; 8]));
            cache.acquire(&[(key.clone(), token)], soon).await;
            let fill = Fill { value: value.clone(), ttl };
            cache.settle(&[Settle { key, revision: Revision(1), fill: Some((token, fill)) }], soon).await;
        }
        let weight: u64 = cache.shards.iter().map(|shard| lock(shard).weight()).sum();
        assert!((capacity / 2..=capacity).contains(&weight), "{weight}");
        cache.clear();
        assert_eq!(cache.get(&[key(79_999)], soon).await, [Ok(None)]);
    }
}
