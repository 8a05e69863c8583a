//! The only place where a failure takes its form on the wire: a call's `tonic::Status` with its google.rpc details, or
//! a row's or an item's `Error`.

use std::fmt::Display;

use tonic::Status;
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::failure::{Failure, told};
use crate::{access::Denied, proto::Error};

/// The domain of every ErrorInfo.
pub const ERROR_DOMAIN: &str = "featurestore.v1";

/// More calls in flight than the server takes.
pub fn too_busy() -> Status {
    Failure::too_busy().into()
}

/// A call that is not let in.
pub fn denied(denied: Denied) -> Status {
    Failure::from(denied).into()
}

/// More bytes in flight than the server, or a connection, may hold.
pub fn too_many_bytes() -> Status {
    Failure::too_many_bytes().into()
}

/// A request that was begun and not ended.
pub fn request_too_slow() -> Status {
    Failure::request_too_slow().into()
}

/// A request message above `limits.max_request_bytes`. The codec refuses it before any handler sees it, as OUT_OF_RANGE
/// and without details; nothing else here answers OUT_OF_RANGE.
pub fn request_too_large(maximum: usize) -> Status {
    Failure::request_too_large(maximum).into()
}

/// A bug: the cause goes to the log under an id, the client gets the id.
pub fn internal(cause: impl Display) -> Status {
    Failure::internal(cause).into()
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let Failure { code, reason, message, metadata, violations, retry_after } = failure;
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, ERROR_DOMAIN, metadata.into_iter().collect::<std::collections::HashMap<_, _>>());
        if !violations.is_empty() {
            let told = told(&violations);
            let violations = violations.into_iter().take(told).map(|v| FieldViolation::new(v.field, v.message));
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
        let Failure { code, reason, message, metadata, violations, retry_after: _ } = failure;
        let field = violations.into_iter().next().map(|violation| violation.field).unwrap_or_default();
        Self { code: code as i32, reason: reason.to_owned(), message, field, metadata }
    }
}
