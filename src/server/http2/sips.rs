//! Reads from a connection a few bytes at a time, so that its task can do the rest of its work in
//! between.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read before their frames are handled, and at most as much again, because h2 has
/// room for this. The smallest frames that cost anything have ten bytes, so these bytes hold fewer
/// of them than h2 accepts unread (`SMALL_FRAMES`).
const SIP: usize = 32 << 10;

#[derive(Debug, Default)]
pub(super) struct Read(AtomicUsize);

impl Read {
    /// Bytes since the connection began. The number may overflow, so it is only compared for
    /// equality.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A connection that is not read to its end at once.
pub(super) struct Sips<S> {
    stream: S,
    /// Bytes read since the task did other work.
    taken: usize,
    read: Arc<Read>,
}

impl<S> Sips<S> {
    pub(super) fn new(stream: S, read: Arc<Read>) -> Self {
        Self { stream, taken: 0, read }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sips<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken >= SIP {
            this.taken = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let done = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if done.is_pending() {
            this.taken = 0;
        }
        ready!(done)?;
        let read = buffer.filled().len() - before;
        this.taken += read;
        this.read.0.fetch_add(read, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sips<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
