//! Sends spans to a collector, as the `OTEL_*` variables say.

mod variables;

use std::{
    fmt::Display,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{Compression, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::TelemetryResourceDetector,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler as EachOne, SdkTracerProvider, SpanData, TracerProviderBuilder,
    },
};
use tracing::subscriber::{NoSubscriber, with_default};

use self::variables::Variables;
use crate::trace::{Sampler, Traces};

const SCHEMA: &str = "https://opentelemetry.io/schemas/1.45.0";
/// The longest times that are accepted, in milliseconds.
const LONGEST: u64 = 24 * 3600 * 1000;
const LONGEST_QUEUE: u64 = 1 << 20;

/// Sends spans in batches, from a thread of its own; sends the last ones when it is dropped.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    sampler: Sampler,
}

impl Exporter {
    /// None: no collector is configured, or traces are switched off. Errors name the variables.
    pub(super) fn from_environment() -> Result<Option<Self>, String> {
        // The command has rejected values that are not UTF-8.
        let environment = std::env::vars_os();
        let environment =
            environment.filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        let mut variables = Variables::of(environment);
        let made = Self::of(&mut variables);
        for warning in variables.finish()? {
            tracing::warn!("{warning}");
        }
        Ok(made)
    }

    /// None also if something is wrong, which `variables` then knows.
    fn of(variables: &mut Variables) -> Option<Self> {
        if variables.is_true("OTEL_SDK_DISABLED") {
            return None;
        }
        let exporter = variables.text("OTEL_TRACES_EXPORTER");
        if exporter.as_ref().is_some_and(|exporter| exporter.eq_ignore_ascii_case("none")) {
            return None;
        }
        let endpoint = variables.exporter("ENDPOINT");
        if let Some(exporter) = exporter {
            if !exporter.eq_ignore_ascii_case("otlp") {
                let what = format!("{exporter:?} is not supported, so otlp is used; supported are otlp and none");
                variables.warn("OTEL_TRACES_EXPORTER", what);
            } else if endpoint.is_none() {
                let what = "nothing is traced, because OTEL_EXPORTER_OTLP_ENDPOINT is not set";
                variables.warn("OTEL_TRACES_EXPORTER", what);
            }
        }
        let (name, endpoint) = endpoint?;
        let place = Endpoint::parse(&name, &endpoint, variables);
        // All variables are read, so that one start reports every error.
        let (headers, tls) = (headers(variables), tls(variables, place.as_ref().is_some_and(|place| place.is_tls)));
        let timeout = variables.exporter_number("TIMEOUT", 1..=LONGEST).map(Duration::from_millis);
        let compression = compression(variables);
        if let Some((name, protocol)) = variables.exporter("PROTOCOL")
            && protocol != "grpc"
        {
            variables.warn(&name, format!("{protocol} is not supported: spans are sent by grpc, mostly to port 4317"));
        }
        let (sampler, batches, resource) = (sampler(variables), batches(variables), resource(variables));
        let limits = ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"];
        let limits = limits.map(|name| variables.number(name, 0..=u64::from(u32::MAX)).map(|limit| limit as u32));
        variables.warn_of_unknown();
        let place = place?;
        // The SDK reads the environment too, and logs complaints about values that are not used.
        with_default(NoSubscriber::new(), || {
            let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(place.url).with_metadata(headers?);
            exporter = match tls? {
                Some(tls) => exporter.with_tls_config(tls),
                None => exporter,
            };
            exporter = timeout.into_iter().fold(exporter, |exporter, timeout| exporter.with_timeout(timeout));
            exporter = compression.into_iter().fold(exporter, |exporter, kind| exporter.with_compression(kind));
            let exporter = match exporter.build() {
                Ok(exporter) => exporter,
                Err(error) => {
                    variables.wrong(&name, format!("spans cannot be sent there: {error}"));
                    return None;
                }
            };
            let processor = BatchSpanProcessor::builder(LossLogger::new(exporter));
            let processor = processor.with_batch_config(batches.build()).build();
            // Only calls that our sampler has picked become spans.
            let provider = SdkTracerProvider::builder().with_sampler(EachOne::AlwaysOn).with_span_processor(processor);
            let provider = limited(provider, limits).with_resource(resource);
            Some(Self { provider: provider.build(), sampler })
        })
    }

    pub(super) fn traces(&self) -> Traces {
        let scope = InstrumentationScope::builder("featurestore").with_version(env!("CARGO_PKG_VERSION"));
        let tracer = self.provider.tracer_with_scope(scope.with_schema_url(SCHEMA).build());
        Traces::new(tracer, self.sampler)
    }
}

struct Endpoint {
    url: String,
    is_tls: bool,
}

