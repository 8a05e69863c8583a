//! Answers to clients that do not speak gRPC, so that their error names the mistake; a connection
//! that is only reset looks like a broken network. Such a client is not served, and everything
//! takes a bounded time.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tonic::Status;

use super::opening::Speaks;
use crate::metrics::Counter;

/// How long the answer may take, and how long the client may take to read it and to close the
/// connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that such a client may still send meanwhile. They are read and dropped: a connection that
/// is closed with unread bytes is reset, and a reset can lose the answer.
const MAX_DISCARDED: u64 = 64 << 10;
/// Like `ANSWER_TIMEOUT` for a gRPC client, which may make its first call some time after it
/// connected.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CALLS: u32 = 16;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotGrpc {
    /// A request with another method than POST.
    Method,
    /// A request with another content type than that of gRPC.
    ContentType,
    /// HTTP/1 to a port that speaks HTTP/2.
    Http1,
    /// TLS to a plaintext port.
    Tls,
    /// Plaintext to a TLS port.
    Plaintext,
    /// TLS, but the client does not ask for HTTP/2.
    NoAlpn,
    Unknown,
}

/// The names in the metrics, in the order of [`NotGrpc`].
const NAMES: [&str; 7] = ["method", "content_type", "http1", "tls", "plaintext", "no_alpn", "unknown"];

impl NotGrpc {
    /// What is wrong, and what to do.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Method => "this port speaks gRPC: every request must be a POST",
            Self::ContentType => "this port speaks gRPC: the content-type of every request must be application/grpc",
            Self::Http1 => "this port speaks gRPC over HTTP/2 and not HTTP/1: use a gRPC client",
            Self::Tls => "this port speaks plaintext and not TLS: connect without TLS",
            Self::Plaintext => "this port speaks TLS and not plaintext: connect with TLS",
            Self::NoAlpn => "this port speaks HTTP/2 over TLS: the client must ask for h2 by ALPN",
            Self::Unknown => "this port speaks gRPC over HTTP/2: use a gRPC client",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Refusals([Counter; NAMES.len()]);

impl Refusals {
    pub(super) fn count(&self, what: NotGrpc) {
        self.0[what as usize].add(1);
    }

    pub(super) fn reading(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0.each_ref().map(Counter::get))
    }
}

/// Tells the client of a new connection why it is not served, in the protocol that it speaks, and
/// closes the connection. Always returns an error, for the log.
pub(super) async fn refuse<S>(stream: S, speaks: Speaks, why: NotGrpc) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let words = why.words();
    // It does not matter whether the client reads the answer.
    match speaks {
        // A TLS client that is answered in plaintext reports it ("wrong version number", "first
        // record does not look like a TLS handshake"). A TLS alert would suggest another TLS
        // version.
        Speaks::Http1 | Speaks::Tls => _ = timeout(ANSWER_TIMEOUT, answer_http1(stream, words)).await,
        Speaks::Http2 => _ = timeout(CALL_TIMEOUT, answer_calls(stream, words)).await,
        Speaks::SomethingElse => {}
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, words))
}

async fn answer_http1<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, words: &str) -> io::Result<()> {
    stream.write_all(&http1(words)).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_DISCARDED), &mut tokio::io::sink()).await.map(drop)
}

/// Answers the first calls of a client that speaks gRPC, but not as this port does, without reading
/// what they ask for. Not all clients show the text of a GOAWAY.
async fn answer_calls<S: AsyncRead + AsyncWrite + Unpin>(stream: S, words: &str) -> Result<(), h2::Error> {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(MAX_CALLS).max_header_list_size(MAX_HEADER_LIST_BYTES).initial_window_size(0);
    let mut connection = settings.handshake::<_, Bytes>(stream).await?;
    while let Some(call) = connection.accept().await {
        let (_, mut respond) = call?;
        respond.send_response(Status::unavailable(words).into_http::<()>(), true)?;
        connection.graceful_shutdown();
    }
    Ok(())
}

fn http1(words: &str) -> Vec<u8> {
    let length = words.len() + 1;
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{words}\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(speaks: Speaks, why: NotGrpc) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(1024);
        let refusing = tokio::spawn(async move { refuse(server, speaks, why).await });
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        drop(client);
        assert_eq!(refusing.await.unwrap().unwrap_err().to_string(), why.words());
        answer
    }

    #[tokio::test]
    async fn each_client_is_answered_in_its_protocol() {
        for speaks in [Speaks::Http1, Speaks::Tls] {
            let answer = String::from_utf8(answered(speaks, NotGrpc::Tls).await).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            assert_eq!(body, format!("{}\n", NotGrpc::Tls.words()));
        }
        assert_eq!(answered(Speaks::SomethingElse, NotGrpc::Unknown).await, b"");
    }

    #[tokio::test]
    async fn the_first_call_of_a_client_of_grpc_is_answered() {
        let (client, server) = tokio::io::duplex(64 << 10);
        let refusing = tokio::spawn(refuse(server, Speaks::Http2, NotGrpc::Plaintext));
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post("http://x/featurestore.v1.FeatureStoreService/Info").body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        let said = Status::from_header_map(answer.await.unwrap().headers()).unwrap();
        assert_eq!((said.code(), said.message()), (tonic::Code::Unavailable, NotGrpc::Plaintext.words()));
        drop(send);
        connection.await.unwrap().unwrap();
        assert!(refusing.await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_neither_reads_nor_leaves_is_not_waited_for() {
        for speaks in [Speaks::Http1, Speaks::Tls, Speaks::Http2] {
            let (client, server) = tokio::io::duplex(8);
            let refusing = refuse(server, speaks, NotGrpc::Http1);
            assert!(timeout(2 * CALL_TIMEOUT, refusing).await.unwrap().is_err());
            drop(client);
        }
    }

    #[test]
    fn each_refusal_has_its_own_count() {
        let refusals = Refusals::default();
        refusals.count(NotGrpc::Unknown);
        refusals.count(NotGrpc::ContentType);
        let counted: Vec<_> = refusals.reading().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("content_type", 1), ("unknown", 1)]);
    }
}
