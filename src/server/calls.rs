//! The duration and the code of each call, for the metrics, and its span if it is traced.
//!
//! This is the outermost layer, so that calls that other layers refuse count too. A call ends with
//! the last piece of its answer, or when its client cancels it, which counts as CANCELLED.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::{
    metrics::{Distribution, Histogram},
    trace::{Trace, Traces},
};

const OURS: &str = "featurestore.v1.FeatureStoreService/";

/// The methods by their names in the protocol, ours first; the last one stands for all others.
const METHODS: [&str; 10] = [
    "featurestore.v1.FeatureStoreService/GetFeatures",
    "featurestore.v1.FeatureStoreService/UpsertFeatures",
    "featurestore.v1.FeatureStoreService/BulkUpsert",
    "featurestore.v1.FeatureStoreService/DeleteFeatures",
    "featurestore.v1.FeatureStoreService/Info",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "_OTHER",
];
const OTHER: usize = METHODS.len() - 1;

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Durations of calls since the start, by method and code.
#[derive(Debug)]
pub(super) struct CallMeter([[OnceLock<Histogram>; CODES.len()]; METHODS.len()]);

impl Default for CallMeter {
    fn default() -> Self {
        let meter = Self(Default::default());
        // These series exist from the start: a series that appears with the value 1 has not
        // increased, so a rate would miss the first call, and an alert the first bug.
        METHODS.iter().zip(&meter.0).filter(|(name, _)| name.starts_with(OURS)).for_each(|(_, by_code)| {
            for code in [Code::Ok, Code::Internal] {
                by_code[code as usize].get_or_init(Histogram::default);
            }
        });
        meter
    }
}

impl CallMeter {
    fn note(&self, method: usize, code: Code, began: Instant) {
        self.0[method][code as usize].get_or_init(Histogram::default).note(began.elapsed());
    }

    pub(super) fn durations(&self) -> impl Iterator<Item = (&'static str, &'static str, Distribution)> {
        METHODS.into_iter().zip(&self.0).flat_map(|(method, by_code)| {
            let codes = CODES.into_iter().zip(by_code);
            codes.filter_map(move |(code, took)| Some((method, code, took.get()?.distribution())))
        })
    }
}

#[derive(Debug)]
struct Shared {
    meter: Arc<CallMeter>,
    traces: Traces,
    /// The address of the gRPC port.
    address: SocketAddr,
}

/// Adds [`Calls`] to services; all of them count together.
#[derive(Clone, Debug)]
pub(super) struct CallsLayer(Arc<Shared>);

impl CallsLayer {
    pub(super) fn new(meter: Arc<CallMeter>, traces: Traces, address: SocketAddr) -> Self {
        Self(Arc::new(Shared { meter, traces, address }))
    }
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, shared: self.0.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Calls<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Calls<S> {
    pub(super) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S, B, A> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<A>, Error = Infallible>,
{
    type Response = Response<Answer<A>>;
    type Error = Infallible;
    type Future = Called<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = method(request.uri().path());
        let name = METHODS[method];
        let is_ours = name.starts_with(OURS);
        let trace = is_ours.then(|| self.shared.traces.call(name, request.headers(), self.shared.address)).flatten();
        let call = Call { shared: self.shared.clone(), method, code: None, began: Instant::now(), trace };
        let answer = {
            let _entered = call.trace.as_deref().map(Trace::enter);
            self.inner.call(request)
        };
        Called { answer, call: Some(call) }
    }
}

fn method(path: &str) -> usize {
    let name = path.strip_prefix('/').unwrap_or_default();
    METHODS[..OTHER].iter().position(|method| *method == name).unwrap_or(OTHER)
}

/// A call; it ends when this is dropped.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    method: usize,
    /// None: no status was sent yet.
    code: Option<Code>,
    began: Instant,
    trace: Option<Box<Trace>>,
}

impl Call {
    fn learn(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.shared.meter.note(self.method, code, self.began);
        if let Some(trace) = &self.trace {
            // The codes that are errors of the server, by the semantic conventions.
            let is_error = matches!(
                code,
                Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::Unimplemented
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            );
            trace.end(CODES[code as usize], is_error);
        }
    }
}

