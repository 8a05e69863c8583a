//! Keeps one call from harming the others:
//!
//! - Calls beyond a bound, or while too many bytes are in flight, are shed before any work, with
//!   RESOURCE_EXHAUSTED and a time to retry. Streams have places of their own (`streams`). The
//!   health service is never shed, except for its streams, so that a busy server does not look
//!   dead.
//! - A panic in a handler becomes INTERNAL, and the process continues.
//! - The status of a message that the codec rejects is replaced by one of ours.

use std::{
    convert::Infallible,
    future::{Future, Ready},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{
    FutureExt as _,
    future::{CatchUnwind, Either},
};
use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    bytes::{Receiving, Sending},
    streams::{self, ConnectionStreams, Life, Streams},
};
use crate::{
    api::{ByteBudget, ConnectionBytes, InFlight, Place, status},
    metrics::Counter,
    proto::Unpacked,
};

pub(super) const HEALTH: &str = "/grpc.health.v1.Health/";
/// The only one of our RPCs whose answer begins long before its work ends.
const BULK: &str = "/featurestore.v1.FeatureStoreService/BulkUpsert";
/// Writes continue when their calls are cancelled.
const WRITES: [&str; 2] =
    ["/featurestore.v1.FeatureStoreService/UpsertFeatures", "/featurestore.v1.FeatureStoreService/DeleteFeatures"];
/// The RPC whose answers are large. They may be refused when they are built, because nothing was
/// written.
const READ: &str = "/featurestore.v1.FeatureStoreService/GetFeatures";

/// Adds [`Guard`] to services; all of them share one bound.
#[derive(Clone, Debug)]
pub(super) struct GuardLayer {
    bounds: Arc<Bounds>,
    bytes: Arc<ByteBudget>,
}

#[derive(Debug)]
struct Bounds {
    places: Arc<Semaphore>,
    streams: Streams,
    shed: Counter,
    max_in_flight: usize,
    max_request_bytes: usize,
}

impl GuardLayer {
    /// Bounds calls and bytes over all connections. `closing` is cancelled when connections receive
    /// GOAWAY.
    pub(super) fn new(
        max_in_flight: usize,
        max_bytes_in_flight: usize,
        max_request_bytes: usize,
        closing: CancellationToken,
    ) -> Self {
        let max_in_flight = max_in_flight.min(Semaphore::MAX_PERMITS);
        let (places, streams) = (Arc::new(Semaphore::new(max_in_flight)), Streams::new(closing));
        let bounds = Bounds { places, streams, shed: Counter::default(), max_in_flight, max_request_bytes };
        Self { bounds: Arc::new(bounds), bytes: Arc::new(ByteBudget::new(max_bytes_in_flight)) }
    }

    pub(super) fn bytes(&self) -> &Arc<ByteBudget> {
        &self.bytes
    }

    /// Calls that occupy a place now.
    pub(super) fn in_flight(&self) -> usize {
        self.bounds.max_in_flight - self.bounds.places.available_permits()
    }

    pub(super) fn shed(&self) -> u64 {
        self.bounds.shed.get()
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.bounds.streams
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        let connection = Arc::new(ConnectionBytes::new(self.bytes.clone()));
        Guard { inner, bounds: self.bounds.clone(), connection, streams: Arc::default() }
    }
}

/// A service that sheds calls beyond the bounds, and survives panics.
#[derive(Clone, Debug)]
pub(super) struct Guard<S> {
    inner: S,
    bounds: Arc<Bounds>,
    connection: Arc<ConnectionBytes>,
    streams: Arc<ConnectionStreams>,
}

impl<S> Guard<S> {
    pub(super) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    pub(super) fn set_connection(&mut self, connection: Arc<ConnectionBytes>) {
        (self.connection, self.streams) = (connection, Arc::default());
    }

    /// Takes a place for a call of this path. The health service always gets one, except for its
    /// streams.
    fn place(&self, path: &str) -> Result<(Place, Option<Arc<Life>>), Status> {
        if let Some(kind) = streams::kind(path) {
            let life = self.bounds.streams.begin(kind, &self.streams).ok_or_else(status::too_many_streams)?;
            return match !path.starts_with(HEALTH) && self.connection.is_full() {
                true => Err(status::too_many_bytes()),
                false => Ok((Place::Stream(life.place().clone()), Some(life))),
            };
        }
        if path.starts_with(HEALTH) {
            return Ok((Place::None, None));
        }
        match self.bounds.places.clone().try_acquire_owned() {
            Ok(_) if self.connection.is_full() => Err(status::too_many_bytes()),
            Ok(place) => Ok((Place::Call(place), None)),
            Err(_) => {
                self.bounds.shed.add(1);
                Err(status::too_busy())
            }
        }
    }
}

