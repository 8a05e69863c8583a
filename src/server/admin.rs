//! The admin port, in plaintext: probes and dashboards speak neither TLS nor tokens.
//!
//! Over HTTP/1 and HTTP/2: `/livez` (the process is up), `/readyz` (L2 was reached once since the
//! start, and the server does not drain), and `/metrics`, in the text format of Prometheus or, if
//! the client prefers it, as OpenMetrics. Over HTTP/2 also grpc.health.v1, for the gRPC probes of
//! Kubernetes.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::Service as _;

use super::{
    guard::HEALTH,
    metrics::Metrics,
    only_grpc,
    opening::{self, Speaks},
    refusals::{NotGrpc, Refusals},
};
use crate::{
    metrics::Format,
    tiered::{Tiered, seldom::Seldom},
};

/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 256;
/// After this age a connection receives GOAWAY, and its last answer may take `LAST_ANSWER`. So
/// clients that keep their connections do not keep others out for long.
const MAX_AGE: Duration = Duration::from_secs(60);
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// The least time between two warnings of the same kind.
const WARNINGS: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the client of an HTTP/2 connection is pinged, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
const MAX_CONCURRENT_STREAMS: u32 = 16;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

#[derive(Clone)]
pub(super) struct Shown {
    pub(super) tiered: Arc<Tiered>,
    pub(super) metrics: Metrics,
    pub(super) health: Routes,
    pub(super) draining: CancellationToken,
    /// Counts requests that are neither calls of health nor GET or HEAD.
    pub(super) not_grpc: Arc<Refusals>,
}

pub(super) async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (failures, refusals) = (Seldom::every(WARNINGS), Seldom::every(WARNINGS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(others) = failures.now() {
                    tracing::warn!(%error, others, "a connection to the admin port cannot be accepted");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            if let Some(others) = refusals.now() {
                tracing::warn!(others, max = MAX_CONNECTIONS, "too many connections to the admin port: one was closed");
            }
            continue;
        };
        let (shown, stop) = (shown.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                served = serve_one(stream, shown) => if let Err(error) = served {
                    tracing::debug!(%error, "a connection to the admin port broke");
                },
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn serve_one(stream: TcpStream, shown: Shown) -> io::Result<()> {
    let opened = timeout(HEADER_TIMEOUT, opening::open(stream)).await;
    let (speaks, stream) = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let stream = TokioIo::new(stream);
    let answer = service_fn(move |request: Request<Incoming>| {
        let shown = shown.clone();
        async move { Ok::<_, Infallible>(answer(request, shown).await) }
    });
    if speaks == Speaks::Http2 {
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES);
        let mut connection = pin!(settings.serve_connection(stream, answer));
        if let Ok(ended) = timeout(MAX_AGE, connection.as_mut()).await {
            return ended.map_err(io::Error::other);
        }
        connection.as_mut().graceful_shutdown();
        return last_answer(connection).await;
    }
    let mut settings = http1::Builder::new();
    settings.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connection = pin!(settings.serve_connection(stream, answer));
    if let Ok(ended) = timeout(MAX_AGE, connection.as_mut()).await {
        return ended.map_err(io::Error::other);
    }
    connection.as_mut().graceful_shutdown();
    last_answer(connection).await
}

/// Waits for the last answer on a connection that received GOAWAY.
async fn last_answer(connection: impl Future<Output = hyper::Result<()>>) -> io::Result<()> {
    let ended = timeout(LAST_ANSWER, connection).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    ended.map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, mut shown: Shown) -> Response<Body> {
    if request.uri().path().starts_with(HEALTH) {
        if let Err(what) = only_grpc::check(request.method(), request.headers()) {
            shown.not_grpc.count(what);
            return only_grpc::refusal(what).map(Body::new);
        }
        let Ok(answer) = shown.health.call(request).await;
        return answer;
    }
    let Shown { tiered, metrics, draining, not_grpc, .. } = &shown;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        not_grpc.count(NotGrpc::Method);
        return method_not_allowed().map(Body::new);
    }
    let response = respond(&request, tiered, metrics, draining.is_cancelled());
    match (request.method(), request.version()) {
        // Over HTTP/1 hyper leaves the body out itself, and sends its length.
        (&Method::HEAD, Version::HTTP_2) => response.map(|_| Body::empty()),
        _ => response.map(Body::new),
    }
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"only GET and HEAD are allowed\n")));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn respond<B>(request: &Request<B>, tiered: &Tiered, metrics: &Metrics, draining: bool) -> Response<Full<Bytes>> {
    let accepted = request.headers().get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let format = Format::accepted(accepted.unwrap_or_default());
    let path = request.uri().path();
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        "/readyz" if !tiered.reach().borrow().ready => {
            (StatusCode::SERVICE_UNAVAILABLE, "L2 was not reached since the start\n".to_owned())
        }
        "/readyz" => (StatusCode::OK, "ok\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics.text(format)),
        _ => (StatusCode::NOT_FOUND, "this port serves /livez, /readyz, /metrics and grpc.health.v1\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Prometheus rejects a scrape that does not name its format.
    let format = if path == "/metrics" { format.content_type() } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format));
    response
}
