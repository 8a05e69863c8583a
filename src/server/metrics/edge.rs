//! Who comes, and who is turned away: connections, and denied calls; and what it takes to let them in: the certificate and the files.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::{
    access::gate::{Gate, REASONS},
    metrics::{Counter, Kind, Text},
    server::{refusals::Refusals, tls::Tls},
};

/// What stands before the calls.
#[derive(Clone)]
pub(in super::super) struct Edge {
    /// None: everybody may call everything.
    pub(in super::super) gate: Option<Arc<Gate>>,
    /// None: plaintext.
    pub(in super::super) tls: Option<Tls>,
    /// The connections of the gRPC port.
    pub(in super::super) open: TaskTracker,
    pub(in super::super) refused: Arc<Counter>,
    pub(in super::super) not_grpc: Arc<Refusals>,
    pub(in super::super) max_connections: usize,
}

pub(super) fn write(text: &mut Text, edge: &Edge) {
    let gauges = [
        ("featurestore_connections", "Clients' connections to the gRPC port.", edge.open.len()),
        ("featurestore_connections_max", "Those at most: limits.max_connections.", edge.max_connections),
    ];
    for (name, help, value) in gauges {
        text.family(name, Kind::Gauge, help).value(&[], value as f64);
    }
    let help = "Connections that were closed as there were too many.";
    text.family("featurestore_connections_refused", Kind::Counter, help).value(&[], edge.refused.get() as f64);
    let help = "Requests and connections that were refused because they are no gRPC, by what they were.";
    text.family("featurestore_not_grpc", Kind::Counter, help);
    for (what, count) in edge.not_grpc.reading() {
        text.value(&[("what", what)], count as f64);
    }
    let help = "Calls and chunks of streams that were not let in, by reason.";
    text.family("featurestore_denied_calls", Kind::Counter, help);
    let denied = edge.gate.as_deref().map(Gate::denied).unwrap_or_default();
    for (reason, count) in REASONS.into_iter().zip(denied) {
        text.value(&[("reason", reason)], count as f64);
    }
    files(text, edge);
}

/// Nothing of a file that was not configured.
fn files(text: &mut Text, edge: &Edge) {
    let help = "When the certificate of tls.cert_file that is in use ends, since 1970.";
    text.family("featurestore_tls_certificate_not_after_seconds", Kind::Gauge, help);
    if let Some(tls) = &edge.tls {
        text.value(&[], tls.not_after() as f64);
    }
    let help = "Whether files that are read anew are bad now, so that what they held before is in use.";
    text.family("featurestore_reload_failing", Kind::Gauge, help);
    let failing =
        [("tls", edge.tls.as_ref().map(Tls::is_failing)), ("tokens", edge.gate.as_deref().map(Gate::is_failing))];
    for (file, failing) in failing {
        if let Some(failing) = failing {
            text.value(&[("file", file)], f64::from(failing));
        }
    }
}
