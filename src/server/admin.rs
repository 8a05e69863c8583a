//! The admin port: plain HTTP for probes and dashboards that do not speak gRPC.
//!
//! `/livez`: the process is up. `/readyz`: L2 was reached once since start, and not draining. `/metrics`: what is
//! counted (`metrics`), in Prometheus' text format or, where the client prefers it, as OpenMetrics.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::{metrics::Format, tiered::Tiered};

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take over a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves the admin endpoints until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    tiered: Arc<Tiered>,
    metrics: Metrics,
    draining: CancellationToken,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (tiered, metrics, draining, stop) = (tiered.clone(), metrics.clone(), draining.clone(), stop.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let response = respond(&request, &tiered, &metrics, draining.is_cancelled());
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let mut settings = http1::Builder::new();
            settings.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            tokio::select! {
                _ = settings.serve_connection(TokioIo::new(stream), answer) => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

fn respond<B>(request: &Request<B>, tiered: &Tiered, metrics: &Metrics, draining: bool) -> Response<Full<Bytes>> {
    let accepted = request.headers().get(http::header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let format = Format::accepted(accepted.unwrap_or_default());
    let path = request.uri().path();
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        "/readyz" if !tiered.reach().borrow().ready => {
            (StatusCode::SERVICE_UNAVAILABLE, "L2 was not reached yet\n".to_owned())
        }
        "/readyz" => (StatusCode::OK, "ok\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics.text(format)),
        _ => (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Prometheus refuses a scrape that does not name its format.
    let format = if path == "/metrics" { format.content_type() } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(format));
    response
}
