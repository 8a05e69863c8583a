//! What is left without the feature `otel`: nothing is traced, and nothing is paid.

use std::{convert::Infallible, net::SocketAddr};

use http::HeaderMap;

use super::{Asked, Failed};

/// Nowhere.
#[derive(Clone, Debug, Default)]
pub struct Traces(());

impl Traces {
    /// No call is traced.
    pub fn call(&self, _: &'static str, _: &HeaderMap, _: SocketAddr) -> Option<Box<Trace>> {
        None
    }
}

/// There is none.
#[derive(Debug)]
pub struct Trace(Infallible);

impl Trace {
    /// Never called.
    pub fn enter(&self) {
        match self.0 {}
    }

    /// Never called.
    pub fn end(&self, _: &'static str, _: bool) {
        match self.0 {}
    }
}

/// The work itself.
pub fn carried<F>(work: F) -> F {
    work
}

/// The work itself.
pub fn backend<'a, F: Future>(_: impl FnOnce() -> Asked<'a>, _: fn(&F::Output) -> Option<Failed>, work: F) -> F {
    work
}
