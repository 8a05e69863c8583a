//! The only place where a failure takes its form on the wire: a call's `tonic::Status` with its google.rpc details, or
//! a row's or an item's `Error`.

use std::fmt::Display;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::failure::Failure;
use crate::{access::Denied, proto::Error};

/// The domain of every ErrorInfo.
pub const ERROR_DOMAIN: &str = "featurestore.v1";

/// More calls in flight than the server takes.
pub fn too_busy() -> Status {
    Failure::too_busy().into()
}

/// More streams of a kind than the server, or a connection, may have.
pub fn too_many_streams() -> Status {
    Failure::too_many_streams().into()
}

/// A call that is not let in.
pub fn denied(denied: Denied) -> Status {
    Failure::from(denied).into()
}

/// More bytes in flight than the server, or a connection, may hold.
pub fn too_many_bytes() -> Status {
    Failure::too_many_bytes().into()
}

/// A request that takes more bytes in memory than one connection may ever hold.
pub fn unfolds_too_large(bytes: usize, maximum: usize) -> Status {
    Failure::unfolds_too_large(bytes, maximum).into()
}

/// A request that was begun and not ended.
pub fn request_too_slow() -> Status {
    Failure::request_too_slow().into()
}

/// A stream whose client is silent while the server drains.
pub fn draining() -> Status {
    Failure::draining().into()
}

/// A stream on which nothing was sent for so long.
pub fn silent(silence: std::time::Duration) -> Status {
    Failure::silent(silence).into()
}

/// A request message above `limits.max_request_bytes`. The codec refuses it before any handler sees it.
fn request_too_large(maximum: usize) -> Status {
    Failure::request_too_large(maximum).into()
}

/// A `grpc-timeout` that says nothing.
pub fn bad_timeout() -> Status {
    Failure::bad_timeout().into()
}

/// In our words, what tonic says of a request that it cannot take; None: it is said by us. tonic's words have no details:
/// OUT_OF_RANGE for a message that is too large, RESOURCE_EXHAUSTED for one that is once it is unpacked, INTERNAL for one that
/// is none, though no server is to blame for it, and UNKNOWN for a connection that broke within one.
pub fn reworded(status: &Status, max_request_bytes: usize) -> Option<Status> {
    let is_ours = !status.details().is_empty();
    match status.code() {
        _ if is_ours => None,
        Code::OutOfRange | Code::ResourceExhausted => Some(request_too_large(max_request_bytes)),
        Code::Internal => Some(Failure::request_unreadable(status.message()).into()),
        Code::Unknown => Some(Status::cancelled("the request broke off")),
        _ => None,
    }
}

/// A bug: the cause goes to the log under an id, the client gets the id.
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
