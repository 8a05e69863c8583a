//! The admin port: plain HTTP for probes and dashboards that do not speak gRPC.
//!
//! `/livez`: the process is up. `/readyz`: L2 was reached once since start, and not draining. `/metrics`: what the tiers
//! did, in Prometheus' text format.

use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::{guard::GuardLayer, load};
use crate::tiered::{Tiered, meter::Meter};

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take over a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves the admin endpoints until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    tiered: Arc<Tiered>,
    calls: GuardLayer,
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
        let (tiered, calls, draining, stop) = (tiered.clone(), calls.clone(), draining.clone(), stop.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let response = respond(request.uri().path(), &tiered, &calls, draining.is_cancelled());
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

fn respond(path: &str, tiered: &Tiered, calls: &GuardLayer, draining: bool) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        "/readyz" if !tiered.reach().borrow().ready => {
            (StatusCode::SERVICE_UNAVAILABLE, "L2 was not reached yet\n".to_owned())
        }
        "/readyz" => (StatusCode::OK, "ok\n".to_owned()),
        "/metrics" => (StatusCode::OK, metrics(tiered) + &load::metrics(tiered, calls)),
        _ => (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
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
    let reach = *tiered.reach().borrow();
    let _ =
        writeln!(text, "# HELP featurestore_tier_up Whether a tier answers now.\n# TYPE featurestore_tier_up gauge");
    for (tier, up) in [("l1", reach.l1), ("l2", reach.l2)] {
        let _ = writeln!(text, "featurestore_tier_up{{tier=\"{tier}\"}} {}", u8::from(up));
    }
    text
}
