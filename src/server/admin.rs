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
