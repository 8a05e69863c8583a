//! The admin port: plaintext for probes and dashboards, which speak neither TLS nor tokens.
//!
//! Over HTTP/1 or HTTP/2 `/livez`: the process is up. `/readyz`: L2 was reached once since start, and not draining.
//! `/metrics`: what the tiers did, in Prometheus' text format. Over HTTP/2 also grpc.health.v1, for Kubernetes' gRPC probes.

use std::{convert::Infallible, fmt::Write as _, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
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
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::Service as _;

use super::{
    guard::{GuardLayer, HEALTH},
    load,
    opening::{self, Speaks},
};
use crate::tiered::{Tiered, meter::Meter};

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take over a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection over HTTP/2 is asked whether its client is still there, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
const MAX_CONCURRENT_STREAMS: u32 = 16;
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

/// What is shown here.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) tiered: Arc<Tiered>,
    pub(super) calls: GuardLayer,
    /// grpc.health.v1.
    pub(super) health: Routes,
    pub(super) draining: CancellationToken,
}

/// Serves the admin endpoints until `stop`.
pub(super) async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) {
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
    let opened = tokio::time::timeout(HEADER_TIMEOUT, opening::open(stream)).await;
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
        return settings.serve_connection(stream, answer).await.map_err(io::Error::other);
    }
    let mut settings = http1::Builder::new();
    settings.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    settings.serve_connection(stream, answer).await.map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, mut shown: Shown) -> Response<Body> {
    if request.uri().path().starts_with(HEALTH) {
        let Ok(answer) = shown.health.call(request).await;
        return answer;
    }
    let Shown { tiered, calls, draining, .. } = &shown;
    respond(request.uri().path(), tiered, calls, draining.is_cancelled()).map(Body::new)
}

fn respond(path: &str, tiered: &Tiered, calls: &GuardLayer, draining: bool) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        "/readyz" if !tiered.reach().borrow().ready => {
            (StatusCode::SERVICE_UNAVAILABLE, "L2 was not reached yet\n".to_owned())
        }
        "/readyz" => (StatusCode::OK, "ok\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics(tiered) + &load::metrics(tiered, calls)),
        _ => (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics, and grpc.health.v1\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Prometheus refuses a scrape that does not name its format.
    let format =
        if path == "/metrics" { "text/plain; version=0.0.4; charset=utf-8" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(format));
    response
}

fn metrics(tiered: &Tiered) -> String {
    let mut text = String::new();
    let tiers: [(&str, &Meter); 2] = [("l1", &tiered.l1_meter), ("l2", &tiered.l2_meter)];
    type Count = fn(&crate::tiered::meter::Reading) -> u64;
    let counts: [(&str, &str, Count); 3] = [
        ("hits", "Entities that a tier answered.", |reading| reading.hits),
        ("misses", "Entities that a tier could not answer.", |reading| reading.misses),
        ("errors", "Commands to a tier that failed.", |reading| reading.errors),
    ];
    for (name, help, count) in counts {
        let _ = writeln!(
            text,
            "# HELP featurestore_tier_{name}_total {help}\n# TYPE featurestore_tier_{name}_total counter"
        );
        for (tier, meter) in tiers {
            let _ = writeln!(text, "featurestore_tier_{name}_total{{tier=\"{tier}\"}} {}", count(&meter.reading()));
        }
    }
    repairs(&mut text, tiered);
    let reach = *tiered.reach().borrow();
    let _ =
        writeln!(text, "# HELP featurestore_tier_up Whether a tier answers now.\n# TYPE featurestore_tier_up gauge");
    for (tier, up) in [("l1", reach.l1), ("l2", reach.l2)] {
        let _ = writeln!(text, "featurestore_tier_up{{tier=\"{tier}\"}} {}", u8::from(up));
    }
    text
}

fn repairs(text: &mut String, tiered: &Tiered) {
    let reading = tiered.repairs().reading();
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(text, "# HELP featurestore_{name} {help}\n# TYPE featurestore_{name} {kind}");
        let _ = writeln!(text, "featurestore_{name} {value}");
    };
    one("repair_leader", "gauge", "Whether this server repairs L1 now.", f64::from(u8::from(reading.leading)));
    let help = "From a change of L2 to when it was made good in L1, of the last ones.";
    one("repair_lag_seconds", "gauge", help, reading.lag.as_secs_f64());
    let help = "Writes of servers that were made good in L1, in both passes.";
    one("repair_written_total", "counter", help, reading.written as f64);
    let help = "Edits of L2 by others that were made good in L1, in both passes.";
    one("repair_edited_total", "counter", help, reading.edited as f64);
    let help = "Entries of L1 that the repairer found older than a write, and removed.";
    one("repair_dropped_total", "counter", help, reading.dropped as f64);
    let help = "Entries of L1 that were compared with L2.";
    one("audit_checks_total", "counter", help, tiered.audit().checks() as f64);
    let help = "Of those the ones that were older than L2, and still were after 1 s.";
    one("audit_disagreements_total", "counter", help, tiered.audit().disagreements() as f64);
    let help = "Times that L1 had to start cold, as changes could not be told one by one.";
    one("repair_cold_starts_total", "counter", help, reading.epochs as f64);
}
