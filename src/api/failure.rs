//! Every error of a call, a row or an item, with its code, its stable reason and its text. `status`
//! gives it its two forms in the protocol.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tonic::Code;

use crate::{
    access::Denied,
    store::{Outcome, StoreError},
    tiered::{RowError, WriteError, seldom::Seldom},
};

use super::Limits;

/// How often a stored record could not be read. A static, because the code that finds such a record
/// has only the error at hand.
static UNREADABLE: AtomicU64 = AtomicU64::new(0);

/// Each call for such a record would repeat the line.
static UNREADABLE_WORDS: LazyLock<Seldom> = LazyLock::new(|| Seldom::every(Duration::from_secs(1)));

/// How often a stored record could not be read, since the start.
pub(super) fn unreadable_records() -> u64 {
    UNREADABLE.load(Relaxed)
}

/// An error, as clients see it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(super) code: Code,
    /// In UPPER_SNAKE_CASE; part of the API.
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) metadata: BTreeMap<String, String>,
    /// The first violations, as many as fit into the answer.
    pub(super) violations: Vec<Violation>,
    pub(super) more_violations: usize,
    pub(super) retry_after: Option<Duration>,
}

/// An error in one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The path in the request, as in `record.features["a.b"]`.
    pub(super) field: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// How many violations go into the answer: the first one, and as many more as keep the status
/// within what clients accept. A status is sent as a header list, with the text twice and once more
/// as details. The gRPC clients for Python and Java accept 8 KiB in all, and report another error
/// for more.
fn count_sent(violations: &[Violation]) -> usize {
    const MAX_BYTES: usize = 1024;
    let mut bytes = 0;
    let fits = |violation: &&Violation| {
        bytes += violation.field.len() + violation.message.len() + 4;
        bytes <= MAX_BYTES
    };
    violations.iter().take_while(fits).count().max(1).min(violations.len())
}

impl Violation {
    pub(super) fn new(field: impl Into<String>, reason: &'static str, message: impl Display) -> Self {
        Self { field: field.into(), reason, message: message.to_string() }
    }

    /// Prefixes the path with the field of the enclosing message.
    pub(super) fn under(mut self, parent: &str) -> Self {
        self.field = if self.field.is_empty() { parent.to_owned() } else { format!("{parent}.{}", self.field) };
        self
    }
}

impl Failure {
    fn new(code: Code, reason: &'static str, message: impl Display) -> Self {
        let message = message.to_string();
        let (metadata, violations) = (BTreeMap::new(), Vec::new());
        Self { code, reason, message, metadata, violations, more_violations: 0, retry_after: None }
    }