pin_project! {
    pub(super) struct Called<F> {
        #[pin]
        answer: F,
        call: Option<Call>,
    }
}

impl<F: Future<Output = Result<Response<A>, Infallible>>, A> Future for Called<F> {
    type Output = Result<Response<Answer<A>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = {
            let trace = this.call.as_ref().and_then(|call| call.trace.as_deref());
            let _entered = trace.map(Trace::enter);
            let Ok(response) = ready!(this.answer.poll(cx));
            response
        };
        let mut call = this.call.take();
        if let Some(call) = &mut call {
            // A refused call has no body, and its code is in the headers.
            call.learn(response.headers());
        }
        Poll::Ready(Ok(response.map(|body| Answer { body, call })))
    }
}

pin_project! {
    pub(super) struct Answer<A> {
        #[pin]
        body: A,
        call: Option<Call>,
    }
}

impl<A> Answer<A> {
    /// The answer to a request that is not a call.
    pub(super) fn uncounted(body: A) -> Self {
        Self { body, call: None }
    }

    pub(super) fn body(&self) -> &A {
        &self.body
    }
}

impl<A: HttpBody<Error = Status>> HttpBody for Answer<A> {
    type Data = A::Data;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<A::Data>, Status>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        let is_last = match &frame {
            Some(Ok(frame)) => match (frame.trailers_ref(), &mut *this.call) {
                (Some(trailers), Some(call)) => {
                    call.learn(trailers);
                    true
                }
                (trailers, _) => trailers.is_some(),
            },
            Some(Err(status)) => {
                this.call.iter_mut().for_each(|call| call.code = Some(status.code()));
                true
            }
            None => {
                this.call.iter_mut().for_each(|call| call.code = call.code.or(Some(Code::Unknown)));
                true
            }
        };
        if is_last {
            *this.call = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use prost::Message as _;
    use tonic::body::Body;

    use super::*;

    #[test]
    fn every_method_of_the_api_has_its_place() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
        let ours = set.file.iter().filter(|file| file.package() == "featurestore.v1").flat_map(|file| &file.service);
        let names = ours.flat_map(|service| {
            service.method.iter().map(|method| format!("featurestore.v1.{}/{}", service.name(), method.name()))
        });
        let names: BTreeSet<String> = names.collect();
        let known = METHODS.into_iter().filter(|name| name.starts_with(OURS)).map(str::to_owned);
        assert_eq!(names, known.collect());
        assert_eq!(METHODS[method("/featurestore.v1.FeatureStoreService/BulkUpsert")], METHODS[2]);
        assert_eq!(METHODS[method("/somewhere/else")], "_OTHER");
        assert_eq!(CODES[Code::Unauthenticated as usize], "UNAUTHENTICATED");
    }

    /// Answers according to the path.
    #[derive(Clone)]
    struct Handler;

    impl Service<Request<()>> for Handler {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let well =
                http_body_util::Full::new(Bytes::from_static(b"row")).with_trailers(async { Some(Ok(trailers)) });
            std::future::ready(Ok(match request.uri().path() {
                "/refused" => Status::new(Code::Aborted, "").into_http(),
                _ => Response::new(Body::new(well)),
            }))
        }
    }

    #[tokio::test]
    async fn a_call_ends_with_its_trailers_its_refusal_or_when_nobody_wants_it() {
        let meter = Arc::new(CallMeter::default());
        let mut calls = CallsLayer::new(meter.clone(), Traces::default(), ([127, 0, 0, 1], 1).into()).layer(Handler);
        let mut call = |path: &str| calls.call(Request::builder().uri(path).body(()).unwrap());
        let answer = call("/well").await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "row");
        drop(call("/refused").await.unwrap());
        drop(call("/left-before-the-answer"));
        let mut left = call("/left").await.unwrap().into_body();
        left.frame().await;
        drop(left);
        let counted: Vec<_> = meter.durations().map(|(method, code, took)| (method, code, took.count())).collect();
        let others: Vec<_> = counted.into_iter().filter(|(method, _, _)| *method == "_OTHER").collect();
        assert_eq!(others, [("_OTHER", "OK", 1), ("_OTHER", "CANCELLED", 2), ("_OTHER", "ABORTED", 1)]);
    }
}
