//! The accept loop and its connections. Every bound of a connection that tonic or hyper leave open
//! is set here.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Layered,
    http2::{Http2, LOOK},
    opening::{self, Opened, Speaks},
    refusals::{self, NotGrpc, Refusals},
    tls::{self, Tls},
};
use crate::{
    api::{ByteBudget, ConnectionBytes},
    metrics::Counter,
    tiered::seldom::Seldom,
};

/// A client that connects again from time to time finds new replicas; jitter spreads this over
/// time.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// For the TLS handshake, and then again until the client has begun HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    service: Layered,
    bounds: Arc<Bounds>,
    open: TaskTracker,
    go_away: CancellationToken,
    abort: CancellationToken,
}

pub(super) struct Bounds {
    /// None: plaintext.
    pub(super) tls: Option<Tls>,
    /// Connections at once; further ones are closed.
    pub(super) max_connections: usize,
    /// The open connections, and the number of those that were closed as too many; for the metrics.
    pub(super) open: TaskTracker,
    pub(super) refused: Arc<Counter>,
    pub(super) not_grpc: Arc<Refusals>,
    pub(super) bytes: Arc<ByteBudget>,
    /// Limits of warnings that clients could fill the log with.
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
                        tracing::warn!(%client, others, max, "closed a connection beyond limits.max_connections");
                    }
                }
                Err(error) => {
                    // No file descriptor is free, or the connection was gone at once.
                    if let Some(others) = self.bounds.failures.now() {
                        tracing::warn!(%error, others, "a connection cannot be accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Sends GOAWAY to every client and waits for their calls. After `patience` the rest is cut
    /// off.
    pub(super) async fn close(&self, patience: Duration) {
        self.go_away.cancel();
        self.open.close();
        if tokio::time::timeout(patience, self.open.wait()).await.is_err() {
            tracing::warn!(connections = self.open.len(), "calls did not finish within drain.timeout and are cut off");
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
        self.service.inner_mut().inner_mut().inner_mut().set_peer(stream.peer_addr().ok());
        match &self.bounds.tls {
            None => {
                let opened = self.in_time(opening::open(stream)).await?;
                self.serve_opened(opened).await
            }
            Some(tls) => {
                if !self.in_time(opening::begins_with_tls(&stream)).await? {
                    return self.refuse(self.in_time(opening::open(stream)).await?, NotGrpc::Plaintext).await;
                }
                let stream = self.in_time(tls.accept(stream)).await?;
                let asks_for_http2 = tls::asks_for_http2(&stream);
                let opened = self.in_time(opening::open(stream)).await?;
                if !asks_for_http2 {
                    return self.refuse(opened, NotGrpc::NoAlpn).await;
                }
                self.serve_opened(opened).await
            }
        }
    }

    async fn serve_opened<S>(self, (speaks, stream): (Speaks, Opened<S>)) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let why = match speaks {
            Speaks::Http2 => return self.serve_http2(stream).await,
            Speaks::Http1 => NotGrpc::Http1,
            Speaks::Tls => NotGrpc::Tls,
            Speaks::SomethingElse => NotGrpc::Unknown,
        };
        self.refuse((speaks, stream), why).await
    }

    async fn refuse<S>(&self, (speaks, stream): (Speaks, Opened<S>), why: NotGrpc) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.bounds.not_grpc.count(why);
        refusals::refuse(stream, speaks, why).await
    }

    /// Waits for a step of the handshake, for which the client must send something.
    async fn in_time<T>(&self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, step) => done.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not finish the handshake in time"))
            }),
            () = self.go_away.cancelled() => {
                let why = "the client had not finished the handshake when the server stopped accepting calls";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
        }
    }

    async fn serve_http2<S>(mut self, stream: Opened<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let bytes = Arc::new(ConnectionBytes::new(self.bounds.bytes.clone()));
        self.service.set_connection(bytes.clone());
        self.service.inner_mut().inner_mut().set_connection(bytes.clone());
        let mut connection = self.in_time(Http2::greet(stream, self.service.clone(), bytes.clone())).await?;
        let end = Instant::now() + MAX_AGE.mul_f64(rand::rng().random_range(0.9..=1.1));
        let mut stall = Stall { bounds: self.bounds.clone(), bytes, before: None };
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        loop {
            tokio::select! {
                ended = connection.serve() => return ended,
                () = self.go_away.cancelled() => break,
                _ = looks.tick() => {
                    stall.look()?;
                    connection.look()?;
                    if Instant::now() >= end {
                        break;
                    }
                }
            }
        }
        connection.go_away();
        loop {
            tokio::select! {
                ended = connection.serve() => return ended,
                () = self.abort.cancelled() => return Ok(()),
                _ = looks.tick() => {
                    stall.look()?;
                    connection.look()?;
                }
            }
        }
    }
}

/// Finds clients that do not read while bytes in flight are scarce. While there are enough bytes, a
/// client may take its time.
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
                    "a client is disconnected: it read nothing for 10 s while limits.max_bytes_in_flight was short"
                );
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
        }
        self.before = now;
        Ok(())
    }
}
