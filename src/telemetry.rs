//! Logs through tracing, and where a collector is configured traces over OTLP.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Flushes what is on its way when it is dropped.
#[derive(Default)]
pub struct Telemetry {
    #[cfg(feature = "otel")]
    traces: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        #[cfg(feature = "otel")]
        if let Some(traces) = self.traces.take()
            && let Err(error) = traces.shutdown()
        {
            eprintln!("traces could not be flushed: {error}");
        }
    }
}

/// Starts logging to standard error. Traces are exported only where `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one for
/// traces) says where to; its other `OTEL_*` names work as the OpenTelemetry specification has them. Must be called
/// within a runtime.
pub fn init(json: bool, filter: &str) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {filter:?} is no filter: {error}"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let logs = if json { logs.json().boxed() } else { logs.boxed() };
    #[cfg(feature = "otel")]
    {
        let traces = otel::provider()?;
        let exported = traces.as_ref().map(otel::layer);
        tracing_subscriber::registry().with(exported).with(logs.with_filter(filter)).init();
        Ok(Telemetry { traces })
    }
    #[cfg(not(feature = "otel"))]
    {
        tracing_subscriber::registry().with(logs.with_filter(filter)).init();
        Ok(Telemetry::default())
    }
}

#[cfg(feature = "otel")]
mod otel {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_otlp::SpanExporter;
    use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
    use tracing::Subscriber;
    use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

    pub(super) fn provider() -> Result<Option<SdkTracerProvider>, String> {
        let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !named("OTEL_EXPORTER_OTLP_ENDPOINT") && !named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build();
        let exporter = exporter.map_err(|error| {
            format!("OTEL_EXPORTER_OTLP_ENDPOINT: must be as http://host:4317 or https://host:4317: {error}")
        })?;
        let resource = Resource::builder();
        let resource = if named("OTEL_SERVICE_NAME") { resource } else { resource.with_service_name("featurestore") };
        Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build()))
    }

    /// Spans of calls only: one a call, never one a key.
    pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let calls = Targets::new().with_target(crate::server::CALL_SPANS, tracing::Level::DEBUG);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("featurestore")).with_filter(calls)
    }
}
