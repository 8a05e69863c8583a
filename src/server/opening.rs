//! Detects from the first bytes of a connection what its client speaks: HTTP/2 with prior
//! knowledge, as gRPC does, or something else. Until then the connection costs nothing more. The
//! caller bounds the time.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The first bytes of an HTTP/2 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of a TLS record with a ClientHello.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http2,
    /// Text, as in HTTP/1.
    Http1,
    Tls,
    SomethingElse,
}

impl Speaks {
    fn of(first: &[u8]) -> Self {
        match first {
            first if first == PREFACE => Self::Http2,
            [TLS_HANDSHAKE, ..] => Self::Tls,
            [letter, ..] if letter.is_ascii_alphabetic() && first.iter().all(|byte| is_text(*byte)) => Self::Http1,
            _ => Self::SomethingElse,
        }
    }
}

fn is_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t')
}

/// Whether a client begins with TLS. Nothing is read.
pub(super) async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(left()),
        _ => Ok(first == [TLS_HANDSHAKE]),
    }
}

fn left() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the client closed the connection before it sent anything")
}

/// A connection whose first bytes were read, and will be read again.
pub(super) struct Opened<S> {
    stream: S,
    first: [u8; PREFACE.len()],
    /// The range of the first bytes that is still to be read.
    begin: usize,
    end: usize,
}

/// Reads until the protocol is known.
pub(super) async fn open<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Speaks, Opened<S>)> {
    let (mut first, mut end) = ([0; PREFACE.len()], 0);
    while end < first.len() && PREFACE.starts_with(&first[..end]) {
        match stream.read(&mut first[end..]).await? {
            0 => return Err(left()),
            read => end += read,
        }
    }
    Ok((Speaks::of(&first[..end]), Opened { stream, first, begin: 0, end }))
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let again = &this.first[this.begin..this.end];
        if again.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let count = again.len().min(buffer.remaining());
        buffer.put_slice(&again[..count]);
        this.begin += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn opened(says: &[u8]) -> (Speaks, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(says).await.unwrap();
        let (speaks, mut opened) = open(server).await.unwrap();
        drop(client);
        let mut all = Vec::new();
        opened.read_to_end(&mut all).await.unwrap();
        (speaks, all)
    }

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_read_again() {
        let http2 = [&PREFACE[..], b"frames"].concat();
        assert_eq!(opened(&http2).await, (Speaks::Http2, http2));
        let others: [(&[u8], Speaks); 5] = [
            (b"GET / HTTP/1.1\r\n\r\n", Speaks::Http1),
            (b"PRI * HTTP/1.1", Speaks::Http1),
            (b"\x16\x03\x01hello", Speaks::Tls),
            (b"P\0", Speaks::SomethingElse),
            (b"\r\n", Speaks::SomethingElse),
        ];
        for (other, speaks) in others {
            assert_eq!(opened(other).await, (speaks, other.to_vec()));
        }
    }

    #[tokio::test]
    async fn a_client_may_say_it_bit_by_bit_or_leave() {
        let (mut client, server) = tokio::io::duplex(1);
        let opening = tokio::spawn(open(server));
        client.write_all(PREFACE).await.unwrap();
        assert_eq!(opening.await.unwrap().unwrap().0, Speaks::Http2);
        let (client, server) = tokio::io::duplex(1);
        drop(client);
        assert!(open(server).await.is_err());
    }
}
