//! A few multiplexed connections that all calls share.
//!
//! They are taken from the pool for good, because the pool would check each at every use with a PING, a round trip. None
//! reconnects by itself: once one breaks all of them are let go, and every call fails until a probe has made and verified
//! new ones. So nobody reads from a Redis that came back with old data.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use deadpool_redis::{
    Connection, Manager, Pool,
    redis::{AsyncConnectionConfig, Pipeline, RedisError, RedisResult, Value, aio::MultiplexedConnection},
};
use tokio::time::Instant;

use super::config::{InvalidRedisConfig, RedisConfig};
use crate::cache::CacheError;

pub(super) struct Connections {
    pool: Pool,
    wanted: usize,
    verified: ArcSwapOption<Shared>,
}

/// Connections to one server, in turn.
pub(super) struct Shared {
    all: Box<[MultiplexedConnection]>,
    turn: AtomicUsize,
}

impl Connections {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, InvalidRedisConfig> {
        // Deadlines are the callers', so the library has none of its own.
        let library = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let manager = Manager::new_with_config(config.server.clone(), library)
            .map_err(|e| InvalidRedisConfig(format!("Redis at {}: {}", config.address(), e.category())))?;
        let wanted = config.connections.get();
        let pool = Pool::builder(manager).max_size(wanted).build();
        let pool = pool.map_err(|e| InvalidRedisConfig(e.to_string()))?;
        Ok(Self { pool, wanted, verified: ArcSwapOption::empty() })
    }

    /// Sends a pipeline; one reply a command, errors of the server among them.
    pub(super) async fn send(&self, pipeline: Pipeline, deadline: Instant) -> Result<Vec<Value>, CacheError> {
        let Some(shared) = self.verified() else {
            return Err(CacheError::Unavailable("not connected, or not verified since the connection was lost".into()));
        };
        match tokio::time::timeout_at(deadline, shared.send(pipeline)).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(e)) => {
                // Whatever it was, replies can no longer be told apart.
                self.verified.compare_and_swap(&shared, None);
                Err(unavailable(&e))
            }
            Err(_) => Err(CacheError::Timeout),
        }
    }

    /// New connections, not yet for use.
    pub(super) async fn connect(&self) -> Result<Shared, CacheError> {
        let mut all = Vec::with_capacity(self.wanted);
        for _ in 0..self.wanted {
            let connection = self.pool.get().await.map_err(|e| CacheError::Unavailable(e.to_string().into()))?;
            all.push(Connection::take(connection));
        }
        Ok(Shared { all: all.into(), turn: AtomicUsize::new(0) })
    }

    /// Those in use.
    pub(super) fn verified(&self) -> Option<Arc<Shared>> {
        self.verified.load_full()
    }

    /// Puts verified ones to use.
    pub(super) fn trust(&self, shared: Arc<Shared>) {
        self.verified.store(Some(shared));
    }

    /// Lets all of them go.
    pub(super) fn lose(&self) {
        self.verified.store(None);
    }
}

impl Shared {
    /// Sends a pipeline over the next connection.
    pub(super) async fn send(&self, pipeline: Pipeline) -> RedisResult<Vec<Value>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        exchange(&self.all[turn % self.all.len()], pipeline).await
    }

    /// Whether every one of them answers.
    pub(super) async fn ping(&self) -> RedisResult<()> {
        for connection in &self.all {
            let mut ping = Pipeline::new();
            ping.cmd("PING");
            exchange(connection, ping).await?;
        }
        Ok(())
    }
}

async fn exchange(connection: &MultiplexedConnection, mut pipeline: Pipeline) -> RedisResult<Vec<Value>> {
    match pipeline.ignore_errors().query_async(&mut connection.clone()).await? {
        Value::Array(replies) => Ok(replies),
        other => Ok(vec![other]),
    }
}

pub(super) fn unavailable(e: &RedisError) -> CacheError {
    CacheError::Unavailable(e.to_string().into())
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("verified", &self.verified().is_some()).finish_non_exhaustive()
    }
}
