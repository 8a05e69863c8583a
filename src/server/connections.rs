//! The accept loop and the connections it made. Every bound that tonic or hyper leave open at the edge is set here.

use std::{io, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rand::RngExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Layered;

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

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    service: Layered,
    open: TaskTracker,
    go_away: CancellationToken,
    abort: CancellationToken,
}

impl Connections {
    pub(super) fn new(service: Layered) -> Self {
        let (go_away, abort) = (CancellationToken::new(), CancellationToken::new());
        Self { service, open: TaskTracker::new(), go_away, abort }
    }

    /// Accepts until `stop`.
    pub(super) async fn accept(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.open.spawn(self.clone().serve(stream));
                }
                Err(error) => {
                    // Out of file descriptors, or a connection that was gone at once.
                    tracing::warn!(%error, "cannot accept a connection");
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
        if let Err(error) = self.serve_http2(stream).await {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn serve_http2(self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
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
        let service = TowerToHyperService::new(self.service);
        let connection = settings.serve_connection(TokioIo::new(stream), service);
        let age = MAX_AGE.mul_f64(rand::rng().random_range(0.9..=1.1));
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = self.go_away.cancelled() => connection.as_mut().graceful_shutdown(),
            () = tokio::time::sleep(age) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection => ended.map_err(io::Error::other),
            () = self.abort.cancelled() => Ok(()),
        }
    }
}
