//! Why L2 did not do as told, in terms of what the caller can do about it.

use std::sync::Arc;

/// Failed work of L2. The text is for the log; no client ever sees it. The cause was not logged yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or cannot serve; surely nothing happened. Try again later.
    #[error("L2 is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// A read was not answered in time; surely nothing changed.
    #[error("L2 did not answer in time: {0}")]
    Timeout(Arc<str>),
    /// A write may have happened, or may still happen. Repeat it with the same request id.
    #[error("the outcome of a write is unknown: {0}")]
    OutcomeUnknown(Arc<str>),
    /// A write was done, but what now stands for this key cannot be read: somebody edited it by hand. Repeating does not
    /// help.
    #[error("done, but what now stands cannot be read: {0}")]
    DoneUnreadable(Arc<str>),
    /// What is stored for this key cannot be read; nothing happened. Repeating does not help.
    #[error("what is stored cannot be read: {0}")]
    Corrupt(Arc<str>),
    /// A read brings no more at once: ask for this key again. Nothing is wrong.
    #[error("not read: the batch was full")]
    LeftOut,
    /// Neither the store's state nor the caller: a bug, or a store that refuses what it should take.
    #[error("L2 failed: {0}")]
    Internal(Arc<str>),
}

impl StoreError {
    /// Whether it tells that the store itself is in trouble, which is what its breaker counts.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout(_) | Self::OutcomeUnknown(_))
    }

    /// Whether the write that was answered so may have happened, or may still happen.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_) | Self::DoneUnreadable(_))
    }
}
