//! A collector of traces: OTLP over gRPC, as OpenTelemetry's own proto has it, that keeps what it is sent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Identity, Server, ServerTlsConfig},
};

pub struct Collector {
    port: u16,
    scheme: &'static str,
    received: Received,
    serving: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Received {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// What came with each of them: `authorization` and `grpc-encoding`.
    headers: Arc<Mutex<Vec<[Option<String>; 2]>>>,
}

/// One span, as a person would look at it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub trace_id: String,
    pub span_id: String,
    pub parent_id: String,
    pub trace_state: String,
    pub name: String,
    pub kind: SpanKind,
    pub status: StatusCode,
    pub began: u64,
    pub ended: u64,
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_at("http", Server::builder()).await
    }

    /// The same, with TLS.
    pub async fn start_with(identity: Identity) -> Self {
        let tls = ServerTlsConfig::new().identity(identity);
        Self::start_at("https", Server::builder().tls_config(tls).unwrap()).await
    }

    async fn start_at(scheme: &'static str, mut server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, received) = (listener.local_addr().unwrap().port(), Received::default());
        let service = TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
        let serving = tokio::spawn(async move {
            server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { port, scheme, received, serving }
    }

    /// What a server that sends its spans here, when it ends and not before, needs to be told.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint()), ("OTEL_BSP_SCHEDULE_DELAY", "3600000".to_owned())]
    }

    /// Where it takes spans.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Everything that was sent, as it came.
    pub fn received(&self) -> Vec<ExportTraceServiceRequest> {
        self.received.requests.lock().unwrap().clone()
    }

    /// What came with each request: `authorization` and `grpc-encoding`.
    pub fn headers(&self) -> Vec<[Option<String>; 2]> {
        self.received.headers.lock().unwrap().clone()
    }

    /// Forgets everything that was sent, and says how many spans that were.
    pub fn take(&self) -> usize {
        let received = std::mem::take(&mut *self.received.requests.lock().unwrap());
        let scopes = received.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.map(|scope| scope.spans.len()).sum()
    }

    /// The spans, in the order of their beginning.
    pub fn spans(&self) -> Vec<Seen> {
        let resources = self.received().into_iter().flat_map(|request| request.resource_spans);
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        let mut spans: Vec<Seen> = spans.map(Seen::from).collect();
        spans.sort_by_key(|span| span.began);
        spans
    }

    /// Who sent them.
    pub fn resource(&self) -> BTreeMap<String, String> {
        let request = self.received().remove(0);
        named(&request.resource_spans[0].resource.as_ref().unwrap().attributes)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        self.headers.lock().unwrap().push(["authorization", "grpc-encoding"].map(header));
        self.requests.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl From<Span> for Seen {
    fn from(span: Span) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_id: hex(&span.parent_span_id),
            trace_state: span.trace_state.clone(),
            kind: span.kind(),
            status: span.status.as_ref().map_or(StatusCode::Unset, |status| status.code()),
            began: span.start_time_unix_nano,
            ended: span.end_time_unix_nano,
            attributes: named(&span.attributes),
            name: span.name,
        }
    }
}

fn named(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}
