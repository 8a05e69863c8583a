//! Logs through tracing, and where a collector is configured traces over OTLP.

#[cfg(feature = "otel")]
mod otlp;

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::trace::{CALL_SPANS, Traces};

/// What was set up; `close` it at the end.
#[derive(Default)]
pub struct Telemetry {
    traces: Traces,
    #[cfg(feature = "otel")]
    exporter: Option<otlp::Exporter>,
}

impl Telemetry {
    /// Where the spans of calls go.
    pub fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Sends what is still on its way; nothing is traced any more.
    pub fn close(self) {
        #[cfg(feature = "otel")]
        drop(self.exporter);
    }
}

/// Starts logging to standard error. Traces are exported only where `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one for
/// traces) says where to; its other `OTEL_*` names work as the OpenTelemetry specification has them. Must be called
/// within a runtime.
pub fn init(json: bool, filter: &str) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {filter:?} is no filter: {error}"))?;
    // Whatever the log's level, lines of a traced call tell its trace id. Calls that are not traced have no such span.
    let filter = filter.or(Targets::new().with_target(CALL_SPANS, tracing::Level::INFO));
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let logs = if json { logs.json().with_span_list(false).boxed() } else { logs.boxed() };
    tracing_subscriber::registry().with(logs.with_filter(filter)).init();
    #[cfg(feature = "otel")]
    {
        let exporter = otlp::Exporter::from_environment()?;
        let traces = exporter.as_ref().map(otlp::Exporter::traces).unwrap_or_default();
        Ok(Telemetry { traces, exporter })
    }
    #[cfg(not(feature = "otel"))]
    Ok(Telemetry::default())
}
