//! Traces: one span for each traced call, as a child of the caller's span, and one for each
//! operation of the call on Redis or MongoDB; never one for each key.
//!
//! Whether a call is traced is decided once, from its headers and before any span is made. Other
//! calls pay only for this decision, and for a look at a thread-local variable for each operation
//! on a backend. No span contains anything of the content of a request.
//!
//! Elsewhere: where spans are sent (`telemetry`). Without the feature `otel` this module does
//! nothing.

#[cfg(feature = "otel")]
mod backend;
#[cfg(feature = "otel")]
mod call;
#[cfg(not(feature = "otel"))]
mod off;
#[cfg(feature = "otel")]
mod sampling;

use std::borrow::Cow;

#[cfg(feature = "otel")]
pub use self::{
    backend::{Spanned, backend},
    call::{Carried, Trace, Traces, carried},
    sampling::Sampler,
};
#[cfg(not(feature = "otel"))]
pub use off::{Trace, Traces, backend, carried};

/// The target of the log's spans of traced calls, which give their lines a trace id.
pub const CALL_SPANS: &str = "featurestore::call";

/// The backend of an operation, as spans name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// redis or mongodb.
    pub system: &'static str,
    /// The name or the number of the database.
    pub namespace: String,
    /// The host as configured, without credentials.
    pub address: String,
    /// None: the port is part of the address.
    pub port: Option<u16>,
}

/// An operation on a backend.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The backend that is called.
    pub place: &'a Place,
    /// The name of the operation in the backend: MGET, findAndModify.
    pub operation: Cow<'static, str>,
    /// The collection, if there is one.
    pub collection: Option<&'static str>,
    /// The script, if one is called.
    pub procedure: Option<&'static str>,
    /// How many operations are sent together.
    pub operations: usize,
}

/// How an operation on a backend failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// One of a few words, or the code of the backend; never a message, which may quote what was
    /// sent.
    pub kind: Cow<'static, str>,
    /// Whether `kind` is a code of the backend.
    pub is_code: bool,
}

impl Failed {
    /// A failure with a word of ours.
    pub fn because(kind: &'static str) -> Self {
        Self { kind: kind.into(), is_code: false }
    }

    /// A failure with a code of the backend.
    pub fn with_code(code: impl Into<String>) -> Self {
        Self { kind: Cow::Owned(code.into()), is_code: true }
    }
}
