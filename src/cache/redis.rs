//! L1 in Redis. Each record is one packed string (`entry`), and each operation one Lua script
//! (`scripts`). It goes to the server that holds the key (`servers`, `send`) over a few shared
//! connections (`connections`), which are used only after a probe verified the data (`probe`).
//!
//! Not here: what an operation does (`cache::entry`; tests compare `cache/scripts/*.lua` with it).

mod address;
mod cause;
mod config;
mod connections;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod probe;
mod reader;
mod refusal;
mod scripts;
mod send;
mod servers;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use deadpool_redis::redis::{Pipeline, Value};
use tokio::time::Instant;

pub use config::{InvalidRedisConfig, RedisConfig};

use self::{
    reader::Reply,
    scripts::{Operation, Scripts},
    send::Sending,
    servers::Servers,
};
use super::{
    Acquired, BATCH_BYTES, Cache, CacheError, CacheInfo, CacheKey, CacheValue, Effect, Epoch, L1Name, MAX_PERMITS,
    Marked, PermitId, Probe, Problem, Put, Settle, entry::Lifetimes,
};
use crate::{metrics::PoolReading, record::TypicalSize};

/// The most keys that one MGET through the library asks for.
const LIBRARY_KEYS: usize = 256;
/// The assumed size of a value before any was seen, in bytes.
const UNSEEN_BYTES: usize = 16 << 10;

/// L1 in Redis. It is unusable until the first successful `probe`.
#[derive(Debug)]
pub struct RedisCache {
    servers: Servers,
    probed: tokio::sync::Mutex<probe::Seen>,
    abilities: probe::Abilities,
    settings: probe::Settings,
    scripts: Scripts,
    lives: Lifetimes,
    wait_replicas: u32,
    info: CacheInfo,
    name: ArcSwapOption<L1Name>,
    /// Of the values that the library reads.
    value_size: TypicalSize,
}

impl RedisCache {
    /// Does not connect, because Redis may be unreachable when the server starts.
    pub fn new(config: &RedisConfig) -> Result<Self, InvalidRedisConfig> {
        Ok(Self {
            servers: Servers::new(config)?,
            probed: tokio::sync::Mutex::default(),
            abilities: probe::Abilities::default(),
            settings: probe::Settings::default(),
            scripts: Scripts::new(),
            lives: Lifetimes::default(),
            wait_replicas: config.wait_replicas,
            info: CacheInfo { kind: config.kind(), address: config.address(), shared: true },
            name: ArcSwapOption::empty(),
            value_size: TypicalSize::new(UNSEEN_BYTES),
        })
    }

    /// With other lifetimes than the contract's, for tests.
    pub fn with_lifetimes(self, lives: Lifetimes) -> Self {
        Self { lives, ..self }
    }

