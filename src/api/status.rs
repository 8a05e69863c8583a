//! The only place where a failure gets its form in the protocol: the `tonic::Status` of a call with
//! its google.rpc details, or the `Error` of a row or an item.

use std::fmt::Display;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::failure::Failure;
use crate::{access::Denied, proto::Error};

/// The domain of every google.rpc.ErrorInfo.
pub const ERROR_DOMAIN: &str = "featurestore.v1";

/// TOO_BUSY: the server has too many calls in flight.
pub fn too_busy() -> Status {
    Failure::too_busy().into()
}

/// TOO_BUSY: the server, or the connection, has too many streams of this kind.
pub fn too_many_streams() -> Status {
    Failure::too_many_streams().into()
}

/// The status of a denied call.
pub fn denied(denied: Denied) -> Status {
    Failure::from(denied).into()
}

/// TOO_BUSY: the server, or the connection, has too many bytes in flight.
pub fn too_many_bytes() -> Status {
    Failure::too_many_bytes().into()
}

/// REQUEST_TOO_LARGE: the request takes more bytes in memory than one connection may ever hold.
pub fn unfolds_too_large(bytes: usize, maximum: usize) -> Status {
    Failure::unfolds_too_large(bytes, maximum).into()
}

/// DEADLINE_EXCEEDED: a request began and did not arrive as a whole in time.
pub fn request_too_slow() -> Status {
    Failure::request_too_slow().into()
}

/// DRAINING: the client of a stream sends nothing while the server drains.
pub fn draining() -> Status {
    Failure::draining().into()
}

/// SILENT: nothing was sent on a stream for this long.
pub fn silent(silence: std::time::Duration) -> Status {
    Failure::silent(silence).into()
}

/// REQUEST_TOO_LARGE: a message above `limits.max_request_bytes`. The codec rejects it before a
/// method sees it.
fn request_too_large(maximum: usize) -> Status {
    Failure::request_too_large(maximum).into()
}

/// INVALID_TIMEOUT: the `grpc-timeout` cannot be parsed.
pub fn bad_timeout() -> Status {
    Failure::bad_timeout().into()
}

/// Replaces the status of tonic for a request that it rejects by one of ours, with details. None:
/// the status is ours already. tonic answers OUT_OF_RANGE for a message that is too large,
/// RESOURCE_EXHAUSTED for one that is too large once it is decompressed, INTERNAL for one that
/// cannot be decoded (which is not the server's fault), and UNKNOWN for a connection that broke
/// within a message.
pub fn reworded(status: &Status, max_request_bytes: usize) -> Option<Status> {
    let is_ours = !status.details().is_empty();
    match status.code() {
        _ if is_ours => None,
        Code::OutOfRange | Code::ResourceExhausted => Some(request_too_large(max_request_bytes)),
        Code::Internal => Some(Failure::request_unreadable(status.message()).into()),
        Code::Unknown => Some(Status::cancelled("the connection ended within the request")),
        _ => None,
    }
}

/// INTERNAL: a bug. The cause is logged under an id, and the client receives the id.
pub fn internal(cause: impl Display) -> Status {
    Failure::internal(cause).into()
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let Failure { code, reason, message, metadata, violations, more_violations: _, retry_after } = failure;
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, ERROR_DOMAIN, metadata.into_iter().collect::<std::collections::HashMap<_, _>>());
        if !violations.is_empty() {
            let violations = violations.into_iter().map(|v| FieldViolation::new(v.field, v.message));
            details.set_bad_request(violations.collect::<Vec<_>>());
        }
        if let Some(retry_after) = retry_after {
            details.set_retry_info(Some(retry_after));
        }
        Status::with_error_details(code, message, details)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure { code, reason, message, metadata, violations, more_violations: _, retry_after: _ } = failure;
        let field = violations.into_iter().next().map(|violation| violation.field).unwrap_or_default();
        Self { code: code as i32, reason: reason.to_owned(), message, field, metadata }
    }
}
