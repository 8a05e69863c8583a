//! A few multiplexed connections to one server, which all calls share.
//!
//! They are taken out of the pool for good, because the pool would check a connection at every use
//! with a PING, a round trip. None reconnects by itself. If one breaks, all are closed, and every
//! call fails until a probe has opened and verified new ones. So no call reads from a Redis that
//! came back with old data.
//!
//! WAIT stops its whole connection until replicas answer. So pipelines with WAIT have connections
//! of their own. So do reads, which use another kind of connection (`reader`).

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use deadpool_redis::{
    Connection, Manager, Pool, PoolError,
    redis::{
        AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisResult, Value,
        aio::MultiplexedConnection,
    },
};
use tokio::time::{Instant, sleep};

use super::{
    cause,
    config::InvalidRedisConfig,
    reader::{Late, Reader, Reply},
    refusal,
};
use crate::{
    cache::CacheError,
    metrics::PoolReading,
    trace::{self, Asked, Failed, Place},
};

/// How the error of a wrong password begins.
const NO_LOGIN: &str = "authentication failed";
/// After this long without a connection the cause is looked for.
const BEFORE_ASKING: Duration = Duration::from_millis(250);

pub(super) struct Connections {
    pool: Pool,
    server: ConnectionInfo,
    /// The number of connections of each kind.
    wanted: usize,
    kinds: Kinds,
    /// For traces.
    place: Place,
    verified: ArcSwapOption<Shared>,
    /// Connections to a server that may not be used, kept for the next probe.
    aside: ArcSwapOption<Shared>,
}

/// The kinds of connections beside those of the swift lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds {
    /// A lane for pipelines that wait for replicas.
    pub(super) waiting: bool,
    /// Connections for MGET.
    pub(super) readers: bool,
}

/// Connections to one server, used in turn.
pub(super) struct Shared {
    all: Box<[MultiplexedConnection]>,
    waiting: Box<[MultiplexedConnection]>,
    /// Empty if reads use the library too.
    readers: Box<[Reader]>,
    turn: AtomicUsize,
    /// With one counter for both, alternating calls would always get the same reader.
    readers_turn: AtomicUsize,
}

/// The connections that a pipeline uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// They never wait for replicas.
    Swift,
    /// They run pipelines that end with WAIT.
    Waiting,
}

/// How a pipeline is named in traces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) command: &'static str,
    /// The script that it calls, if any.
    pub(super) procedure: Option<&'static str>,
    pub(super) items: usize,
}

impl Connections {
    /// Does not connect.
    pub(super) fn new(server: ConnectionInfo, wanted: usize, kinds: Kinds) -> Result<Self, InvalidRedisConfig> {
        // The callers have deadlines, so the library needs none.
        let library = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let address = server.addr().to_string();
        let manager = Manager::new_with_config(server.clone(), library)
            .map_err(|e| InvalidRedisConfig(format!("Redis at {address}: {}", e.category())))?;
        let pool = Pool::builder(manager).max_size(wanted).build();
        let pool = pool.map_err(|e| InvalidRedisConfig(e.to_string()))?;
        let place = place(&server);
        Ok(Self { pool, server, wanted, kinds, place, verified: ArcSwapOption::empty(), aside: ArcSwapOption::empty() })
    }

    /// Sends a pipeline. One reply for each command; a reply may be an error of the server.
    pub(super) async fn send(
        &self,
        pipeline: Pipeline,
        lane: Lane,
        sent: Sent,
        deadline: Instant,
    ) -> Result<Vec<Value>, CacheError> {
        let shared = self.in_use()?;
        let asked = || Asked {
            place: &self.place,
            operation: if sent.items > 1 { format!("PIPELINE {}", sent.command).into() } else { sent.command.into() },
            collection: None,
            procedure: sent.procedure,
            operations: sent.items,
        };
        let failed = |replies: &Result<Vec<Value>, CacheError>| match replies {
            Err(e) => Some(failed(e)),
            Ok(replies) => replies.iter().find_map(|reply| match reply {
                Value::ServerError(e) => Some(Failed::with_code(e.code())),
                _ => None,
            }),
        };
        trace::backend(asked, failed, self.exchanged(&shared, deadline, shared.send(pipeline, lane))).await
    }

