//! Connections and refusals, denied calls, and the state of the certificate and of the files that
//! are read again.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::{
    access::gate::{Gate, REASONS},
    metrics::{Counter, Kind, Text},
    server::{refusals::Refusals, tls::Tls},
};

#[derive(Clone)]
pub(in super::super) struct Edge {
    /// None: no tokens file is configured.
    pub(in super::super) gate: Option<Arc<Gate>>,
    /// None: plaintext.
    pub(in super::super) tls: Option<Tls>,
    pub(in super::super) open: TaskTracker,
    pub(in super::super) refused: Arc<Counter>,
    pub(in super::super) not_grpc: Arc<Refusals>,
    pub(in super::super) max_connections: usize,
}

pub(super) fn write(text: &mut Text, edge: &Edge) {
    let gauges = [
        ("featurestore_connections", "Open connections to the gRPC port.", edge.open.len()),
        ("featurestore_connections_max", "The most of them: limits.max_connections.", edge.max_connections),
    ];
    for (name, help, value) in gauges {
        text.family(name, Kind::Gauge, help).value(&[], value as f64);
    }
    let help = "Connections that were closed because limits.max_connections were open.";
    text.family("featurestore_connections_refused", Kind::Counter, help).value(&[], edge.refused.get() as f64);
    let help = "Requests and connections that were refused because they are not gRPC, by what they were.";
    text.family("featurestore_not_grpc", Kind::Counter, help);
    for (what, count) in edge.not_grpc.reading() {
        text.value(&[("what", what)], count as f64);
    }
    let help = "Calls and chunks of streams that were denied, by reason.";
    text.family("featurestore_denied_calls", Kind::Counter, help);
    let denied = edge.gate.as_deref().map(Gate::denied).unwrap_or_default();
    for (reason, count) in REASONS.into_iter().zip(denied) {
        text.value(&[("reason", reason)], count as f64);
    }
    files(text, edge);
}

/// A file that is not configured has no series.
fn files(text: &mut Text, edge: &Edge) {
    let help = "When the certificate in use (tls.cert_file) ends, in seconds since 1970.";
    text.family("featurestore_tls_certificate_not_after_seconds", Kind::Gauge, help);
    if let Some(tls) = &edge.tls {
        text.value(&[], tls.not_after() as f64);
    }
    let help = "1: the files are bad now, and what was read from them before is in use.";
    text.family("featurestore_reload_failing", Kind::Gauge, help);
    let failing =
        [("tls", edge.tls.as_ref().map(Tls::is_failing)), ("tokens", edge.gate.as_deref().map(Gate::is_failing))];
    for (file, failing) in failing {
        if let Some(failing) = failing {
            text.value(&[("file", file)], f64::from(failing));
        }
    }
}
