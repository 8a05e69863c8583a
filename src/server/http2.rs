//! An HTTP/2 connection: requests come in, and each is answered in a task of its own.
//!
//! This uses h2 directly and not through hyper, because a stream of many small messages needs two
//! things that hyper does not offer. First, h2 ends a connection on which too many small frames
//! wait unread, because they take far more memory than their bytes. Second, h2 returns the window
//! of a stream as soon as its bytes are taken. So this connection's own task takes the frames of
//! streams from h2 at once (`incoming`), after every few bytes that were read (`sips`), and returns
//! their window when their service reads them.

mod answer;
mod incoming;
mod sips;

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use h2::server::{Connection, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt as _;

use self::{
    incoming::{Inboxes, Incoming},
    sips::{Read, Sips},
};
use super::{Layered, bytes::Counted, streams};
use crate::api::ConnectionBytes;

pub(super) const MAX_CONCURRENT_STREAMS: u32 = 256;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
const MAX_LOCAL_RESETS: usize = 1024;
/// Calls that their client cancelled before a busy server accepted them. By default 20 of them end
/// the connection, which would affect a client whose deadlines pass at the same moment. No client
/// can cancel more than it may have at once.
const MAX_TAKEN_BACK: usize = MAX_CONCURRENT_STREAMS as usize;
/// Batches are large: with the HTTP/2 default of 64 KiB a request would wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes that a connection may hold unread and uncounted.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Memory for small frames that wait unread, at 256 bytes each. This is the default of h2.
const SMALL_FRAMES: usize = CONNECTION_WINDOW as usize / 2;
/// The most bytes of an answer that are not yet written before it waits for the connection.
const SEND_BUFFER: usize = 400 << 10;
/// How often a connection is checked.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Checks in a row at which the client has sent nothing, not even an answer to a ping: after 3 it
/// is pinged, after 4 it counts as dead.
const PING_AFTER: u32 = 3;
const DEAD_AFTER: u32 = 4;

/// A connection; it is served while `serve` is polled.
pub(super) struct Http2<S> {
    // The first field, so that it is dropped before what waits for it.
    connection: Connection<Sips<S>, Counted>,
    inboxes: Inboxes,
    pings: Option<h2::PingPong>,
    read: Arc<Read>,
    /// The bytes read at the last check, and the number of checks since they changed.
    read_before: usize,
    silent_for: u32,
    service: Layered,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Http2<S> {
    /// Does the HTTP/2 handshake with a client whose preface is still to be read.
    pub(super) async fn greet(stream: S, service: Layered, bytes: Arc<ConnectionBytes>) -> io::Result<Self> {
        let read = Arc::<Read>::default();
        let mut settings = h2::server::Builder::new();
        settings
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
            .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(SMALL_FRAMES)
            .max_send_buffer_size(SEND_BUFFER);
        let greeting = settings.handshake(Sips::new(stream, read.clone()));
        let mut connection = greeting.await.map_err(io::Error::other)?;
        let (pings, inboxes) = (connection.ping_pong(), Inboxes::new(bytes));
        Ok(Self { connection, inboxes, pings, read, read_before: 0, silent_for: 0, service })
    }

    pub(super) async fn serve(&mut self) -> io::Result<()> {
        while let Some(accepted) = poll_fn(|cx| self.poll_accept(cx)).await {
            let (request, respond) = accepted.map_err(io::Error::other)?;
            tokio::spawn(answer::answer(respond, self.service.clone().oneshot(request)));
        }
        Ok(())
    }

    /// Sends GOAWAY. [`Self::serve`] ends with the last stream.
    pub(super) fn go_away(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Checks whether the client is still there; called every [`LOOK`].
    pub(super) fn look(&mut self) -> io::Result<()> {
        let read = self.read.bytes();
        self.silent_for = if read == self.read_before { self.silent_for + 1 } else { 0 };
        self.read_before = read;
        match (self.silent_for, &mut self.pings) {
            (DEAD_AFTER.., _) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not answer a ping")),
            (PING_AFTER, Some(pings)) => {
                // The answer to the last ping must be taken first. If this fails, the client still
                // has to answer.
                let _ = pings.poll_pong(&mut Context::from_waker(std::task::Waker::noop()));
                let _ = pings.send_ping(h2::Ping::opaque());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        // Takes what was read before the last request was accepted, and below what is read now.
        self.take_what_came();
        let accepted = self.connection.poll_accept(cx);
        self.take_what_came();
        accepted.map(|accepted| {
            accepted.map(|accepted| accepted.map(|(request, respond)| (self.with_body(request), respond)))
        })
    }

    /// The service of a stream may leave it unread for long; all other requests are read at once.
    fn with_body(&mut self, request: Request<h2::RecvStream>) -> Request<Incoming> {
        match streams::kind(request.uri().path()) {
            None => request.map(Incoming::of_call),
            Some(_) => request.map(|stream| self.inboxes.add(stream)),
        }
    }

    fn take_what_came(&mut self) {
        if let Some(ahead) = self.inboxes.take_what_came(self.read.bytes()) {
            // Their bytes are counted, so they take none of the window of other calls.
            self.connection.set_target_window_size(CONNECTION_WINDOW + ahead);
        }
    }
}

type Accepted = Result<(Request<Incoming>, SendResponse<Counted>), h2::Error>;
