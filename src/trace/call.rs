//! The span of a call. Code that works for the call finds it as the current context of its thread.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as Waker, Poll},
};

use http::HeaderMap;
use opentelemetry::{
    Context, ContextGuard, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracer};
use pin_project_lite::pin_project;
use tracing::Span;

use super::{
    CALL_SPANS,
    sampling::{Parent, Sampler},
};

/// Makes the spans of calls; by default none.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Exported>>);

struct Exported {
    tracer: SdkTracer,
    sampler: Sampler,
}

/// In the context of a traced call: makes the spans of its operations on backends.
pub(super) struct Maker(pub(super) SdkTracer);

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.0.as_ref().map(|exported| exported.sampler)).finish()
    }
}

impl Traces {
    /// Calls that the sampler picks go to the tracer, which must not sample again.
    pub fn new(tracer: SdkTracer, sampler: Sampler) -> Self {
        Self(Some(Arc::new(Exported { tracer, sampler })))
    }

    /// Begins the span of a call to the server at `at`. None: it is not traced.
    pub fn call(&self, method: &'static str, headers: &HeaderMap, at: SocketAddr) -> Option<Box<Trace>> {
        let exported = self.0.as_deref()?;
        exported.sampler.samples(Parent::of(headers)).then(|| exported.begin(method, headers, at))
    }
}

impl Exported {
    fn begin(&self, method: &'static str, headers: &HeaderMap, at: SocketAddr) -> Box<Trace> {
        let root = Context::new().with_value(Maker(self.tracer.clone()));
        let parent = TraceContextPropagator::new().extract_with_context(&root, &Headers(headers));
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("server.address", at.ip().to_string()),
            KeyValue::new("server.port", i64::from(at.port())),
        ];
        let span = SpanBuilder::from_name(method).with_kind(SpanKind::Server).with_attributes(attributes);
        let context = root.with_span(self.tracer.build_with_context(span, &parent));
        let log = {
            let span = context.span();
            let (trace_id, span_id) = (span.span_context().trace_id(), span.span_context().span_id());
            tracing::info_span!(target: CALL_SPANS, "call", method, %trace_id, %span_id)
        };
        Box::new(Trace { context, log })
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// A traced call.
#[derive(Clone, Debug)]
pub struct Trace {
    context: Context,
    /// The span for the log, whose lines get the trace id from it.
    log: Span,
}

/// While this lives, its thread works for the call.
#[expect(dead_code, reason = "held, not read")]
pub struct Entered<'a>(tracing::span::Entered<'a>, ContextGuard);

impl fmt::Debug for Entered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entered")
    }
}

impl Trace {
    /// Attributes to this call what the thread does while the guard lives.
    pub fn enter(&self) -> Entered<'_> {
        Entered(self.log.enter(), self.context.clone().attach())
    }

    /// Ends the span of the call. Work that continues for the call may still add spans.
    pub fn end(&self, code: &'static str, is_error: bool) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("rpc.response.status_code", code));
        if is_error {
            span.set_attribute(KeyValue::new("error.type", code));
            span.set_status(Status::error(code));
        }
        span.end();
    }
}

pin_project! {
    /// Work for a call in another task.
    pub struct Carried<F> {
        #[pin]
        work: F,
        trace: Option<Box<Trace>>,
    }
}

impl<F> fmt::Debug for Carried<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").field("trace", &self.trace).finish_non_exhaustive()
    }
}

/// Attributes the work of another task to the current call, if that is traced.
pub fn carried<F: Future>(work: F) -> Carried<F> {
    let trace = Context::map_current(|context| {
        context.has_active_span().then(|| Box::new(Trace { context: context.clone(), log: Span::current() }))
    });
    Carried { work, trace }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<F::Output> {
        let carried = self.project();
        let _entered = carried.trace.as_deref().map(Trace::enter);
        carried.work.poll(cx)
    }
}
