//! Admits only gRPC calls: a POST with the content type of gRPC. Anything else is answered with 405
//! or 415, before its body is read and before its token is checked.
//!
//! This keeps web pages out: a browser sends a form, plain text or a GET to any server without
//! asking it, with the client certificate of its user. For `application/grpc` it asks first (CORS),
//! and gets no permission here. The header `origin` is not checked, because proxies that speak
//! gRPC-Web to browsers pass it on.

use std::{
    convert::Infallible,
    future::Ready,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use tower::Service;

use super::{
    bytes::Sending,
    calls::Answer,
    refusals::{NotGrpc, Refusals},
};
use crate::api::ConnectionBytes;

#[derive(Clone, Debug)]
pub(super) struct OnlyGrpc<S> {
    inner: S,
    refusals: Arc<Refusals>,
    connection: Arc<ConnectionBytes>,
}

impl<S> OnlyGrpc<S> {
    pub(super) fn new(inner: S, refusals: Arc<Refusals>, connection: Arc<ConnectionBytes>) -> Self {
        Self { inner, refusals, connection }
    }

    pub(super) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    pub(super) fn set_connection(&mut self, connection: Arc<ConnectionBytes>) {
        self.connection = connection;
    }
}

type CallAnswer = Result<Response<Answer<Sending>>, Infallible>;

impl<S, B> Service<Request<B>> for OnlyGrpc<S>
where
    S: Service<Request<B>, Response = Response<Answer<Sending>>, Error = Infallible>,
{
    type Response = Response<Answer<Sending>>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<CallAnswer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match check(request.method(), request.headers()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(what) => {
                self.refusals.count(what);
                let has_body = request.method() != Method::HEAD;
                let body = |words: String| {
                    let words = if has_body { words } else { String::new() };
                    Answer::uncounted(Sending::words(words, self.connection.clone()))
                };
                Either::Right(std::future::ready(Ok(refusal(what).map(body))))
            }
        }
    }
}

pub(super) fn check(method: &Method, headers: &HeaderMap) -> Result<(), NotGrpc> {
    if method != Method::POST {
        return Err(NotGrpc::Method);
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (Some(of), None) if is_grpc(of.as_bytes()) => Ok(()),
        _ => Err(NotGrpc::ContentType),
    }
}

/// The content types of gRPC over HTTP/2, of which only protobuf is supported. Parameters are
/// ignored, as other gRPC servers do.
fn is_grpc(content_type: &[u8]) -> bool {
    let of = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    of.eq_ignore_ascii_case(b"application/grpc") || of.eq_ignore_ascii_case(b"application/grpc+proto")
}

pub(super) fn refusal(what: NotGrpc) -> Response<String> {
    let mut response = Response::new(format!("{}\n", what.words()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = match what {
        NotGrpc::Method => {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            StatusCode::METHOD_NOT_ALLOWED
        }
        _ => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: Method, types: &[&'static str]) -> Result<(), NotGrpc> {
        let headers = types.iter().map(|of| (CONTENT_TYPE, HeaderValue::from_static(of)));
        let mut all = HeaderMap::new();
        headers.for_each(|(name, of)| _ = all.append(name, of));
        check(&method, &all)
    }

    #[test]
    fn only_a_post_of_grpc_is_a_call() {
        for grpc in ["application/grpc", "application/grpc+proto", "Application/gRPC", "application/grpc;charset=utf-8"]
        {
            assert_eq!(checked(Method::POST, &[grpc]), Ok(()), "{grpc}");
            for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::HEAD, Method::CONNECT] {
                assert_eq!(checked(method, &[grpc]), Err(NotGrpc::Method), "{grpc}");
            }
        }
        let others = [
            "text/plain",
            "text/plain; application/grpc",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json",
            "application/grpc+json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            " application/grpc",
            "",
        ];
        for other in others {
            assert_eq!(checked(Method::POST, &[other]), Err(NotGrpc::ContentType), "{other}");
        }
        assert_eq!(checked(Method::POST, &[]), Err(NotGrpc::ContentType));
        assert_eq!(checked(Method::POST, &["application/grpc", "text/plain"]), Err(NotGrpc::ContentType));
    }
}