type Answer = Result<Response<Body>, Infallible>;
type CountedAnswer = Result<Response<Sending>, Infallible>;

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<Receiving<B>>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Sending>;
    type Error = Infallible;
    type Future = Either<Guarded<S::Future>, Ready<CountedAnswer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let is_bulk = path == BULK;
        let is_write = is_bulk || WRITES.contains(&path);
        let is_read = path == READ;
        let may_be_refused = is_read;
        let (place, stream) = match self.place(path) {
            Ok(place) => place,
            Err(refused) => {
                let connection = self.connection.clone();
                let refused = refused.into_http().map(|body| Sending::new(body, connection, false, None));
                return Either::Right(std::future::ready(Ok(refused)));
            }
        };
        let place = InFlight::new(place, self.connection.clone());
        if is_write || is_read {
            // The service of a stream holds its place, and a write holds the bytes of its request.
            // A read counts what it holds.
            request.extensions_mut().insert(place.clone());
        }
        let is_packed = is_packed(request.headers());
        let unpacked = (is_packed || is_write || is_read).then(|| {
            let place = place.clone();
            Unpacked::new(is_packed, move |bytes| match place.receive(bytes) {
                true => Ok(()),
                false if bytes > place.most() => Err(status::unfolds_too_large(bytes, place.most())),
                false => Err(status::too_many_bytes()),
            })
        });
        if let (true, Some(unpacked)) = (is_bulk, &unpacked) {
            request.extensions_mut().insert(unpacked.clone());
        }
        let request = request.map(|body| Receiving::new(body, place.clone(), stream.clone()));
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let connection = self.connection.clone();
        let (place, max_request_bytes) = (Some(place), self.bounds.max_request_bytes);
        Either::Left(Guarded { answer, place, unpacked, stream, connection, may_be_refused, max_request_bytes })
    }
}

pin_project! {
    pub(super) struct Guarded<F> {
        #[pin]
        answer: CatchUnwind<AssertUnwindSafe<F>>,
        place: Option<InFlight>,
        // Only if messages are compressed, or become much larger when they are decoded.
        unpacked: Option<Unpacked>,
        // The answer holds it until its end.
        stream: Option<Arc<Life>>,
        connection: Arc<ConnectionBytes>,
        may_be_refused: bool,
        max_request_bytes: usize,
    }
}

impl<F: Future<Output = Answer>> Future for Guarded<F> {
    type Output = CountedAnswer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CountedAnswer> {
        let call = self.project();
        let answer = match call.unpacked {
            None => call.answer.poll(cx),
            Some(unpacked) => unpacked.within(|| call.answer.poll(cx)),
        };
        let answer = ready!(answer).unwrap_or_else(|panic| Ok(panicked(panic.as_ref()).into_http()));
        (*call.place, *call.unpacked) = (None, None);
        let stream = call.stream.take();
        let counted = |body| Sending::new(body, call.connection.clone(), *call.may_be_refused, stream);
        Poll::Ready(answer.map(|answer| reworded(answer, *call.max_request_bytes).map(counted)))
    }
}

/// Whether messages may be compressed; then their size is known only when they are decompressed.
fn is_packed(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity")
}

fn reworded(response: Response<Body>, max_request_bytes: usize) -> Response<Body> {
    let reworded =
        Status::from_header_map(response.headers()).and_then(|said| status::reworded(&said, max_request_bytes));
    reworded.map_or(response, Status::into_http)
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Status {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    status::internal(format!("a handler panicked: {}", text.unwrap_or("(no text)")))
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use tonic::Code;

    use super::*;

    /// Answers according to the path.
    #[derive(Clone)]
    struct Handler;

    impl Service<Request<Receiving<()>>> for Handler {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Receiving<()>>) -> Self::Future {
            let path = request.uri().path().to_owned();
            Box::pin(async move {
                match path.as_str() {
                    "/panic" => panic!("on purpose"),
                    "/hang" => std::future::pending().await,
                    _ => Ok(Status::new(Code::Ok, "").into_http()),
                }
            })
        }
    }

    async fn code(guard: &mut Guard<Handler>, path: &str) -> Code {
        let response = guard.call(Request::builder().uri(path).body(()).unwrap()).await.unwrap();
        Status::from_header_map(response.headers()).unwrap().code()
    }

    #[tokio::test]
    async fn what_is_too_much_is_shed_but_never_health() {
        let mut guard = GuardLayer::new(2, 1 << 20, 1, CancellationToken::new()).layer(Handler);
        let hangs = |guard: &mut Guard<Handler>| guard.call(Request::builder().uri("/hang").body(()).unwrap());
        let (one, two) = (hangs(&mut guard), hangs(&mut guard));
        assert_eq!(code(&mut guard, "/read").await, Code::ResourceExhausted);
        assert_eq!(code(&mut guard, "/grpc.health.v1.Health/Check").await, Code::Ok);
        drop(one);
        assert_eq!(code(&mut guard, "/read").await, Code::Ok);
        drop(two);
    }

    #[tokio::test]
    async fn while_too_many_bytes_are_in_flight_no_call_is_begun() {
        let layer = GuardLayer::new(2, 1000, 1, CancellationToken::new());
        let mut guard = layer.layer(Handler);
        let share = crate::api::Share::take(&Arc::new(ConnectionBytes::new(layer.bytes().clone())), 1000);
        assert_eq!(code(&mut guard, "/read").await, Code::ResourceExhausted);
        assert_eq!(code(&mut guard, "/grpc.health.v1.Health/Check").await, Code::Ok);
        assert_eq!(layer.in_flight(), 0);
        drop(share);
        assert_eq!(code(&mut guard, "/read").await, Code::Ok);
    }

    #[tokio::test]
    async fn a_panic_is_internal_and_gives_its_place_back() {
        let mut guard = GuardLayer::new(1, 1 << 20, 1, CancellationToken::new()).layer(Handler);
        assert_eq!(code(&mut guard, "/panic").await, Code::Internal);
        assert_eq!(code(&mut guard, "/read").await, Code::Ok);
    }
}
