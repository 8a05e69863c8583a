//! Keeps one call from harming the others: calls beyond a bound are shed before any work, with RESOURCE_EXHAUSTED and
//! when to try again; a panic in a handler becomes INTERNAL and the process lives; a message that the codec found too large
//! is refused in our own words. The health service is exempt from shedding, so that a busy server is not taken for a dead
//! one.

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
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::api::{InFlight, status};

const HEALTH: &str = "/grpc.health.v1.Health/";
/// The only call of ours whose answer begins long before its work ends.
const BULK: &str = "/featurestore.v1.FeatureStoreService/BulkUpsert";

/// Makes [`Guard`]s that share one bound.
#[derive(Clone, Debug)]
pub(super) struct GuardLayer {
    places: Arc<Semaphore>,
    max_in_flight: usize,
    max_request_bytes: usize,
}

impl GuardLayer {
    /// At most so many calls at once, over all connections.
    pub(super) fn new(max_in_flight: usize, max_request_bytes: usize) -> Self {
        let max_in_flight = max_in_flight.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(max_in_flight)), max_in_flight, max_request_bytes }
    }

    /// Calls that hold a place now.
    pub(super) fn in_flight(&self) -> usize {
        self.max_in_flight - self.places.available_permits()
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, places: self.places.clone(), max_request_bytes: self.max_request_bytes }
    }
}

/// A service that sheds what is too much, and outlives panics.
#[derive(Clone, Debug)]
pub(super) struct Guard<S> {
    inner: S,
    places: Arc<Semaphore>,
    max_request_bytes: usize,
}

impl<S> Guard<S> {
    /// What it stands before.
    pub(super) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

type Answer = Result<Response<Body>, Infallible>;

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Guarded<S::Future>, Ready<Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let mut place = None;
        if !path.starts_with(HEALTH) {
            let Ok(permit) = self.places.clone().try_acquire_owned() else {
                return Either::Right(std::future::ready(Ok(status::too_busy().into_http())));
            };
            if path == BULK {
                // Whoever serves the stream keeps its place.
                request.extensions_mut().insert(InFlight::new(permit));
            } else {
                place = Some(permit);
            }
        }
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Either::Left(Guarded { answer, place, max_request_bytes: self.max_request_bytes })
    }
}

pin_project! {
    /// A call with its place.
    pub(super) struct Guarded<F> {
        #[pin]
        answer: CatchUnwind<AssertUnwindSafe<F>>,
        place: Option<OwnedSemaphorePermit>,
        max_request_bytes: usize,
    }
}

impl<F: Future<Output = Answer>> Future for Guarded<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let call = self.project();
        let answer = ready!(call.answer.poll(cx)).unwrap_or_else(|panic| Ok(panicked(panic.as_ref()).into_http()));
        *call.place = None;
        Poll::Ready(answer.map(|answer| reworded(answer, *call.max_request_bytes)))
    }
}

fn reworded(response: Response<Body>, max_request_bytes: usize) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => status::request_too_large(max_request_bytes).into_http(),
        _ => response,
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Status {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    status::internal(format!("a handler panicked: {}", text.unwrap_or("(no text)")))
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    /// Answers by what the path says.
    #[derive(Clone)]
    struct Handler;

    impl Service<Request<()>> for Handler {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
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
        let mut guard = GuardLayer::new(2, 1).layer(Handler);
        let hangs = |guard: &mut Guard<Handler>| guard.call(Request::builder().uri("/hang").body(()).unwrap());
        let (one, two) = (hangs(&mut guard), hangs(&mut guard));
        assert_eq!(code(&mut guard, "/read").await, Code::ResourceExhausted);
        assert_eq!(code(&mut guard, "/grpc.health.v1.Health/Check").await, Code::Ok);
        drop(one);
        assert_eq!(code(&mut guard, "/read").await, Code::Ok);
        drop(two);
    }

    #[tokio::test]
    async fn a_panic_is_internal_and_gives_its_place_back() {
        let mut guard = GuardLayer::new(1, 1).layer(Handler);
        assert_eq!(code(&mut guard, "/panic").await, Code::Internal);
        assert_eq!(code(&mut guard, "/read").await, Code::Ok);
    }
}
