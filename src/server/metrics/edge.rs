//! Who comes, and who is turned away: the denied calls.

use std::sync::Arc;

use crate::{
    access::gate::{Gate, REASONS},
    metrics::{Kind, Text},
};

/// What stands before the calls.
#[derive(Clone)]
pub(in super::super) struct Edge {
    /// None: everybody may call everything.
    pub(in super::super) gate: Option<Arc<Gate>>,
}

pub(super) fn write(text: &mut Text, edge: &Edge) {
    let help = "Calls and chunks of streams that were not let in, by reason.";
    text.family("featurestore_denied_calls", Kind::Counter, help);
    let denied = edge.gate.as_deref().map(Gate::denied).unwrap_or_default();
    for (reason, count) in REASONS.into_iter().zip(denied) {
        text.value(&[("reason", reason)], count as f64);
    }
}
