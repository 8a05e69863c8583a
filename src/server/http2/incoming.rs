//! The bodies of requests. The service of a unary call reads its request from h2 at once and to its
//! end. A stream may have to wait for a service that writes, or for a client that does not read its
//! answers. Until then the connection's task keeps what arrived in an inbox, joined into few large
//! pieces, so that h2 holds no frames of it. The window is returned when the service takes the
//! bytes, so a client is never further ahead than the window of a stream.
//!
//! The bytes in inboxes count among the bytes in flight, and in exchange the connection's window
//! grows by them, so that other calls on the connection can still be sent. While bytes are short
//! the window does not grow, and those calls wait.

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

/// Pieces smaller than this are copied together: each alone would keep a part of the read buffer
/// alive.
const SMALL: usize = 4 << 10;
/// The size that small pieces are joined to; a larger one would be copied again and again as it
/// grows.
const JOINED: usize = 64 << 10;
/// Bytes in inboxes are counted in steps of this size, because each step may send a frame to the
/// client.
const STEP: usize = 256 << 10;

pub(in super::super) struct Incoming(Kind);

enum Kind {
    /// Read by the service.
    Direct(RecvStream),
    /// Read by the connection.
    Inbox(Arc<Inbox>),
}

impl Incoming {
    /// The body of a unary call, which reads its request at once.
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
                    // This fails only if the stream is over.
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

/// A client that resets its stream with NO_ERROR has sent all it wants to send.
fn broken(error: h2::Error) -> Option<h2::Error> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(error)
}

/// The bytes that arrived on a stream and were not taken by its service.
struct Inbox {
    arrived: Mutex<Arrived>,
    /// The bytes in all inboxes of the connection.
    kept: Arc<AtomicUsize>,
}

struct Arrived {
    stream: RecvStream,
    flow: FlowControl,
    pieces: VecDeque<Bytes>,
    /// The last piece, which may grow.
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

    fn take_what_came(&self) {
        let mut arrived = self.lock();
        // No wakeup of h2 is needed: bytes arrive only while this connection is polled, and this is
        // called after each poll.
        let mut context = Context::from_waker(Waker::noop());
        let (before, mut is_new) = (arrived.bytes, false);
        while arrived.end.is_none() {
            match arrived.stream.poll_data(&mut context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(bytes))) => arrived.keep(bytes),
                Poll::Ready(Some(Err(error))) => arrived.end = Some(broken(error)),
                // A gRPC request has no meaningful trailers.
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
    kept: Arc<AtomicUsize>,
    /// The part of them that is counted.
    counted: Option<Share>,
    connection: Arc<ConnectionBytes>,
    /// The bytes that the connection had read at the last look.
    read_before: usize,
}

impl Inboxes {
    pub(super) fn new(connection: Arc<ConnectionBytes>) -> Self {
        Self { of: Vec::new(), kept: Arc::default(), counted: None, connection, read_before: 0 }
    }

    pub(super) fn add(&mut self, mut stream: RecvStream) -> Incoming {
        let flow = stream.flow_control().clone();
        let (pieces, small) = (VecDeque::new(), BytesMut::new());
        let arrived = Arrived { stream, flow, pieces, small, bytes: 0, end: None, waiting: None };
        let inbox = Arc::new(Inbox { arrived: Mutex::new(arrived), kept: self.kept.clone() });
        // Its first bytes may have arrived with its headers.
        inbox.take_what_came();
        self.of.push(Arc::downgrade(&inbox));
        Incoming(Kind::Inbox(inbox))
    }

    /// Takes from h2 what arrived for the inboxes. `read` is what the connection has read: while it
    /// is the same, nothing arrived. Returns the counted bytes if they have changed.
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
        // Released first, so that it is not counted twice.
        self.counted = None;
        self.counted = Share::take_ahead(&self.connection, wanted);
        let now = self.counted.as_ref().map_or(0, Share::bytes);
        (now != counted).then(|| u32::try_from(now).unwrap_or(0))
    }
}

impl Drop for Inboxes {
    /// The connection is gone, and nothing else would wake the services that wait.
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
