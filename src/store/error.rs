//! Why L2 failed, in terms of what the caller can do.

use std::sync::Arc;

use crate::record::RecordKey;

/// A failure of L2. The text is for the log and is never sent to clients. It was not logged yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or cannot serve; certainly nothing happened. Try again later.
    #[error("L2 is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// A read was not answered in time; certainly nothing changed.
    #[error("L2 did not answer in time: {0}")]
    Timeout(Arc<str>),
    /// A write may have happened, or may still happen. Repeat it with the same request id.
    #[error("the outcome of a write is unknown: {0}")]
    OutcomeUnknown(Arc<str>),
    /// A write happened, but what L2 now holds for this key cannot be read, because it was edited
    /// by hand. Repeating does not help.
    #[error("done, but what now stands cannot be read: {0}")]
    DoneUnreadable(Arc<str>),
    /// What is stored for this key cannot be read; nothing happened. Repeating does not help.
    #[error("what is stored cannot be read: {0}")]
    Corrupt(Arc<str>),
    /// The read has reached its limit: ask for this key again. Nothing is wrong.
    #[error("this record was left out, because the batch was full")]
    LeftOut,
    /// Its configuration would make answers wrong, so it is not used until that is corrected.
    /// Nothing happened.
    #[error("L2 must not be used: {0}")]
    Unusable(Arc<str>),
    /// It works, but a rule that is not ours refuses this. Nothing happened. Repeating does not
    /// help.
    #[error("L2 refuses it: {0}")]
    Refused(Arc<str>),
    /// Neither the store nor the caller is at fault: this is a bug.
    #[error("L2 failed: {0}")]
    Internal(Arc<str>),
}

impl StoreError {
    /// Adds the name of the unreadable record, so that it can be found from the log.
    pub fn of_record(self, key: &RecordKey) -> Self {
        let named =
            |text: Arc<str>| format!("feature view {}, entity {:?}: {text}", key.view, key.entity_id.as_str()).into();
        match self {
            Self::Corrupt(text) => Self::Corrupt(named(text)),
            Self::DoneUnreadable(text) => Self::DoneUnreadable(named(text)),
            other => other,
        }
    }

    /// The text without the kind of error.
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

    /// Whether the store itself fails, which is what its circuit breaker counts.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout(_) | Self::OutcomeUnknown(_))
    }

    /// Whether the write may have happened, or may still happen.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Self::OutcomeUnknown(_) | Self::DoneUnreadable(_))
    }
}
