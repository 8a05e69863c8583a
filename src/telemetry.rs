//! Logs through tracing, and where a collector is configured traces over OTLP.

mod lines;
#[cfg(feature = "otel")]
mod otlp;
mod panics;
mod say;

use std::{io::IsTerminal as _, sync::Arc};

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    metrics::LostLines,
    trace::{CALL_SPANS, Traces},
};

pub use lines::Lines;
pub use say::say;

/// What was set up; `close` it at the end.
pub struct Telemetry {
    lines: Lines,
    traces: Traces,
    #[cfg(feature = "otel")]
    exporter: Option<otlp::Exporter>,
}

impl Telemetry {
    /// Where the spans of calls go.
    pub fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Lines of the log that were lost.
    pub fn lost_lines(&self) -> Arc<LostLines> {
        self.lines.lost()
    }

    /// The log's way to standard error.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Sends the spans and writes the lines that are still on their way, as far as somebody takes them; nothing is traced
    /// any more.
    pub fn close(self) {
        #[cfg(feature = "otel")]
        drop(self.exporter);
        self.lines.flush();
    }
}

/// Starts logging to standard error, panics too. Traces are exported only where `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one
/// for traces) says where to; its other `OTEL_*` names work as the OpenTelemetry specification has them. Must be called
/// within a runtime.
pub fn init(json: bool, filter: &str) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {filter:?} is no filter: {error}"))?;
    // Whatever the log's level, lines of a traced call tell its trace id. Calls that are not traced have no such span.
    let filter = filter.or(Targets::new().with_target(CALL_SPANS, tracing::Level::INFO));
    let lines = Lines::to_standard_error().map_err(|error| format!("the log cannot be written: {error}"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(lines.clone()).with_ansi(std::io::stderr().is_terminal());
    let logs = if json { logs.json().with_span_list(false).boxed() } else { logs.boxed() };
    tracing_subscriber::registry().with(logs.with_filter(filter)).init();
    panics::log_to(lines.clone());
    #[cfg(feature = "otel")]
    {
        let exporter = otlp::Exporter::from_environment()?;
        let traces = exporter.as_ref().map(otlp::Exporter::traces).unwrap_or_default();
        Ok(Telemetry { lines, traces, exporter })
    }
    #[cfg(not(feature = "otel"))]
    Ok(Telemetry { lines, traces: Traces::default() })
}
