//! L1 in Redis: one packed string a record (`entry`), one Lua script an operation (`scripts`), over a few shared
//! connections (`connections`) that count only after a look at what Redis holds (`probe`).
//!
//! Not here: what an operation does (`cache::entry`, and `cache/scripts/*.lua`, which tests hold to it).

mod config;
mod connections;
mod entry;
mod probe;
mod scripts;

use async_trait::async_trait;
use deadpool_redis::redis::{Pipeline, Value};
use tokio::time::Instant;

pub use config::{InvalidRedisConfig, RedisConfig};

use self::{
    connections::Connections,
    scripts::{Operation, Scripts},
};
use super::{
    Acquired, Cache, CacheError, CacheInfo, CacheKey, CacheValue, Effect, Epoch, MAX_PERMITS, Marked, PermitId, Probe,
    Put, Settle, entry::Lifetimes,
};

/// L1 in Redis. Unusable until the first successful `probe`.
#[derive(Debug)]
pub struct RedisCache {
    connections: Connections,
    probed: tokio::sync::Mutex<Option<probe::Seen>>,
    scripts: Scripts,
    lives: Lifetimes,
    address: String,
}

impl RedisCache {
    /// Does not connect: Redis may be out of reach when the server starts.
    pub fn new(config: &RedisConfig) -> Result<Self, InvalidRedisConfig> {
        Ok(Self {
            connections: Connections::new(config)?,
            probed: tokio::sync::Mutex::default(),
            scripts: Scripts::new(),
            lives: Lifetimes::default(),
            address: config.address(),
        })
    }

    /// With other lifetimes than the contract's, for tests.
    pub fn with_lifetimes(self, lives: Lifetimes) -> Self {
        Self { lives, ..self }
    }

    /// Removes entries by one pipeline; one result a key.
    async fn remove_all<'a>(
        &self,
        keys: impl Iterator<Item = &'a CacheKey>,
        deadline: Instant,
    ) -> Vec<Result<(), CacheError>> {
        let mut pipeline = Pipeline::new();
        for key in keys {
            pipeline.cmd("DEL").arg(key.as_bytes());
        }
        if pipeline.is_empty() {
            return Vec::new();
        }
        let count = pipeline.len();
        let removed = |reply| match reply {
            Value::ServerError(e) => Err(CacheError::Refused(e.to_string().into())),
            _ => Ok(()),
        };
        match self.connections.send(pipeline, deadline).await {
            Ok(replies) => replies.into_iter().map(removed).collect(),
            Err(e) => vec![Err(e); count],
        }
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<CacheValue>, CacheError>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("MGET");
        for key in keys {
            pipeline.arg(key.as_bytes());
        }
        let reply = self.connections.send(pipeline, deadline).await.map(|mut replies| replies.pop());
        let packed = match reply {
            Ok(Some(Value::Array(packed))) if packed.len() == keys.len() => packed,
            Ok(other) => return refused(keys.len(), &format!("MGET was answered with {other:?}")),
            Err(e) => return vec![Err(e); keys.len()],
        };
        let mut unreadable = Vec::new();
        let values = keys.iter().zip(packed).map(|(key, packed)| match packed {
            Value::BulkString(packed) if !entry::is_pending(&packed) => {
                let value = entry::unpack(key, packed.into());
                if value.is_none() {
                    unreadable.push(key);
                }
                Ok(value)
            }
            _ => Ok(None),
        });
        let values = values.collect();
        if !unreadable.is_empty() {
            // They are misses whether or not this succeeds.
            let _ = self.remove_all(unreadable.into_iter(), deadline).await;
        }
        values
    }

    async fn acquire(&self, asks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Acquired, CacheError>> {
        let args = |pipeline: &mut Pipeline, (_, token): &_| {
            let PermitId(token) = token;
            pipeline.arg(&token[..]).arg(self.lives.lease_ms).arg(self.lives.pending_ms);
        };
        let operation = Operation {
            code: &self.scripts.acquire,
            key: |(key, _)| key,
            args: &args,
            read: |(key, _), reply| scripts::acquired(key, reply),
            instead: Acquired::NoFill { suspect: None },
        };
        self.run(operation, asks, deadline).await
    }

    async fn settle(&self, settles: &[Settle], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        let args = |pipeline: &mut Pipeline, settle: &Settle| {
            pipeline.arg(settle.revision.0);
            if let Some((PermitId(token), fill)) = &settle.fill {
                pipeline.arg(&token[..]).arg(&entry::pack(&settle.key, &fill.value)[..]).arg(scripts::ttl_ms(fill.ttl));
            }
        };
        let operation = Operation {
            code: &self.scripts.settle,
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
            key: |(key, _)| key,
            args: &args,
            read: |_, reply| scripts::effect(&reply),
            instead: Effect::Dropped,
        };
        self.run(operation, marks, deadline).await
    }

    async fn remove(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<(), CacheError>> {
        self.remove_all(keys.iter(), deadline).await
    }

    fn clear(&self) {}

    async fn probe(&self, epoch: Epoch, deadline: Instant) -> Result<Probe, CacheError> {
        let probed = tokio::time::timeout_at(deadline, self.verify(epoch)).await;
        let result = probed.unwrap_or(Err(CacheError::Timeout));
        if result != Ok(Probe::Intact) {
            self.connections.lose();
        }
        result
    }

    fn info(&self) -> CacheInfo {
        CacheInfo { kind: "redis", address: self.address.clone(), shared: true }
    }
}

fn refused<T: Clone>(count: usize, why: &str) -> Vec<Result<T, CacheError>> {
    vec![Err(CacheError::Refused(why.into())); count]
}
