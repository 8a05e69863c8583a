//! gRPC by hand over HTTP/2, for what no gRPC client would do.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{
    Code,
    codec::{CompressionEncoding, EncodeBody},
};
use tonic_prost::ProstEncoder;

/// A connection, driven by a task until it is dropped.
pub struct Raw {
    pub send: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

pub async fn connect(port: u16, settings: &Builder) -> Raw {
    over(TcpStream::connect(("127.0.0.1", port)).await.unwrap(), settings).await
}

pub async fn over<S>(stream: S, settings: &Builder) -> Raw
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = settings.handshake(stream).await.unwrap();
    Raw { send, connection: tokio::spawn(connection) }
}

/// The head of a call.
pub fn head(method: &str) -> http::request::Builder {
    Request::post(format!("http://localhost/featurestore.v1.FeatureStoreService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// A message in its frame.
pub fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// The same, packed with gzip.
pub async fn packed<M: Message + 'static>(message: M) -> Bytes {
    let (encoder, messages) = (ProstEncoder::default(), futures_util::stream::iter([Ok(message)]));
    let body = EncodeBody::new_client(encoder, messages, Some(CompressionEncoding::Gzip), None);
    body.collect().await.unwrap().to_bytes()
}

impl Raw {
    /// Begins a call and sends its message without the last byte, so that the call keeps its place. The caller sends the
    /// byte, lets go of the body, or waits until the server ends the call.
    pub async fn begin_only(&self, method: &str, message: &impl Message) -> (ResponseFuture, SendStream<Bytes>, Bytes) {
        let mut send = self.send.clone().ready().await.unwrap();
        let (answer, mut body) = send.send_request(head(method).body(()).unwrap(), false).unwrap();
        let mut message = framed(message);
        let last = message.split_off(message.len() - 1);
        body.send_data(message, false).unwrap();
        (answer, body, last)
    }

    /// Begins a call; Err: it was not sent.
    pub async fn begin(&self, method: &str, message: &impl Message) -> Result<ResponseFuture, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (answer, mut body) = send.send_request(head(method).body(()).unwrap(), false)?;
        body.send_data(framed(message), true)?;
        Ok(answer)
    }
}

/// Reads an answer to its end: its status, and the bytes that came before it.
pub async fn finish(answer: ResponseFuture) -> Result<(Code, usize), h2::Error> {
    let answer = answer.await?;
    let status = |headers: &HeaderMap| headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
    if let Some(code) = status(answer.headers()) {
        return Ok((code, 0));
    }
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(data) = body.data().await {
        let data = data?;
        bytes += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok((status(&trailers).expect("an answer without a status"), bytes))
}