    /// Reads keys by one MGET.
    pub(super) async fn mget<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
        deadline: Instant,
    ) -> Result<Reply, CacheError> {
        let shared = self.in_use()?;
        let asked =
            || Asked { place: &self.place, operation: "MGET".into(), collection: None, procedure: None, operations: 1 };
        if let Some(reader) = shared.reader() {
            let failed = |reply: &Result<Option<Reply>, CacheError>| match reply {
                Err(e) => Some(failed(e)),
                Ok(None) => Some(failed(&CacheError::Timeout)),
                Ok(Some(Reply::Error(why))) => Some(Failed::with_code(why.split(' ').next().unwrap_or_default())),
                Ok(Some(_)) => None,
            };
            let exchange = async {
                match reader.ask_by(deadline, b"MGET", keys).await {
                    Ok(Ok(reply)) => Ok(reply),
                    Ok(Err(e)) => Err(self.lost(&shared, &e)),
                    Err(Late::Silent) => Err(CacheError::Timeout),
                    Err(Late::Behind) => Err(CacheError::Behind),
                }
            };
            let reply = trace::backend(asked, failed, exchange).await?;
            // The server does not reply, which the caller would have found out.
            return reply.ok_or(CacheError::Timeout);
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("MGET");
        keys.for_each(|key| _ = pipeline.arg(key));
        let sent = Sent { command: "MGET", procedure: None, items: 1 };
        Ok(mget_reply(self.send(pipeline, Lane::Swift, sent, deadline).await?))
    }

    /// Pool figures. All calls share the connections, so what waits does so for a reply.
    pub(super) fn pool(&self) -> PoolReading {
        let Kinds { waiting, readers } = self.kinds;
        let max = self.wanted * (1 + usize::from(waiting) + usize::from(readers));
        let Some(shared) = self.verified() else { return PoolReading { max, ..PoolReading::default() } };
        let used = shared.all.len() + shared.waiting.len() + shared.readers.len();
        PoolReading { max, used, pending: shared.readers.iter().map(Reader::waiting).sum(), waits: None }
    }

    fn in_use(&self) -> Result<Arc<Shared>, CacheError> {
        let lost = || CacheError::Unavailable("there is no verified connection; the next probe makes one".into());
        self.verified().ok_or_else(lost)
    }

    async fn exchanged<T, E: fmt::Display>(
        &self,
        shared: &Arc<Shared>,
        deadline: Instant,
        exchange: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CacheError> {
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(e)) => Err(self.lost(shared, &e)),
            Err(_) => Err(CacheError::Timeout),
        }
    }

    /// Closes all connections after an error, because replies can no longer be matched to commands.
    fn lost(&self, shared: &Arc<Shared>, error: &impl fmt::Display) -> CacheError {
        self.verified.compare_and_swap(shared, None);
        unavailable(error)
    }

    /// Whether MGET uses our own connections, which drop what exceeds the limit of a batch.
    pub(super) fn have_readers(&self) -> bool {
        self.kinds.readers && matches!(self.server.addr(), ConnectionAddr::Tcp(..))
    }

    /// Opens new connections, not yet for use. The error has the cause, if it can be found.
    pub(super) async fn connect(&self) -> Result<Shared, CacheError> {
        let waited_for = async {
            sleep(BEFORE_ASKING).await;
            match cause::of_failure(&self.server).await {
                Some(why) => why,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            connected = self.connected() => match connected {
                Err(CacheError::Unavailable(text)) if !text.starts_with(NO_LOGIN) => {
                    Err(CacheError::Unavailable(cause::of_failure(&self.server).await.map_or(text, Into::into)))
                }
                connected => connected,
            },
            why = waited_for => Err(CacheError::Unavailable(why.into())),
        }
    }

    async fn connected(&self) -> Result<Shared, CacheError> {
        Ok(Shared {
            all: self.lane(self.wanted).await?,
            waiting: self.lane(if self.kinds.waiting { self.wanted } else { 0 }).await?,
            readers: self.readers().await.map_err(|e| unavailable(&e))?,
            turn: AtomicUsize::new(0),
            readers_turn: AtomicUsize::new(0),
        })
    }

    /// If a connection broke before any reply, the error with its cause, where that can be found.
    pub(super) async fn explained(&self, error: CacheError) -> CacheError {
        match &error {
            CacheError::Unavailable(why) if is_broken(why) => {
                cause::of_failure(&self.server).await.map_or(error, |why| CacheError::Unavailable(why.into()))
            }
            _ => error,
        }
    }

    async fn lane(&self, wanted: usize) -> Result<Box<[MultiplexedConnection]>, CacheError> {
        let mut all = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            let connection = self.pool.get().await.map_err(|e| not_connected(&e))?;
            all.push(Connection::take(connection));
        }
        Ok(all.into())
    }

    async fn readers(&self) -> io::Result<Box<[Reader]>> {
        let mut all = Vec::with_capacity(self.wanted);
        for _ in 0..if self.kinds.readers { self.wanted } else { 0 } {
            all.extend(Reader::connect(&self.server).await?);
        }
        Ok(all.into())
    }

    /// The connections in use.
    pub(super) fn verified(&self) -> Option<Arc<Shared>> {
        self.verified.load_full()
    }

    /// The connections in use, or those that were set aside.
    pub(super) fn known(&self) -> Option<Arc<Shared>> {
        self.verified().or_else(|| self.aside.load_full())
    }

    /// Puts verified connections to use.
    pub(super) fn trust(&self, shared: Arc<Shared>) {
        self.verified.store(Some(shared));
        self.aside.store(None);
    }

    /// Takes all connections out of use, and keeps these for the next probe.
    pub(super) fn set_aside(&self, shared: Option<Arc<Shared>>) {
        self.verified.store(None);
        self.aside.store(shared);
    }

    /// Closes all connections.
    pub(super) fn lose(&self) {
        self.set_aside(None);
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

    fn reader(&self) -> Option<&Reader> {
        // In turn, because load comes in bursts.
        let turn = self.readers_turn.fetch_add(1, Ordering::Relaxed);
        self.readers.get(turn % self.readers.len().max(1))
    }

    /// Fails unless every connection answers.
    pub(super) async fn ping(&self) -> Result<(), CacheError> {
        for connection in self.all.iter().chain(&self.waiting) {
            let mut ping = Pipeline::new();
            ping.cmd("PING");
            exchange(connection, ping).await.map_err(|e| unavailable(&e))?;
        }
        for reader in &self.readers {
            reader.ask(b"PING", [].into_iter()).await.map_err(|e| unavailable(&e))?.ok_or(CacheError::Timeout)?;
        }
        Ok(())
    }

    /// MGET as reads send it, over connections that are not yet in use.
    pub(super) async fn mget_once(&self, keys: &[&[u8]]) -> Result<Reply, CacheError> {
        if let Some(reader) = self.reader() {
            let reply = reader.ask(b"MGET", keys.iter().copied()).await.map_err(|e| unavailable(&e))?;
            return reply.ok_or(CacheError::Timeout);
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("MGET");
        keys.iter().for_each(|key| _ = pipeline.arg(*key));
        let replies = self.send(pipeline, Lane::Swift).await.map_err(|e| unavailable(&e))?;
        Ok(mget_reply(replies))
    }

    /// Whether every connection leads to this run of a server (as in INFO). Several servers may
    /// share one address.
    pub(super) async fn are_all_of(&self, run: &str) -> Result<bool, CacheError> {
        for connection in self.all.iter().chain(&self.waiting) {
            let mut info = Pipeline::new();
            info.cmd("INFO").arg("server");
            let reply = exchange(connection, info).await.map_err(|e| unavailable(&e))?.pop();
            if !reply.and_then(string).is_some_and(|info| is_of_run(&info, run)) {
                return Ok(false);
            }
        }
        for reader in &self.readers {
            match reader.ask(b"INFO", [&b"server"[..]].into_iter()).await.map_err(|e| unavailable(&e))? {
                Some(Reply::Bulk(Some(info))) if is_of_run(&info, run) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether every connection finds this value under a key.
    pub(super) async fn all_find(&self, key: &str, value: &str) -> Result<bool, CacheError> {
        let is_it = |found: Option<Bytes>| found.is_some_and(|found| found == value.as_bytes());
        for connection in self.all.iter().chain(&self.waiting) {
            let mut get = Pipeline::new();
            get.cmd("GET").arg(key);
            let reply = exchange(connection, get).await.map_err(|e| unavailable(&e))?.pop();
            if let Some(Value::ServerError(e)) = &reply {
                return Err(CacheError::Refused(refusal::shown(&e.to_string()).into()));
            }
            if !is_it(reply.and_then(string)) {
                return Ok(false);
            }
        }
        for reader in &self.readers {
            // A reader may use MGET, and the user may not have the right to GET.
            match reader.ask(b"MGET", [key.as_bytes()].into_iter()).await.map_err(|e| unavailable(&e))? {
                Some(Reply::Array(values)) if is_it(values.first().cloned().flatten()) => {}
                Some(Reply::Error(why)) => return Err(CacheError::Refused(why.into())),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

async fn exchange(connection: &MultiplexedConnection, mut pipeline: Pipeline) -> RedisResult<Vec<Value>> {
    match pipeline.ignore_errors().query_async(&mut connection.clone()).await? {
        Value::Array(replies) => Ok(replies),
        other => Ok(vec![other]),
    }
}

/// Whether an error says only that the connection is gone.
fn is_broken(why: &str) -> bool {
    let why = why.to_ascii_lowercase();
    ["broken pipe", "reset", "terminated", "closed", "end of file", "dropped"].iter().any(|word| why.contains(word))
}

fn is_of_run(info: &[u8], run: &str) -> bool {
    String::from_utf8_lossy(info).lines().any(|line| line.strip_prefix("run_id:") == Some(run))
}

/// The reply to MGET.
fn mget_reply(mut replies: Vec<Value>) -> Reply {
    match replies.pop() {
        Some(Value::Array(values)) => Reply::Array(values.into_iter().map(string).collect()),
        Some(Value::ServerError(e)) => Reply::Error(refusal::text_of(&e)),
        _ => Reply::Line("not a list of values".to_owned()),
    }
}

fn string(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::VerbatimString { text, .. } => Some(text.into()),
        _ => None,
    }
}

/// Why there is no new connection. A wrong password gets its own text, as somebody must correct it.
fn not_connected(error: &PoolError) -> CacheError {
    match error {
        PoolError::Backend(e) if e.kind() == ErrorKind::AuthenticationFailed => CacheError::Unavailable(
            format!(
                "{NO_LOGIN}: Redis rejects the user name and password (redis.url, or redis.username and \
                 redis.password)"
            )
            .into(),
        ),
        PoolError::Backend(e) => unavailable(e),
        other => unavailable(other),
    }
}

fn place(server: &ConnectionInfo) -> Place {
    let (address, port) = match server.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), Some(*port)),
        other => (other.to_string(), None),
    };
    Place { system: "redis", namespace: server.redis_settings().db().to_string(), address, port }
}

/// The kind of error for a trace, which must not contain text of Redis.
fn failed(error: &CacheError) -> Failed {
    Failed::because(match error {
        CacheError::Timeout => "timeout",
        CacheError::Unavailable(_) => "unavailable",
        CacheError::Refused(_) => "refused",
        CacheError::Unsuitable(_) => "unsuitable",
        CacheError::LeftOut => "left_out",
        CacheError::Behind => "behind",
    })
}

pub(super) fn unavailable(e: &impl fmt::Display) -> CacheError {
    CacheError::Unavailable(refusal::without_values(&e.to_string()).into())
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("verified", &self.verified().is_some()).finish_non_exhaustive()
    }
}