    /// What Redis holds under each key. One server gets one MGET; in a cluster each master gets a
    /// pipeline of GETs. Our own connections drop what exceeds the limit as it arrives. The library
    /// cannot, so it asks for a few batches in sequence, each sized by the recent values.
    async fn packed(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<Bytes>, CacheError>> {
        let layout = self.servers.layout();
        if layout.slots.is_none() && matches!(&layout.masters[..], [master] if master.connections.have_readers()) {
            return self.packed_at_once(keys, deadline).await;
        }
        let (mut all, mut brought) = (Vec::with_capacity(keys.len()), 0);
        while all.len() < keys.len() && brought < BATCH_BYTES {
            let count = self.value_size.records_in(BATCH_BYTES).min(LIBRARY_KEYS).min(keys.len() - all.len());
            let batch = self.packed_at_once(&keys[all.len()..][..count], deadline).await;
            let (there, bytes) = batch.iter().flatten().flatten().fold((0, 0), |(n, sum), b| (n + 1, sum + b.len()));
            self.value_size.saw(there, bytes);
            brought += bytes;
            all.extend(batch);
        }
        all.resize_with(keys.len(), || Err(CacheError::LeftOut));
        all
    }

    async fn packed_at_once(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<Bytes>, CacheError>> {
        let layout = self.servers.layout();
        let [master] = &layout.masters[..] else {
            return self.packed_of_many(keys, deadline).await;
        };
        if layout.slots.is_some() {
            return self.packed_of_many(keys, deadline).await;
        }
        match master.connections.mget(keys.iter().map(CacheKey::as_bytes), deadline).await {
            Ok(Reply::Array(packed)) if packed.len() == keys.len() => packed.into_iter().map(Ok).collect(),
            Ok(Reply::Part(packed)) if packed.len() < keys.len() => {
                let left_out = keys.len() - packed.len();
                packed.into_iter().map(Ok).chain((0..left_out).map(|_| Err(CacheError::LeftOut))).collect()
            }
            Ok(Reply::Error(why)) if layout.is_unable(0, &why) => {
                vec![Err(CacheError::Unavailable(why.into())); keys.len()]
            }
            Ok(Reply::Array(packed) | Reply::Part(packed)) => {
                refused(keys.len(), &format!("Redis answered MGET with {} values", packed.len()))
            }
            Ok(other) => refused(keys.len(), &format!("Redis answered MGET with {other:?}")),
            Err(e) => vec![Err(e); keys.len()],
        }
    }

    async fn packed_of_many(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<Bytes>, CacheError>> {
        let write = |pipeline: &mut Pipeline, key: &CacheKey| {
            pipeline.cmd("GET").arg(key.as_bytes());
        };
        let sending = Sending { key: |key: &CacheKey| key, write: &write, command: "GET", script: None, wait: 0 };
        let reply = |reply| match reply {
            Ok(Value::BulkString(packed)) => Ok(Some(packed.into())),
            // MGET answers nil for a key of another type, so GET does the same.
            Ok(Value::ServerError(e)) if e.code() != "WRONGTYPE" => Err(CacheError::Refused(e.to_string().into())),
            Ok(_) => Ok(None),
            Err(e) => Err(e),
        };
        self.servers.send_each(keys, &sending, deadline).await.into_iter().map(reply).collect()
    }

    /// Removes entries, by one pipeline for each server. One result for each key.
    async fn remove_all(&self, keys: &[&CacheKey], wait: u32, deadline: Instant) -> Vec<Result<(), CacheError>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let write = |pipeline: &mut Pipeline, key: &&CacheKey| {
            pipeline.cmd("DEL").arg(key.as_bytes());
        };
        let sending = Sending { key: |key: &&CacheKey| key, write: &write, command: "DEL", script: None, wait };
        let removed = |reply| match reply {
            Ok(Value::ServerError(e)) => Err(CacheError::Refused(e.to_string().into())),
            other => other.map(drop),
        };
        self.servers.send_each(keys, &sending, deadline).await.into_iter().map(removed).collect()
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<CacheValue>, CacheError>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let mut unreadable = Vec::new();
        let values = keys.iter().zip(self.packed(keys, deadline).await).map(|(key, packed)| match packed {
            Ok(Some(packed)) if !entry::is_pending(&packed) => {
                let value = entry::unpack(key, packed);
                if value.is_none() {
                    unreadable.push(key);
                }
                Ok(value)
            }
            other => other.map(|_| None),
        });
        let values = values.collect();
        // These keys are misses whether or not this succeeds.
        let _ = self.remove_all(&unreadable, 0, deadline).await;
        values
    }

    async fn acquire(&self, asks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Acquired, CacheError>> {
        let args = |pipeline: &mut Pipeline, (_, token): &_| {
            let PermitId(token) = token;
            pipeline.arg(&token[..]).arg(self.lives.lease_ms).arg(self.lives.pending_ms);
        };
        let operation = Operation {
            code: &self.scripts.acquire,
            wait: 0,
            key: |(key, _)| key,
            args: &args,
            read: |(key, _), reply| scripts::acquired(key, reply),
            instead: Acquired::NoFill { suspect: None },
        };
        self.run(operation, asks, deadline).await
    }

    async fn settle(&self, settles: &[Settle], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        // What a bulk made old must be gone from the replicas too before the bulk is answered, and
        // its SETTLE fills nothing. A SETTLE that fills follows a miss: there is nothing to remove,
        // and to wait would make misses slower.
        let only_fills = settles.iter().all(|settle| settle.fill.is_some());
        let args = |pipeline: &mut Pipeline, settle: &Settle| {
            pipeline.arg(settle.revision.0);
            if let Some((PermitId(token), fill)) = &settle.fill {
                pipeline.arg(&token[..]).arg(&entry::pack(&settle.key, &fill.value)[..]).arg(scripts::ttl_ms(fill.ttl));
            }
        };
        let operation = Operation {
            code: &self.scripts.settle,
            wait: if only_fills { 0 } else { self.wait_replicas },
            key: |settle: &Settle| &settle.key,
            args: &args,
            read: |_, reply| scripts::effect(&reply),
            instead: Effect::Dropped,
        };
        self.run(operation, settles, deadline).await
    }

    async fn mark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Marked, CacheError>> {
        let args = |pipeline: &mut Pipeline, (_, permit): &_| {
            let PermitId(permit) = permit;
            pipeline.arg(&permit[..]).arg(self.lives.permit_ms).arg(self.lives.pending_ms).arg(MAX_PERMITS);
        };
        let operation = Operation {
            code: &self.scripts.mark,
            wait: self.wait_replicas,
            key: |(key, _)| key,
            args: &args,
            read: |_, reply| scripts::marked(&reply),
            instead: Marked::Overflow,
        };
        self.run(operation, marks, deadline).await
    }

    async fn put(&self, puts: &[Put], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        let args = |pipeline: &mut Pipeline, Put { key, permit: PermitId(permit), fill }: &Put| {
            pipeline.arg(&permit[..]).arg(&entry::pack(key, &fill.value)[..]).arg(scripts::ttl_ms(fill.ttl));
        };
        let operation = Operation {
            code: &self.scripts.put,
            wait: 0,
            key: |put: &Put| &put.key,
            args: &args,
            read: |_, reply| scripts::effect(&reply),
            instead: Effect::Dropped,
        };
        self.run(operation, puts, deadline).await
    }

    async fn unmark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        let args = |pipeline: &mut Pipeline, (_, permit): &_| {
            let PermitId(permit) = permit;
            pipeline.arg(&permit[..]);
        };
        let operation = Operation {
            code: &self.scripts.unmark,
            wait: 0,
            key: |(key, _)| key,
            args: &args,
            read: |_, reply| scripts::effect(&reply),
            instead: Effect::Dropped,
        };
        self.run(operation, marks, deadline).await
    }

    async fn remove(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<(), CacheError>> {
        self.remove_all(&keys.iter().collect::<Vec<_>>(), self.wait_replicas, deadline).await
    }

    fn clear(&self) {}

    async fn probe(&self, epoch: Epoch, named: Option<&L1Name>, deadline: Instant) -> Result<Probe, CacheError> {
        if let Some(error) = self.abilities.held_off() {
            return Err(error);
        }
        let probed = tokio::time::timeout_at(deadline, self.verify(epoch, named)).await;
        let result = probed.unwrap_or(Err(CacheError::Timeout));
        self.abilities.probed(&result);
        // The connections to another L1 are kept aside for the next probe.
        if !matches!(result, Ok(Probe::Intact | Probe::Another { .. })) {
            self.servers.lose();
        }
        result
    }

    fn name(&self) -> Option<L1Name> {
        self.name.load().as_deref().cloned()
    }

    fn info(&self) -> CacheInfo {
        self.info.clone()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.settings.problems();
        if self.abilities.are_missing() {
            problems.push(Problem::Unsuitable);
        }
        problems
    }

    fn pool(&self) -> Option<PoolReading> {
        let layout = self.servers.layout();
        let pools = layout.masters.iter().map(|master| master.connections.pool());
        Some(pools.fold(PoolReading::default(), |all, one| PoolReading {
            max: all.max + one.max,
            used: all.used + one.used,
            pending: all.pending + one.pending,
            waits: None,
        }))
    }
}

fn refused<T: Clone>(count: usize, why: &str) -> Vec<Result<T, CacheError>> {
    vec![Err(CacheError::Refused(why.into())); count]
}
