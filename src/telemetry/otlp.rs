//! Sending spans to a collector, as the `OTEL_*` variables say.

use std::{
    fmt::Display,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{Sampler as EachOne, SdkTracerProvider, SpanData},
};

use crate::trace::{Sampler, Traces};

/// Of the semantic conventions.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.45.0";

/// Sends spans in batches, from a thread of its own; sends the last ones when it is dropped.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    sampler: Sampler,
}

impl Exporter {
    /// None: nobody said where to, or that nothing be sent.
    pub(super) fn from_environment() -> Result<Option<Self>, String> {
        let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        // The one for traces wins over that for everything.
        let winner = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
        let endpoint = winner(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let Some((name, endpoint)) = endpoint.filter(|_| !is_off) else { return Ok(None) };
        let wrong = |what: &dyn Display| format!("{name}: must be as http://host:4317 or https://host:4317: {what}");
        // Without one nothing would ever be sent. Not shown as it is: there may be a password in it.
        let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if !matches!(scheme.as_deref(), Some("http" | "https")) {
            return Err(wrong(&"the scheme is missing, or another one"));
        }
        let exporter = SpanExporter::builder().with_tonic().build().map_err(|error| wrong(&error))?;
        match winner(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]) {
            Some((name, protocol)) if protocol != "grpc" => {
                tracing::warn!("{name}: {protocol} is not spoken: spans go by grpc, mostly to port 4317");
            }
            _ => {}
        }
        let (name, arg) = (variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG"));
        let (sampler, wrong) = Sampler::parse(name.as_deref(), arg.as_deref());
        if let Some(wrong) = wrong {
            tracing::warn!("{wrong}");
        }
        // Only what our sampler has picked ever becomes a span.
        let provider =
            SdkTracerProvider::builder().with_sampler(EachOne::AlwaysOn).with_batch_exporter(Told::new(exporter));
        Ok(Some(Self { provider: provider.with_resource(resource()).build(), sampler }))
    }

    pub(super) fn traces(&self) -> Traces {
        let scope = InstrumentationScope::builder("featurestore").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = self.provider.tracer_with_scope(scope.with_schema_url(SCHEMA).build());
        Traces::new(tracer, self.sampler)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans could not be sent to the collector");
        }
    }
}

/// Tells the log when the collector is lost and when it is back, and not with every batch meanwhile.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    is_lost: AtomicBool,
}

impl Told {
    fn new(exporter: SpanExporter) -> Self {
        Self { exporter, is_lost: AtomicBool::new(false) }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = opentelemetry_sdk::trace::SpanExporter::export(&self.exporter, batch).await;
        match (&sent, self.is_lost.swap(sent.is_err(), Relaxed)) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => tracing::info!("spans reach the collector again"),
            (Err(error), false) => {
                tracing::warn!(%error, "spans do not reach the collector (OTEL_EXPORTER_OTLP_ENDPOINT) and are lost until they do");
            }
        }
        // It was told; the SDK would tell it each time.
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Who we are; what `OTEL_RESOURCE_ATTRIBUTES` says wins, and `OTEL_SERVICE_NAME` over that.
fn resource() -> Resource {
    let ours = [
        KeyValue::new("service.name", "featurestore"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", random_uuid()),
    ];
    let resource = Resource::builder_empty().with_attributes(ours);
    let resource =
        resource.with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Of version 4.
fn random_uuid() -> String {
    let random = rand::random::<u128>() & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{random:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Empty is unset, as the specification has it.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
