//! Calls over bare HTTP/2: what is sent was encoded beforehand, and of an answer only its size and grpc-status are looked
//! at. tonic's client would take more of a small machine's CPU than some of the servers do.

use std::{
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Uri, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    codec::{PREFIX_BYTES, framed},
    load::Call,
    tls::Tls,
};

/// Requests whose answers are looked at before anything is measured.
const LEARNT: usize = 256;

type Sender = http2::SendRequest<Full<Bytes>>;

/// Some connections to one method of one server, and the requests that go there in turn.
pub(crate) struct Wire {
    connections: Vec<Sender>,
    uri: Uri,
    requests: Arc<[Bytes]>,
    /// Of an answer's message.
    size: RangeInclusive<usize>,
    next: AtomicUsize,
    pid: u32,
    tls: Option<Tls>,
    authorization: Option<HeaderValue>,
}

impl Wire {
    /// Connects. The requests are messages without their frame.
    pub(crate) async fn connect(
        (port, path, pid): (u16, &str, u32),
        connections: usize,
        requests: &[Bytes],
        tls: Option<Tls>,
    ) -> Result<Self, String> {
        let uri = Uri::try_from(format!("http://127.0.0.1:{port}{path}")).map_err(text)?;
        let requests = requests.iter().map(|message| framed(message)).collect();
        let mut made = Vec::new();
        for _ in 0..connections {
            made.push(connection(port, tls.as_ref()).await?);
        }
        Ok(Self {
            connections: made,
            uri,
            requests,
            size: 0..=usize::MAX,
            next: AtomicUsize::new(0),
            pid,
            tls,
            authorization: None,
        })
    }

    /// Sends a token with each request.
    pub(crate) fn with_token(self, token: &str) -> Result<Self, String> {
        let authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(text)?;
        Ok(Self { authorization: Some(authorization), ..self })
    }

    /// The same requests, sizes and number of connections for another server.
    pub(crate) async fn redirected(&self, port: u16, path: &str, pid: u32) -> Result<Self, String> {
        let (requests, size) = (self.requests.clone(), self.size.clone());
        let new = Self::connect((port, path, pid), self.connections.len(), &[], self.tls.clone()).await?;
        Ok(Self { requests, size, ..new })
    }

    /// What it speaks; None: plaintext.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Makes the first requests once and gives the answers, whose sizes are what is expected from then on, give or take
    /// `slack`.
    pub(crate) async fn learn(&mut self, slack: usize) -> Result<Vec<Bytes>, String> {
        let mut answers = Vec::with_capacity(self.requests.len());
        for request in self.requests.iter().take(LEARNT).cloned().collect::<Vec<_>>() {
            answers.push(self.answer(request).await?);
        }
        let sizes = || answers.iter().map(Bytes::len);
        let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
        self.size = least.saturating_sub(slack)..=most + slack;
        Ok(answers)
    }

    async fn answer(&mut self, request: Bytes) -> Result<Bytes, String> {
        let request = self.request(request)?;
        let mut body = self.connections[0].send_request(request).await.map_err(text)?;
        check(body.headers(), false)?;
        let mut answer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            match frame.map_err(text)?.into_data() {
                Ok(data) => answer.extend_from_slice(&data),
                Err(frame) => check(&frame.into_trailers().unwrap_or_default(), true)?,
            }
        }
        if answer.len() < PREFIX_BYTES {
            return Err("an answer without a message".to_owned());
        }
        answer.advance(PREFIX_BYTES);
        Ok(answer.freeze())
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let request = Request::post(self.uri.clone()).version(Version::HTTP_2);
        let mut request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.body(Full::new(body)).map_err(text)
    }
}

impl Call for Wire {
    async fn call(&self) -> Result<(), String> {
        let number = self.next.fetch_add(1, Relaxed);
        let request = self.request(self.requests[number % self.requests.len()].clone())?;
        let mut connection = self.connections[number % self.connections.len()].clone();
        let answer = connection.send_request(request).await.map_err(text)?;
        let bytes = received(answer).await?;
        let size = bytes.saturating_sub(PREFIX_BYTES);
        if self.size.contains(&size) {
            Ok(())
        } else {
            Err(format!("an answer of {size} bytes, not {:?}: degraded, or with other rows", self.size))
        }
    }

    fn pid(&self) -> u32 {
        self.pid
    }
}

async fn received(mut answer: http::Response<Incoming>) -> Result<usize, String> {
    check(answer.headers(), false)?;
    let mut bytes = 0;
    let mut ended = false;
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(text)?;
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => bytes += data.len(),
            (_, Some(trailers)) => {
                check(trailers, true)?;
                ended = true;
            }
            _ => {}
        }
    }
    if ended { Ok(bytes) } else { Err("an answer without grpc-status".to_owned()) }
}

/// The status of a call: in the trailers, or of a failure also in the headers.
fn check(headers: &HeaderMap, must_be_there: bool) -> Result<(), String> {
    let of = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match of("grpc-status") {
        Some(status) if status != "0" => {
            Err(format!("grpc-status {status}: {}", of("grpc-message").unwrap_or_default()))
        }
        None if must_be_there => Err("trailers without grpc-status".to_owned()),
        _ => Ok(()),
    }
}

async fn connection(port: u16, tls: Option<&Tls>) -> Result<Sender, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    match tls {
        None => over(stream).await,
        Some(tls) => over(tls.connect(stream).await?).await,
    }
}

async fn over<S>(stream: S) -> Result<Sender, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut settings = http2::Builder::new(TokioExecutor::new());
    settings.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
    let (sender, connection) = settings.handshake(TokioIo::new(stream)).await.map_err(text)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Waits until something takes connections at a port.
pub(crate) async fn until_listening(port: u16, runs: impl Fn() -> bool, log: &Path) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if !runs() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            return Err(format!("{} ended: {said}", log.file_name().unwrap_or_default().display()));
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("nothing listened on port {port} within {PATIENCE:?}"));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