impl Endpoint {
    /// The text is never shown, because it may contain a password.
    fn parse(name: &str, text: &str, variables: &mut Variables) -> Option<Self> {
        let mut wrong = |what: &dyn Display| {
            variables.wrong(name, format!("must have the form http://host:4317 or https://host:4317: {what}"));
            None
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return wrong(&"it does not begin with http:// or https://");
        };
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https") {
            return wrong(&"it does not begin with http:// or https://");
        }
        if rest.contains('@') {
            return wrong(
                &"it must have no user and password, because gRPC does not send them: put what the collector requires \
                  into OTEL_EXPORTER_OTLP_HEADERS, for example authorization=Basic%20...",
            );
        }
        let uri = format!("{scheme}://{rest}").parse::<Uri>().ok();
        let parts = uri.as_ref().and_then(|uri| Some((uri.authority()?.as_str(), uri.host()?, uri.port_u16(), uri)));
        let Some((authority, host, port, uri)) = parts else {
            return wrong(&"what follows the scheme is not a host and a port");
        };
        let is_port = authority == host || port.is_some_and(|port| port > 0);
        if host.is_empty() || !is_port {
            return wrong(&"what follows the scheme is not a host and a port");
        }
        if !matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("/")) {
            variables.warn(name, "the path in it is not used, because gRPC has its own path");
        }
        Some(Self { url: format!("{scheme}://{authority}"), is_tls: scheme == "https" })
    }
}

/// The headers that are sent with each batch. None: they cannot be sent.
fn headers(variables: &mut Variables) -> Option<MetadataMap> {
    let Some((name, text)) = variables.exporter("HEADERS") else { return Some(MetadataMap::new()) };
    let pairs = match Variables::pairs(&text) {
        Ok(pairs) => pairs,
        Err(why) => {
            variables.wrong(&name, why);
            return None;
        }
    };
    let mut headers = HeaderMap::new();
    for (at, (header, value)) in pairs.into_iter().enumerate() {
        // The value is not shown, because in most cases it is secret; nor is the name, in case they
        // were swapped.
        match (HeaderName::from_bytes(header.as_bytes()), HeaderValue::from_str(&value)) {
            (Ok(header), Ok(value)) => _ = headers.append(header, value),
            _ => {
                let why =
                    format!("entry number {} is not a valid header: its name or its value has a bad character", at + 1);
                variables.wrong(&name, why);
                return None;
            }
        }
    }
    Some(MetadataMap::from_headers(headers))
}

/// Some(None): TLS is not used. None: one of its files is missing.
#[allow(clippy::option_option, reason = "what is wrong is no setting, and is not the absence of one")]
fn tls(variables: &mut Variables, is_tls: bool) -> Option<Option<ClientTlsConfig>> {
    const CERTIFICATE: &str = "BEGIN CERTIFICATE";
    let files = [("CERTIFICATE", CERTIFICATE), ("CLIENT_CERTIFICATE", CERTIFICATE), ("CLIENT_KEY", "PRIVATE KEY")];
    let files = files.map(|(option, wanted)| variables.exporter(option).map(|(name, path)| (name, path, wanted)));
    if !is_tls {
        for (name, ..) in files.into_iter().flatten() {
            variables.warn(&name, "is not used, because the endpoint does not begin with https");
        }
        return Some(None);
    }
    let mut read = |(name, path, wanted): (String, String, &str)| match std::fs::read(&path) {
        Ok(pem) if String::from_utf8_lossy(&pem).contains(wanted) => Some((name, pem)),
        Ok(_) => {
            variables.wrong(&name, format!("{path} holds no {wanted} in PEM"));
            None
        }
        Err(error) => {
            variables.wrong(&name, format!("{path} cannot be read: {error}"));
            None
        }
    };
    let wanted = files.iter().flatten().count();
    let [ca, certificate, key] = files.map(|file| file.and_then(&mut read));
    if [&ca, &certificate, &key].into_iter().flatten().count() < wanted {
        return None;
    }
    let tls = match ca {
        Some((_, pem)) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_enabled_roots(),
    };
    match (certificate, key) {
        (Some((_, certificate)), Some((_, key))) => Some(Some(tls.identity(Identity::from_pem(certificate, key)))),
        (None, None) => Some(Some(tls)),
        (Some((name, _)), None) | (None, Some((name, _))) => {
            variables.wrong(&name, "a client certificate needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY");
            None
        }
    }
}

fn compression(variables: &mut Variables) -> Option<Compression> {
    let (name, text) = variables.exporter("COMPRESSION")?;
    match text.to_ascii_lowercase().as_str() {
        "gzip" => Some(Compression::Gzip),
        "none" => None,
        _ => {
            variables.warn(&name, format!("{text:?} is not supported, so none is used; supported are gzip and none"));
            None
        }
    }
}

fn sampler(variables: &mut Variables) -> Sampler {
    let (name, arg) = (variables.text("OTEL_TRACES_SAMPLER"), variables.text("OTEL_TRACES_SAMPLER_ARG"));
    let (sampler, wrong) = Sampler::parse(name.as_deref(), arg.as_deref());
    variables.warn_all(wrong);
    sampler
}

