//! The spans of operations on backends, with the names of OpenTelemetry's semantic conventions
//! 1.45.

use std::{
    fmt,
    pin::Pin,
    task::{Context as Waker, Poll, ready},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::Span;
use pin_project_lite::pin_project;

use super::{Asked, Failed, call::Maker};

pin_project! {
    /// An operation on a backend, with its span if the call is traced. The span ends with the
    /// answer, or when this is dropped.
    pub struct Spanned<F: Future> {
        #[pin]
        work: F,
        failed: fn(&F::Output) -> Option<Failed>,
        span: Option<Box<Span>>,
    }
}

impl<F: Future> fmt::Debug for Spanned<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spanned").field("span", &self.span).finish_non_exhaustive()
    }
}

/// Wraps an operation on a backend. For a traced call a span begins here; for other calls this is
/// the operation alone.
pub fn backend<'a, F: Future>(
    asked: impl FnOnce() -> Asked<'a>,
    failed: fn(&F::Output) -> Option<Failed>,
    work: F,
) -> Spanned<F> {
    let span = Context::map_current(|context| context.has_active_span().then(|| begin(context, asked())).flatten());
    Spanned { work, failed, span }
}

fn begin(context: &Context, asked: Asked<'_>) -> Option<Box<Span>> {
    let Maker(tracer) = context.get::<Maker>()?;
    let Asked { place, operation, collection, procedure, operations } = asked;
    let mut attributes = vec![
        KeyValue::new("db.system.name", place.system),
        KeyValue::new("db.operation.name", operation.clone()),
        KeyValue::new("db.namespace", place.namespace.clone()),
        KeyValue::new("server.address", place.address.clone()),
    ];
    attributes.extend(place.port.map(|port| KeyValue::new("server.port", i64::from(port))));
    attributes.extend(collection.map(|name| KeyValue::new("db.collection.name", name)));
    attributes.extend(procedure.map(|name| KeyValue::new("db.stored_procedure.name", name)));
    if operations > 1 {
        attributes.push(KeyValue::new("db.operation.batch.size", operations as i64));
    }
    let name = match (collection, place.port) {
        (Some(collection), _) => format!("{operation} {collection}"),
        (None, Some(port)) => format!("{operation} {}:{port}", place.address),
        (None, None) => format!("{operation} {}", place.address),
    };
    let span = SpanBuilder::from_name(name).with_kind(SpanKind::Client).with_attributes(attributes);
    Some(Box::new(tracer.build_with_context(span, context)))
}

impl<F: Future> Future for Spanned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<F::Output> {
        let this = self.project();
        let answer = ready!(this.work.poll(cx));
        if let Some(mut span) = this.span.take() {
            if let Some(Failed { kind, is_code }) = (this.failed)(&answer) {
                if is_code {
                    span.set_attribute(KeyValue::new("db.response.status_code", kind.clone()));
                }
                span.set_attribute(KeyValue::new("error.type", kind.clone()));
                span.set_status(Status::error(kind));
            }
            span.end();
        }
        Poll::Ready(answer)
    }
}
