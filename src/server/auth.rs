//! Admits the callers that the tokens file knows, and adds the caller to the request. Without a
//! tokens file all calls pass. The caller's right on a feature view is checked in `api`, where the
//! view is known.

use std::{
    convert::Infallible,
    future::Ready,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response, header::AUTHORIZATION};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{access::gate::Gate, api::status};

/// Adds [`Auth`] to a service.
#[derive(Clone, Debug)]
pub(super) struct AuthLayer(pub(super) Option<Arc<Gate>>);

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, gate: self.0.clone(), peer: None }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Auth<S> {
    inner: S,
    /// None: no tokens file is configured.
    gate: Option<Arc<Gate>>,
    /// The address of the client, for the log.
    peer: Option<SocketAddr>,
}

impl<S> Auth<S> {
    pub(super) fn set_peer(&mut self, peer: Option<SocketAddr>) {
        self.peer = peer;
    }
}

impl<S, B> Service<Request<B>> for Auth<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(gate) = &self.gate {
            let authorization = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
            match gate.admit(request.uri().path(), authorization, self.peer) {
                Ok(None) => {}
                Ok(Some(access)) => _ = request.extensions_mut().insert(access),
                Err(denied) => {
                    return Either::Right(std::future::ready(Ok(status::denied(denied).into_http())));
                }
            }
        }
        Either::Left(self.inner.call(request))
    }
}
