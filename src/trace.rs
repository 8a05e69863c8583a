//! Traces: one span for each traced call, the child of its caller's span, and one for each thing that the call asks of Redis
//! or MongoDB; never one for a key.
//!
//! Whether a call is traced is decided once, from its headers and before any span is made. All that the others pay is that
//! decision, and a look at a thread's own variable for each backend call. Nothing of a request's content is ever in a span.
//!
//! Not here: where spans are sent (`telemetry`). Without the feature `otel` nothing here does anything.

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

/// The target of the log's spans of traced calls: they give their lines a trace id.
pub const CALL_SPANS: &str = "featurestore::call";

/// Which backend, as spans name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// redis or mongodb.
    pub system: &'static str,
    /// The database, or its number.
    pub namespace: String,
    /// As configured, without credentials.
    pub address: String,
    /// None: the address says it all.
    pub port: Option<u16>,
}

/// What is asked of a backend.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Whom.
    pub place: &'a Place,
    /// By its own name for it: MGET, findAndModify.
    pub operation: Cow<'static, str>,
    /// The collection, where there is one.
    pub collection: Option<&'static str>,
    /// The script, where one is called.
    pub procedure: Option<&'static str>,
    /// Operations sent together.
    pub operations: usize,
}

/// How something asked of a backend failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// One of a few words, or the backend's own code. Never a message: those may quote what was asked.
    pub kind: Cow<'static, str>,
    /// It is the backend's own code.
    pub is_code: bool,
}

impl Failed {
    /// In a word of ours.
    pub fn because(kind: &'static str) -> Self {
        Self { kind: kind.into(), is_code: false }
    }

    /// With the backend's code.
    pub fn with_code(code: impl Into<String>) -> Self {
        Self { kind: Cow::Owned(code.into()), is_code: true }
    }
}
