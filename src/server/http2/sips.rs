//! Reading from a connection a few bytes at a time: after each sip its task gets to do the rest of its work.

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

/// What is read before the frames in it are looked at, and at most as much again, as that is what h2 has room for. The smallest
/// frames that cost anything have ten bytes, so that these bytes hold fewer of them than h2 takes unread (`SMALL_FRAMES`).
const SIP: usize = 32 << 10;

/// What was read from a connection.
#[derive(Debug, Default)]
pub(super) struct Read(AtomicUsize);

impl Read {
    /// Bytes since it began. It may overflow, so it is compared with what it was.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A connection that is not read to its end at once.
pub(super) struct Sips<S> {
    stream: S,
    /// Bytes of this sip.
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
