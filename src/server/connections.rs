//! The accept loop and the connections it made. Every bound that tonic or hyper leave open at the edge is set here.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rand::RngExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Layered,
    opening::{self, Opened, Speaks},
    tls::Tls,
};
use crate::{
    api::{ByteBudget, ConnectionBytes},
    metrics::Counter,
    tiered::seldom::Seldom,
};

const MAX_CONCURRENT_STREAMS: u32 = 256;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
const MAX_LOCAL_RESETS: usize = 1024;
/// Calls that their client took back before a busy server came to them. By default 20 end the connection, which a client
/// whose deadlines pass at the same moment would meet; no client can take back more than it may have at once.
const MAX_TAKEN_BACK: usize = MAX_CONCURRENT_STREAMS as usize;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches of rows are large: the HTTP/2 default of 64 KiB would make a response wait for its client.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Clients that connect again now and then find new replicas; jitter keeps them from doing so together.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// For the TLS handshake, and again until the client has said that it speaks HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is looked at: for its age, and for whether its client reads.
const LOOK: Duration = Duration::from_secs(10);

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    service: Layered,
    bounds: Arc<Bounds>,
    open: TaskTracker,
    go_away: CancellationToken,
    abort: CancellationToken,
}

/// What a listener's connections share.
pub(super) struct Bounds {
    /// None: plaintext.
    pub(super) tls: Option<Tls>,
    /// Connections at once; more are closed.
    pub(super) max_connections: usize,
    /// Those that are there now, and how many were closed as too many; for the metrics.
    pub(super) open: TaskTracker,
    pub(super) refused: Arc<Counter>,
    /// What all of them receive and send.
    pub(super) bytes: Arc<ByteBudget>,
    /// For what many clients could fill the log with.
    pub(super) refusals: Seldom,
    pub(super) failures: Seldom,
    pub(super) stalls: Seldom,
}

impl Connections {
    pub(super) fn new(service: Layered, bounds: Bounds) -> Self {
        let (go_away, abort) = (CancellationToken::new(), CancellationToken::new());
        Self { service, open: bounds.open.clone(), bounds: Arc::new(bounds), go_away, abort }
    }

    /// Accepts until `stop`.
    pub(super) async fn accept(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if self.open.len() < self.bounds.max_connections => {
                    self.open.spawn(self.clone().serve(stream));
                }
                Ok((stream, client)) => {
                    self.bounds.refused.add(1);
                    drop(stream);
                    if let Some(others) = self.bounds.refusals.now() {
                        let max = self.bounds.max_connections;
                        tracing::warn!(%client, others, max, "a connection beyond limits.max_connections was closed");
                    }
                }
                Err(error) => {
                    // Out of file descriptors, or a connection that was gone at once.
                    if let Some(others) = self.bounds.failures.now() {
                        tracing::warn!(%error, others, "cannot accept a connection");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Tells every client to go away and waits for their calls; after `patience` they are cut off.
    pub(super) async fn close(&self, patience: Duration) {
        self.go_away.cancel();
        self.open.close();
        if tokio::time::timeout(patience, self.open.wait()).await.is_err() {
            tracing::warn!(connections = self.open.len(), "calls did not finish in time and are cut off");
            self.abort.cancel();
            self.open.wait().await;
        }
    }

    async fn serve(self, stream: TcpStream) {
        if let Err(error) = self.greet(stream).await {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn greet(mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        self.service.inner_mut().inner_mut().set_peer(stream.peer_addr().ok());
        match &self.bounds.tls {
            None => {
                let opened = self.in_time(opening::open(stream)).await?;
                self.serve_http2(opened).await
            }
            Some(tls) => {
                let stream = self.in_time(tls.accept(stream)).await?;
                let opened = self.in_time(opening::open(stream)).await?;
                self.serve_http2(opened).await
            }
        }
    }

    /// Waits for a client that must say something.
    async fn in_time<T>(&self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, step) => done.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not greet in time"))
            }),
            () = self.go_away.cancelled() => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client had not greeted when the drain ended"))
            }
        }
    }

    async fn serve_http2<S>(mut self, (speaks, stream): (Speaks, Opened<S>)) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if speaks != Speaks::Http2 {
            let what = "the client speaks no HTTP/2 with prior knowledge: it is TLS to a plaintext port, or HTTP/1";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let bytes = Arc::new(ConnectionBytes::new(self.bounds.bytes.clone()));
        self.service.inner_mut().set_connection(bytes.clone());
        let service = TowerToHyperService::new(self.service);
        let connection = settings.serve_connection(TokioIo::new(stream), service);
        let end = Instant::now() + MAX_AGE.mul_f64(rand::rng().random_range(0.9..=1.1));
        let mut stall = Stall { bounds: self.bounds.clone(), bytes, before: None };
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        tokio::pin!(connection);
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(io::Error::other),
                () = self.go_away.cancelled() => break,
                _ = looks.tick() => {
                    stall.look()?;
                    if Instant::now() >= end {
                        break;
                    }
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(io::Error::other),
                () = self.abort.cancelled() => return Ok(()),
                _ = looks.tick() => stall.look()?,
            }
        }
    }
}

/// Finds clients that do not read while bytes in flight are scarce. As long as there are enough, a client may take its
/// time.
struct Stall {
    bounds: Arc<Bounds>,
    bytes: Arc<ConnectionBytes>,
    before: Option<usize>,
}

impl Stall {
    fn look(&mut self) -> io::Result<()> {
        let now = self.bytes.keeps_scarce_bytes();
        if now.is_some() && now == self.before {
            if let Some(others) = self.bounds.stalls.now() {
                tracing::warn!(
                    others,
                    "a client that read nothing for 10 s while limits.max_bytes_in_flight was short is cut off"
                );
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
        }
        self.before = now;
        Ok(())
    }
}
