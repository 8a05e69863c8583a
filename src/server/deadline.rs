//! Parses `grpc-timeout` of each call. The service bounds every call of a backend by the time that
//! is left, and answers DEADLINE_EXCEEDED; tonic's own timeout would answer CANCELLED. A timeout
//! that cannot be parsed is rejected, because the client relies on it.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::api::{ClientDeadline, status};

/// Adds [`Deadline`] to a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, std::future::Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match timeout(request.headers()) {
            Ok(None) => {}
            Ok(Some(timeout)) => {
                // A timeout beyond the range of the clock counts as none.
                if let Some(deadline) = Instant::now().checked_add(timeout) {
                    request.extensions_mut().insert(ClientDeadline(deadline));
                }
            }
            Err(()) => {
                return Either::Right(std::future::ready(Ok(status::bad_timeout().into_http())));
            }
        }
        Either::Left(self.inner.call(request))
    }
}

/// Parses the format of the gRPC specification: at most 8 digits and one of H, M, S, m, u, n.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ()> {
    let Some(header) = headers.get("grpc-timeout") else { return Ok(None) };
    let (unit, digits) = header.as_bytes().split_last().ok_or(())?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    let number: u64 = std::str::from_utf8(digits).map_err(|_| ())?.parse().map_err(|_| ())?;
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_has_them() {
        let read =
            |text: &str| timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(read("50m"), Ok(Some(Duration::from_millis(50))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(read("1n"), Ok(Some(Duration::from_nanos(1))));
        for bad in ["", "m", "1", "1x", "123456789m", "-1m", "1 m"] {
            assert_eq!(read(bad), Err(()), "{bad:?}");
        }
    }
}
