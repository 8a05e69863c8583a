//! The bodies of requests. That of a call is read from h2 by its service, at once and to its end. That of a stream may have to
//! wait for a service that writes, or for a client that does not read its answers: until then the connection's task keeps what
//! came in an inbox, joined to few large pieces, so that h2 has no frames of it. Its window is given back when the service takes
//! it, so that a client is never further ahead than a stream's window.
//!
//! What is kept so counts among the bytes in flight, and in exchange the connection's window grows by it: other calls on the
//! connection can still be sent. While bytes are short it does not grow, and those calls wait.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{FlowControl, Reason, RecvStream};
use hyper::body::{Body, Frame, SizeHint};

use crate::api::{ConnectionBytes, Share};

/// Smaller pieces are copied together: each piece of its own would keep a part of what was read around it.
const SMALL: usize = 4 << 10;
/// What they are joined to: more would be copied again and again as it grows.
const JOINED: usize = 64 << 10;
/// What is kept is counted in steps, as each one may be a frame to the client.
const STEP: usize = 256 << 10;

/// A request's body.
pub(in super::super) struct Incoming(Kind);

enum Kind {
    /// Read by the service.
    Direct(RecvStream),
    /// Read by the connection.
    Inbox(Arc<Inbox>),
}

impl Incoming {
    /// Of a call that reads its request at once.
    pub(super) fn of_call(stream: RecvStream) -> Self {
        Self(Kind::Direct(stream))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match &mut self.0 {
            Kind::Inbox(inbox) => inbox.poll_take(cx).map(|taken| taken.map(|taken| taken.map(Frame::data))),
            Kind::Direct(stream) => match ready!(stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Fails only where the stream is over.
                    let _ = stream.flow_control().release_capacity(bytes.len());
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Some(Err(error)) => Poll::Ready(broken(error).map(Err)),
                None => match ready!(stream.poll_trailers(cx)) {
                    Ok(trailers) => Poll::Ready(trailers.map(Frame::trailers).map(Ok)),
                    Err(error) => Poll::Ready(broken(error).map(Err)),
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Direct(stream) => stream.is_end_stream(),
            Kind::Inbox(inbox) => inbox.lock().is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A client that resets its stream without an error has just sent enough.
fn broken(error: h2::Error) -> Option<h2::Error> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(error)
}

/// What came on a stream and was not taken by its service.
struct Inbox {
    arrived: Mutex<Arrived>,
    /// Of all inboxes of the connection.
    kept: Arc<AtomicUsize>,
}

struct Arrived {
    stream: RecvStream,
    flow: FlowControl,
    pieces: VecDeque<Bytes>,
    /// The last of them, which may grow.
    small: BytesMut,
    bytes: usize,
    /// What follows the bytes: the end, or an error.
    end: Option<Option<h2::Error>>,
    waiting: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the service.
    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let mut arrived = self.lock();
        if let Some(piece) = arrived.next() {
            let _ = arrived.flow.release_capacity(piece.len());
            self.kept.fetch_sub(piece.len(), Relaxed);
            return Poll::Ready(Some(Ok(piece)));
        }
        match &mut arrived.end {
            Some(error) => Poll::Ready(error.take().map(Err)),
            None => {
                arrived.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Takes what h2 has.
    fn take_what_came(&self) {
        let mut arrived = self.lock();
        // Nobody needs to be woken by h2: what comes, comes while this connection is polled, and this is called after it.
        let mut context = Context::from_waker(Waker::noop());
        let (before, mut is_new) = (arrived.bytes, false);
        while arrived.end.is_none() {
            match arrived.stream.poll_data(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(bytes))) => arrived.keep(bytes),
                Poll::Ready(Some(Err(error))) => arrived.end = Some(broken(error)),
                // Trailers mean nothing in a request of gRPC.
                Poll::Ready(None) => arrived.end = Some(None),
            }
            is_new = true;
        }
        self.kept.fetch_add(arrived.bytes - before, Relaxed);
        let waiting = if is_new { arrived.waiting.take() } else { None };
        drop(arrived);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let arrived = self.arrived.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.kept.fetch_sub(arrived.bytes, Relaxed);
    }
}

impl Arrived {
    fn keep(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if bytes.len() < SMALL {
            self.small.extend_from_slice(&bytes);
            if self.small.len() >= JOINED {
                self.close_small();
            }
            return;
        }
        self.close_small();
        self.pieces.push_back(bytes);
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.close_small();
        }
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }

    fn is_over(&self) -> bool {
        self.bytes == 0 && matches!(self.end, Some(None))
    }
}

/// The inboxes of a connection.
pub(super) struct Inboxes {
    of: Vec<Weak<Inbox>>,
    /// Bytes in all of them.
    kept: Arc<AtomicUsize>,
    /// Those of them that are counted.
    counted: Option<Share>,
    connection: Arc<ConnectionBytes>,
    /// What the connection had read when they were looked at last.
    read_before: usize,
}

impl Inboxes {
    pub(super) fn new(connection: Arc<ConnectionBytes>) -> Self {
        Self { of: Vec::new(), kept: Arc::default(), counted: None, connection, read_before: 0 }
    }

    /// The body of a stream.
    pub(super) fn add(&mut self, mut stream: RecvStream) -> Incoming {
        let flow = stream.flow_control().clone();
        let (pieces, small) = (VecDeque::new(), BytesMut::new());
        let arrived = Arrived { stream, flow, pieces, small, bytes: 0, end: None, waiting: None };
        let inbox = Arc::new(Inbox { arrived: Mutex::new(arrived), kept: self.kept.clone() });
        // Its first bytes may have come with its head.
        inbox.take_what_came();
        self.of.push(Arc::downgrade(&inbox));
        Incoming(Kind::Inbox(inbox))
    }

    /// Takes from h2 what came for them. `read`: what the connection has read; while that is the same, nothing came. If what
    /// counts has changed: how much that is.
    pub(super) fn take_what_came(&mut self, read: usize) -> Option<u32> {
        if read != self.read_before {
            self.read_before = read;
            self.of.retain(|inbox| {
                inbox.upgrade().is_some_and(|inbox| {
                    inbox.take_what_came();
                    true
                })
            });
        }
        let kept = self.kept.load(Relaxed);
        let (wanted, counted) = (kept - kept % STEP, self.counted.as_ref().map_or(0, Share::bytes));
        if wanted == counted {
            return None;
        }
        // Given back first, so that it is not counted twice.
        self.counted = None;
        self.counted = Share::take_ahead(&self.connection, wanted);
        let now = self.counted.as_ref().map_or(0, Share::bytes);
        (now != counted).then(|| u32::try_from(now).unwrap_or(0))
    }
}

impl Drop for Inboxes {
    /// The connection is gone, and nobody else would tell the services that wait.
    fn drop(&mut self) {
        for inbox in self.of.iter().filter_map(Weak::upgrade) {
            inbox.take_what_came();
            let mut arrived = inbox.lock();
            arrived.end.get_or_insert_with(|| Some(Reason::CANCEL.into()));
            if let Some(waiting) = arrived.waiting.take() {
                drop(arrived);
                waiting.wake();
            }
        }
    }
}
