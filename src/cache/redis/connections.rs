//! A few multiplexed connections to one server, that all calls share.
//!
//! They are taken from the pool for good, because the pool would check each at every use with a PING, a round trip. None
//! reconnects by itself: once one breaks all of them are let go, and every call fails until a probe has made and verified
//! new ones. So nobody reads from a Redis that came back with old data.
//!
//! WAIT stops its whole connection until replicas answer. So what waits for replicas has connections of its own.

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
    redis::{
        AsyncConnectionConfig, ConnectionInfo, Pipeline, RedisError, RedisResult, Value, aio::MultiplexedConnection,
    },
};
use tokio::time::Instant;

use super::config::InvalidRedisConfig;
use crate::cache::CacheError;

pub(super) struct Connections {
    pool: Pool,
    /// How many for each lane.
    wanted: usize,
    waiting: bool,
    verified: ArcSwapOption<Shared>,
}

/// Connections to one server, in turn.
pub(super) struct Shared {
    all: Box<[MultiplexedConnection]>,
    waiting: Box<[MultiplexedConnection]>,
    turn: AtomicUsize,
}

/// Which connections a pipeline takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Those that never stop.
    Swift,
    /// Those for pipelines that end with WAIT.
    Waiting,
}

impl Connections {
    /// Does not connect. `waiting`: there is a lane for pipelines that wait for replicas.
    pub(super) fn new(server: ConnectionInfo, wanted: usize, waiting: bool) -> Result<Self, InvalidRedisConfig> {
        // Deadlines are the callers', so the library has none of its own.
        let library = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let address = server.addr().to_string();
        let manager = Manager::new_with_config(server, library)
            .map_err(|e| InvalidRedisConfig(format!("Redis at {address}: {}", e.category())))?;
        let pool = Pool::builder(manager).max_size(wanted).build();
        let pool = pool.map_err(|e| InvalidRedisConfig(e.to_string()))?;
        Ok(Self { pool, wanted, waiting, verified: ArcSwapOption::empty() })
    }

    /// Sends a pipeline; one reply a command, errors of the server among them.
    pub(super) async fn send(
        &self,
        pipeline: Pipeline,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Vec<Value>, CacheError> {
        let Some(shared) = self.verified() else {
            return Err(CacheError::Unavailable("not connected, or not verified since the connection was lost".into()));
        };
        match tokio::time::timeout_at(deadline, shared.send(pipeline, lane)).await {
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
        Ok(Shared {
            all: self.lane(self.wanted).await?,
            waiting: self.lane(if self.waiting { self.wanted } else { 0 }).await?,
            turn: AtomicUsize::new(0),
        })
    }

    async fn lane(&self, wanted: usize) -> Result<Box<[MultiplexedConnection]>, CacheError> {
        let mut all = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            let connection = self.pool.get().await.map_err(|e| CacheError::Unavailable(e.to_string().into()))?;
            all.push(Connection::take(connection));
        }
        Ok(all.into())
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
    /// Sends a pipeline over the next connection of a lane.
    pub(super) async fn send(&self, pipeline: Pipeline, lane: Lane) -> RedisResult<Vec<Value>> {
        let lane = match lane {
            Lane::Waiting if !self.waiting.is_empty() => &self.waiting,
            _ => &self.all,
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        exchange(&lane[turn % lane.len()], pipeline).await
    }

    /// Whether every one of them answers.
    pub(super) async fn ping(&self) -> RedisResult<()> {
        for connection in self.all.iter().chain(&self.waiting) {
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
