//! L1 in this process, between a server and the cache that it shares with others.

use std::sync::Arc;

use async_trait::async_trait;
use featurestore::cache::{memory::MemoryCache, *};
use tokio::time::Instant;

use super::{Faults, Op};

/// One server's way to a cache that others share.
pub struct FaultyCache {
    pub faults: Arc<Faults>,
    pub inner: Arc<MemoryCache>,
}

macro_rules! batch {
    ($self:ident, $op:ident, $items:ident, $deadline:ident, $method:ident) => {{
        let (inner, items, count) = ($self.inner.clone(), $items.to_vec(), $items.len());
        let work = async move { inner.$method(&items, $deadline).await };
        $self.faults.call(Op::$op, $deadline, work, |_| vec![Err(CacheError::Timeout); count]).await
    }};
}

#[async_trait]
impl Cache for FaultyCache {
    async fn get(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<Option<CacheValue>, CacheError>> {
        batch!(self, Get, keys, deadline, get)
    }

    async fn acquire(&self, asks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Acquired, CacheError>> {
        batch!(self, Acquire, asks, deadline, acquire)
    }

    async fn settle(&self, settles: &[Settle], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        batch!(self, Settle, settles, deadline, settle)
    }

    async fn mark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Marked, CacheError>> {
        batch!(self, Mark, marks, deadline, mark)
    }

    async fn put(&self, puts: &[Put], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        batch!(self, Put, puts, deadline, put)
    }

    async fn unmark(&self, marks: &[(CacheKey, PermitId)], deadline: Instant) -> Vec<Result<Effect, CacheError>> {
        batch!(self, Unmark, marks, deadline, unmark)
    }

    async fn remove(&self, keys: &[CacheKey], deadline: Instant) -> Vec<Result<(), CacheError>> {
        batch!(self, Remove, keys, deadline, remove)
    }

    fn clear(&self) {}

    async fn probe(&self, epoch: Epoch, named: Option<&L1Name>, deadline: Instant) -> Result<Probe, CacheError> {
        let (inner, named) = (self.inner.clone(), named.cloned());
        let work = async move {
            Ok(match inner.probe(epoch, named.as_ref(), deadline).await? {
                Probe::Another { found, goes_on } => Probe::Another { found: self::shared(found), goes_on },
                found => found,
            })
        };
        self.faults.call(Op::Probe, deadline, work, |_| Err(CacheError::Timeout)).await
    }

    fn name(&self) -> Option<L1Name> {
        self.inner.name().map(shared)
    }

    fn info(&self) -> CacheInfo {
        // Several servers use it.
        CacheInfo { shared: true, ..self.inner.info() }
    }
}

/// Several servers use it.
pub fn shared(name: L1Name) -> L1Name {
    L1Name { shared: true, ..name }
}
