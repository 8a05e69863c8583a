//! Why L2 did not do as told, in terms of what the caller can do about it.

use std::sync::Arc;

use crate::record::RecordKey;

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
    /// It is set up in a way that would make its answers wrong, so it is not used until somebody mends that. Nothing
    /// happened.
    #[error("L2 must not be used: {0}")]
    Unusable(Arc<str>),
    /// It works, and refuses this: somebody gave it a rule that is not ours. Nothing happened, and repeating does not help.
    #[error("L2 refuses it: {0}")]
    Refused(Arc<str>),
    /// Neither the store's state nor the caller: a bug.
    #[error("L2 failed: {0}")]
    Internal(Arc<str>),
}

impl StoreError {
    /// The same, with the name of the record that cannot be read, so that whoever reads the log finds it.
    pub fn of_record(self, key: &RecordKey) -> Self {
        let named =
            |text: Arc<str>| format!("feature view {}, entity {:?}: {text}", key.view, key.entity_id.as_str()).into();
        match self {
            Self::Corrupt(text) => Self::Corrupt(named(text)),
            Self::DoneUnreadable(text) => Self::DoneUnreadable(named(text)),
            other => other,
        }
    }

    /// The text alone.
    pub fn reason(&self) -> &str {
        match self {
            Self::Unavailable(text)
            | Self::Timeout(text)
            | Self::OutcomeUnknown(text)
            | Self::DoneUnreadable(text)
            | Self::Corrupt(text)
            | Self::Unusable(text)
            | Self::Refused(text)
            | Self::Internal(text) => text,
            Self::LeftOut => "the batch was full",
        }
    }

    /// Whether it tells that the store itself is in trouble, which is what its breaker counts.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout(_) | Self::OutcomeUnknown(_))
    }

    /// Whether the write that was answered so may have happened, or may still happen.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_) | Self::DoneUnreadable(_))
    }
}
