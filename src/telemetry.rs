//! Logs through `tracing`, and traces over OTLP if a collector is configured.

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

/// The log and the export of traces; `close` it at the end.
pub struct Telemetry {
    lines: Lines,
    traces: Traces,
    #[cfg(feature = "otel")]
    exporter: Option<otlp::Exporter>,
}

impl Telemetry {
    /// Exports the spans of calls.
    pub fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Counts the lines of the log that were lost.
    pub fn lost_lines(&self) -> Arc<LostLines> {
        self.lines.lost()
    }

    /// The queue of lines to standard error.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Sends the remaining spans and writes the remaining lines, within bounds. Nothing is traced
    /// afterwards.
    pub fn close(self) {
        #[cfg(feature = "otel")]
        drop(self.exporter);
        self.lines.flush();
    }
}

/// Starts the log to standard error, including panics. Traces are exported only if
/// `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one for traces) is set; the other `OTEL_*` variables work
/// as in the OpenTelemetry specification. Must be called within a runtime.
pub fn init(json: bool, filter: &str) -> Result<Telemetry, String> {
    let wrong = |error| format!("log.filter: {filter:?} is not a valid filter: {error}");
    let filter = EnvFilter::try_new(filter).map_err(wrong)?;
    // Lines of a traced call have its trace id, whatever the level of the log. Other calls have no
    // such span.
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