    fn with(mut self, key: &str, value: impl Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn retry(mut self) -> Self {
        self.retry_after = Some(Duration::from_millis(500));
        self
    }

    /// A request with bad fields; at least one. If there are many, the first are described and the
    /// others counted.
    pub(super) fn invalid(violations: Vec<Violation>) -> Self {
        Self::invalid_and_more(violations, 0)
    }

    /// Like `invalid`, with `more` further violations. Only those that are sent are kept, because a
    /// chunk keeps the errors of its records until it is answered.
    pub(super) fn invalid_and_more(mut violations: Vec<Violation>, more: usize) -> Self {
        let sent = count_sent(&violations);
        let more_violations = more + violations.len() - sent;
        violations.truncate(sent);
        violations.shrink_to_fit();
        let words = |violation: &Violation| format!("{}: {}", violation.field, violation.message);
        let mut message = violations.iter().map(words).collect::<Vec<_>>().join("; ");
        if more_violations > 0 {
            message.push_str(&format!("; and {more_violations} more"));
        }
        let reason = violations.first().map_or("INVALID_FIELD", |violation| violation.reason);
        Self { violations, more_violations, ..Self::new(Code::InvalidArgument, reason, message) }
    }

    pub(super) fn under(mut self, parent: &str) -> Self {
        if self.violations.is_empty() {
            self.violations.push(Violation::new(parent, self.reason, &self.message));
            return self;
        }
        let violations = self.violations.into_iter().map(|violation| violation.under(parent)).collect();
        Self::invalid_and_more(violations, self.more_violations)
    }

    pub(super) fn too_many(reason: &'static str, what: &str, count: usize, maximum: usize) -> Self {
        let message = format!("{count} {what}; at most {maximum} are allowed");
        Self::new(Code::InvalidArgument, reason, message).with("count", count).with("maximum", maximum)
    }

    pub(super) fn record_too_large(bytes: usize, maximum: usize) -> Self {
        let message = format!("the record has {bytes} bytes; at most {maximum} are allowed");
        Self::new(Code::InvalidArgument, "RECORD_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    pub(super) fn response_too_large(bytes: usize, maximum: usize) -> Self {
        let message = format!(
            "the response would have at least {bytes} bytes; at most {maximum} are allowed: ask for fewer entities, or \
             name the features that you need"
        );
        Self::new(Code::ResourceExhausted, "RESPONSE_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    pub(super) fn too_busy() -> Self {
        Self::busy("the server has too many calls in flight: retry later")
    }

    pub(super) fn too_many_streams() -> Self {
        Self::busy("the server, or this connection, has too many streams of this kind: end some, or retry later")
    }

    pub(super) fn too_many_bytes() -> Self {
        Self::busy("the server, or this connection, has too many bytes in flight: retry later")
    }

    pub(super) fn request_too_slow() -> Self {
        let message = "the request did not arrive in time: the client sent only a part of it";
        Self { message: message.to_owned(), ..Self::deadline() }
    }

    pub(super) fn draining() -> Self {
        let message = "the server is shutting down: open another stream, and send the unanswered chunks again";
        Self::new(Code::Unavailable, "DRAINING", message).retry()
    }

    pub(super) fn silent(silence: Duration) -> Self {
        let message =
            format!("nothing was sent on this stream for {silence:?}, so the server ended it: open another one");
        Self::new(Code::Unavailable, "SILENT", message).retry()
    }

    fn busy(what: &str) -> Self {
        Self::new(Code::ResourceExhausted, "TOO_BUSY", what).retry()
    }

    pub(super) fn deadline() -> Self {
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed")
    }

    pub(super) fn write_deadline() -> Self {
        let message = "the deadline passed; the write may have happened: retry it with the same request_id";
        Self { message: message.to_owned(), ..Self::deadline() }
    }

    pub(super) fn request_too_large(maximum: usize) -> Self {
        let message = format!("a request message may have {maximum} bytes at most");
        Self::new(Code::InvalidArgument, "REQUEST_TOO_LARGE", message).with("maximum", maximum)
    }

    pub(super) fn unfolds_too_large(bytes: usize, maximum: usize) -> Self {
        let message = format!(
            "the request message takes up to {bytes} bytes in memory, and a connection may hold {maximum}: send it in \
             smaller messages"
        );
        Self::new(Code::InvalidArgument, "REQUEST_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    /// A message that is not a protobuf of its type, or is not framed as gRPC requires. The cause
    /// is the text of the codec, which names what the client sent.
    pub(super) fn request_unreadable(cause: &str) -> Self {
        // The codec writes some hundred bytes at most, but does not promise it.
        let end = cause.floor_char_boundary(512);
        Self::new(Code::InvalidArgument, "REQUEST_UNREADABLE", format!("the request cannot be read: {}", &cause[..end]))
    }

    pub(super) fn bad_timeout() -> Self {
        let message = "the header grpc-timeout must be at most 8 digits and a unit (H, M, S, m, u or n)";
        Self::new(Code::InvalidArgument, "INVALID_TIMEOUT", message)
    }

    /// A bug. The cause is logged under an id, and the client receives the id.
    pub(crate) fn internal(cause: impl Display) -> Self {
        let id = format!("{:016x}", rand::random::<u64>());
        tracing::error!(%id, %cause, "internal error");
        let message = format!("internal error: the log of the server has its cause under the id {id}");
        Self::new(Code::Internal, "INTERNAL", message).with("id", id)
    }

    /// A stored record that cannot be read, with its entity id where that is known here.
    pub(super) fn unreadable(entity_id: Option<&str>, cause: &dyn Display) -> Self {
        if let Some(unsaid) = UNREADABLE_WORDS.now() {
            tracing::error!(entity_id, %cause, unsaid, "a stored record cannot be read");
        }
        UNREADABLE.fetch_add(1, Relaxed);
        let message = "the stored record of this entity cannot be read; an upsert (REPLACE, without conditions) or \
                       a delete replaces it";
        Self::new(Code::DataLoss, "RECORD_UNREADABLE", message)
    }

    /// The error of an outcome. None: the write succeeded.
    pub(super) fn of_outcome(outcome: &Outcome, limits: &Limits) -> Option<Self> {
        match outcome {
            Outcome::Written | Outcome::SkippedStale | Outcome::Deleted | Outcome::NotFound => None,
            Outcome::RevisionMismatch { stored } => Some(
                Self::new(Code::Aborted, "REVISION_MISMATCH", format!("the record is at revision {stored}"))
                    .with("stored", stored),
            ),
            Outcome::RequestIdReused => Some(Self::new(
                Code::InvalidArgument,
                "REQUEST_ID_REUSED",
                "this request_id was used for another write of this record: a retry must be the same request, and \
                 every other write needs its own id",
            )),
            Outcome::TooManyFeatures { count } => {
                Some(Self::too_many("TOO_MANY_FEATURES", "features after the merge", *count, limits.max_features))
            }
            Outcome::RecordTooLarge { bytes } => Some(Self::record_too_large(*bytes, limits.max_record_bytes)),
            Outcome::DocumentTooLarge { bytes, document, maximum } => {
                let message = format!(
                    "a record of {bytes} bytes would take {document} bytes in the store, which allows {maximum}"
                );
                let failure = Self::new(Code::InvalidArgument, "RECORD_TOO_LARGE", message);
                Some(failure.with("bytes", bytes).with("document_bytes", document).with("maximum", maximum))
            }
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::NoToken => Self::new(Code::Unauthenticated, "TOKEN_MISSING", message),
            Denied::UnknownToken => Self::new(Code::Unauthenticated, "TOKEN_UNKNOWN", message),
            Denied::NoRule => Self::new(Code::PermissionDenied, "NO_RULE", message),
            Denied::NoRight { caller, right, view } => {
                let failure = Self::new(Code::PermissionDenied, "RIGHT_MISSING", message)
                    .with("caller", caller)
                    .with("right", right.name());
                match view {
                    Some(view) => failure.with("feature_view", view),
                    None => failure,
                }
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                Self::new(Code::Unavailable, "L2_UNAVAILABLE", "the store cannot be reached").retry()
            }
            StoreError::Timeout(_) => {
                Self::new(Code::Unavailable, "L2_TIMEOUT", "the store did not answer in time").retry()
            }
            StoreError::OutcomeUnknown(_) => Self::new(
                Code::Unavailable,
                "OUTCOME_UNKNOWN",
                "the write may have happened: retry it with the same request_id",
            )
            .retry(),
            StoreError::Corrupt(cause) | StoreError::DoneUnreadable(cause) => Self::unreadable(None, &cause),
            StoreError::LeftOut => Self::internal("a row was left out"),
            StoreError::Unusable(_) => Self::new(
                Code::Unavailable,
                "L2_UNUSABLE",
                "the store is not used, because its setup was changed so that its answers would be wrong; the log of \
                 the server says what to correct",
            )
            .retry(),
            StoreError::Refused(_) => Self::new(
                Code::FailedPrecondition,
                "L2_REFUSED",
                "the store rejects this record because of a rule that the server did not create (a validator, a unique \
                 index, an option); the log of the server says which",
            ),
            StoreError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<RowError> for Failure {
    fn from(error: RowError) -> Self {
        match error {
            RowError::Store(error) => error.into(),
            RowError::RevisionNotReached { stored } => Self::new(
                Code::FailedPrecondition,
                "REVISION_NOT_REACHED",
                format!("the record is at revision {stored}, which is older than min_revisions requires"),
            )
            .with("stored", stored),
            RowError::Deadline => Self::deadline(),
            RowError::TooBusy => Self::busy("too many reads wait for the store: retry later"),
            RowError::NoRoom => Self::too_many_bytes(),
            RowError::Internal => Self::internal("a read of the store ended without an answer"),
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => error.into(),
            WriteError::L1Lost => Self::new(
                Code::Unavailable,
                "L1_LOST",
                "the cache cannot be reached, and until it can, this server rejects writes (l1.on_loss = reject); \
                 nothing was written",
            )
            .retry(),
            WriteError::CommittedNotCached => Self::new(
                Code::Unavailable,
                "COMMITTED_NOT_CACHED",
                "the write is durable, but reads may return the older value for a while (l1.on_loss = reject)",
            ),
            WriteError::TooBusy => Self::busy("the server has too many writes in flight: retry later"),
            WriteError::Internal => Self::internal("the task of a write ended without an answer"),
        }
    }
}