fn batches(variables: &mut Variables) -> BatchConfigBuilder {
    let queue = variables.number("OTEL_BSP_MAX_QUEUE_SIZE", 1..=LONGEST_QUEUE).unwrap_or(2048);
    let delay = variables.number("OTEL_BSP_SCHEDULE_DELAY", 1..=LONGEST).unwrap_or(5000);
    let batch = variables.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1..=queue).unwrap_or(512.min(queue));
    let config = BatchConfigBuilder::default().with_max_queue_size(queue as usize);
    config.with_scheduled_delay(Duration::from_millis(delay)).with_max_export_batch_size(batch as usize)
}

/// Sets the bounds of the attributes, events and links of a span.
fn limited(provider: TracerProviderBuilder, limits: [Option<u32>; 3]) -> TracerProviderBuilder {
    let [attributes, events, links] = limits;
    let provider = attributes.into_iter().fold(provider, TracerProviderBuilder::with_max_attributes_per_span);
    let provider = events.into_iter().fold(provider, TracerProviderBuilder::with_max_events_per_span);
    links.into_iter().fold(provider, TracerProviderBuilder::with_max_links_per_span)
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans could not be sent to the collector");
        }
    }
}

/// Logs when the collector is lost and when it is back, and not at every batch meanwhile.
#[derive(Debug)]
struct LossLogger {
    exporter: SpanExporter,
    is_lost: AtomicBool,
}

impl LossLogger {
    fn new(exporter: SpanExporter) -> Self {
        Self { exporter, is_lost: AtomicBool::new(false) }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for LossLogger {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = opentelemetry_sdk::trace::SpanExporter::export(&self.exporter, batch).await;
        match (&sent, self.is_lost.swap(sent.is_err(), Relaxed)) {
            (Ok(()), false) | (Err(_), true) => {}
            (Ok(()), true) => tracing::info!("spans reach the collector again"),
            (Err(error), false) => {
                tracing::warn!(
                    %error,
                    "spans do not reach the collector (OTEL_EXPORTER_OTLP_ENDPOINT); they are dropped until they do"
                );
            }
        }
        // It was logged here; the SDK would log it each time.
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The attributes of this service. `OTEL_RESOURCE_ATTRIBUTES` wins over them, and
/// `OTEL_SERVICE_NAME` over that.
fn resource(variables: &mut Variables) -> Resource {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let ours = [
        KeyValue::new("service.name", "featurestore"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", random_uuid()),
    ];
    let resource = Resource::builder_empty().with_attributes(ours).with_detector(Box::new(TelemetryResourceDetector));
    let attributes = match variables.text(ATTRIBUTES).map(|text| Variables::pairs(&text)) {
        Some(Ok(attributes)) => attributes,
        Some(Err(why)) => {
            variables.warn(ATTRIBUTES, format!("{why}; so the variable is not used"));
            Vec::new()
        }
        None => Vec::new(),
    };
    let resource = resource.with_attributes(attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)));
    match variables.text("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

fn random_uuid() -> String {
    let random = rand::random::<u128>() & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{random:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> (Option<String>, String) {
        let mut variables = Variables::default();
        let url = Endpoint::parse("NAME", text, &mut variables).map(|endpoint| endpoint.url);
        let told = variables.finish().map_or_else(|wrong| wrong, |warnings| warnings.join("\n"));
        (url, told)
    }

    #[test]
    fn an_endpoint_is_a_scheme_a_host_and_a_port_and_is_never_shown() {
        for (text, url) in [
            ("http://h:4317", "http://h:4317"),
            ("HTTPS://h/", "https://h"),
            ("http://[::1]:4317", "http://[::1]:4317"),
        ] {
            assert_eq!(endpoint(text), (Some(url.to_owned()), String::new()), "{text}");
        }
        let (url, told) = endpoint("http://h:4317/v1/canary");
        assert!(url.unwrap() == "http://h:4317" && told.contains("path") && !told.contains("canary"), "{told}");
        for text in [
            "canary:4317",
            "grpc://canary:4317",
            "http://",
            "http://:4317",
            "http://u:canary@h:4317",
            "http://u:can/canary@h:4317",
            "http://canary h:4317",
            "http://canary:port",
            "http://canary:0",
            "http://canary:99999",
            "http://canary:",
        ] {
            let (url, told) = endpoint(text);
            assert!(url.is_none() && told.starts_with("NAME: must have the form http://host:4317"), "{text}: {told}");
            assert!(!told.contains("canary"), "{told}");
        }
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused_without_their_values() {
        let read = |text: &str| {
            let pair = ("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), text.to_owned());
            let mut variables = Variables::of([pair]);
            let headers = headers(&mut variables).map(MetadataMap::into_headers);
            (headers, variables.finish().map_or_else(|wrong| wrong, |_| String::new()))
        };
        let (sent, told) = read("authorization=Basic%20canary,x-more=a=b\n");
        assert_eq!((sent.unwrap()["authorization"].to_str().unwrap(), told.as_str()), ("Basic canary", ""));
        for text in ["canary", "a=b,canary", "can ary=x", "a=canary%0A", "a=canary%2"] {
            let (sent, told) = read(text);
            assert!(sent.is_none() && told.starts_with("OTEL_EXPORTER_OTLP_HEADERS: "), "{text}: {told}");
            assert!(!told.contains("canary"), "{told}");
        }
    }
}
