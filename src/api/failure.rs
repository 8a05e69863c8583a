//! Everything that can be wrong with a call, a row or an item, with its code, its stable reason and its words.
//! `status` gives it its two forms on the wire.

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

/// How often a stored record could not be read. Of the whole process, as whoever meets one has only the error at hand.
static UNREADABLE: AtomicU64 = AtomicU64::new(0);

/// Each call for such a record would repeat the line.
static UNREADABLE_WORDS: LazyLock<Seldom> = LazyLock::new(|| Seldom::every(Duration::from_secs(1)));

/// How often a stored record could not be read, since start.
pub(super) fn unreadable_records() -> u64 {
    UNREADABLE.load(Relaxed)
}

/// What went wrong, as a client is told.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(super) code: Code,
    /// UPPER_SNAKE_CASE, stable.
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) metadata: BTreeMap<String, String>,
    /// The first ones, as many as the client is told of.
    pub(super) violations: Vec<Violation>,
    /// How many more there are.
    pub(super) more_violations: usize,
    pub(super) retry_after: Option<Duration>,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The path in the request: `record.features["a.b"]`.
    pub(super) field: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// How many violations a client is told of: the first one, and as many more as do not make the status larger than clients
/// take it. A status goes through a header list, twice as text and once as details, and gRPC's clients for Python and Java
/// take 8 KiB of that in all; what is larger, they answer with another error.
fn told(violations: &[Violation]) -> usize {
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

    /// The same, seen from the message that holds the field.
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

    /// A request with bad fields; there is at least one. Of many the first are told, and how many more there are.
    pub(super) fn invalid(violations: Vec<Violation>) -> Self {
        Self::invalid_and_more(violations, 0)
    }

    /// The same, with so many more violations that are not among these. Only those that the client is told of are kept: a
    /// chunk keeps the failures of its records until it is answered.
    pub(super) fn invalid_and_more(mut violations: Vec<Violation>, more: usize) -> Self {
        let told = told(&violations);
        let more_violations = more + violations.len() - told;
        violations.truncate(told);
        violations.shrink_to_fit();
        let words = |violation: &Violation| format!("{}: {}", violation.field, violation.message);
        let mut message = violations.iter().map(words).collect::<Vec<_>>().join("; ");
        if more_violations > 0 {
            message.push_str(&format!("; and {more_violations} more"));
        }
        let reason = violations.first().map_or("INVALID_FIELD", |violation| violation.reason);
        Self { violations, more_violations, ..Self::new(Code::InvalidArgument, reason, message) }
    }

    /// The same, seen from the message that holds the bad fields.
    pub(super) fn under(mut self, parent: &str) -> Self {
        if self.violations.is_empty() {
            self.violations.push(Violation::new(parent, self.reason, &self.message));
            return self;
        }
        let violations = self.violations.into_iter().map(|violation| violation.under(parent)).collect();
        Self::invalid_and_more(violations, self.more_violations)
    }

    /// More of something than a limit allows.
    pub(super) fn too_many(reason: &'static str, what: &str, count: usize, maximum: usize) -> Self {
        let message = format!("{count} {what}, at most {maximum} are allowed");
        Self::new(Code::InvalidArgument, reason, message).with("count", count).with("maximum", maximum)
    }

    pub(super) fn record_too_large(bytes: usize, maximum: usize) -> Self {
        let message = format!("a record of {bytes} bytes, at most {maximum} are allowed");
        Self::new(Code::InvalidArgument, "RECORD_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    pub(super) fn response_too_large(bytes: usize, maximum: usize) -> Self {
        let message = format!(
            "the response would have {bytes} bytes or more, at most {maximum} are allowed: ask for fewer entities or name features"
        );
        Self::new(Code::ResourceExhausted, "RESPONSE_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    pub(super) fn too_busy() -> Self {
        Self::busy("more calls in flight than the server takes")
    }

    pub(super) fn too_many_streams() -> Self {
        Self::busy("more streams of this kind at once than the server, or a connection to it, may have")
    }

    pub(super) fn too_many_bytes() -> Self {
        Self::busy("more bytes in flight than the server holds")
    }

    pub(super) fn request_too_slow() -> Self {
        let message = "the request did not arrive in time";
        Self { message: message.to_owned(), ..Self::deadline() }
    }

    pub(super) fn draining() -> Self {
        let message = "the server is shutting down: open another stream, and send again what was not answered";
        Self::new(Code::Unavailable, "DRAINING", message).retry()
    }

    pub(super) fn silent(silence: Duration) -> Self {
        let message =
            format!("nothing was sent for {silence:?}, so the stream's place is given to others: open another");
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
            "the request's message takes up to {bytes} bytes in memory, and a connection may hold {maximum}: send it in \
             smaller messages"
        );
        Self::new(Code::InvalidArgument, "REQUEST_TOO_LARGE", message).with("bytes", bytes).with("maximum", maximum)
    }

    /// A message that is no protobuf of its type, or not framed as gRPC has it. The cause is the codec's and names what the
    /// client sent.
    pub(super) fn request_unreadable(cause: &str) -> Self {
        // Some hundred bytes at most, but that is another library's promise.
        let end = cause.floor_char_boundary(512);
        Self::new(Code::InvalidArgument, "REQUEST_UNREADABLE", format!("the request cannot be read: {}", &cause[..end]))
    }

    pub(super) fn bad_timeout() -> Self {
        Self::new(Code::InvalidArgument, "INVALID_TIMEOUT", "grpc-timeout must be at most 8 digits and a unit")
    }

    /// A bug: the cause goes to the log under an id, the client gets the id.
    pub(crate) fn internal(cause: impl Display) -> Self {
        let id = format!("{:016x}", rand::random::<u64>());
        tracing::error!(%id, %cause, "internal error");
        Self::new(Code::Internal, "INTERNAL", format!("internal error, in the server's log under {id}")).with("id", id)
    }

    /// A stored record cannot be read; whose it is, where that is known here.
    pub(super) fn unreadable(entity_id: Option<&str>, cause: &dyn Display) -> Self {
        if let Some(unsaid) = UNREADABLE_WORDS.now() {
            tracing::error!(entity_id, %cause, unsaid, "a stored record cannot be read");
        }
        UNREADABLE.fetch_add(1, Relaxed);
        Self::new(Code::DataLoss, "RECORD_UNREADABLE", "what is stored for this entity cannot be read")
    }

    /// What became of a write that is no success; None: it is one.
    pub(super) fn of_outcome(outcome: &Outcome, limits: &Limits) -> Option<Self> {
        match outcome {
            Outcome::Written | Outcome::SkippedStale | Outcome::Deleted | Outcome::NotFound => None,
            Outcome::RevisionMismatch { stored } => Some(
                Self::new(Code::Aborted, "REVISION_MISMATCH", format!("the record stands at revision {stored}"))
                    .with("stored", stored),
            ),
            Outcome::RequestIdReused => Some(Self::new(
                Code::InvalidArgument,
                "REQUEST_ID_REUSED",
                "this request_id was given to another write of this record: a retry must be the same request, and each other \
                 one needs an id of its own",
            )),
            Outcome::TooManyFeatures { count } => {
                Some(Self::too_many("TOO_MANY_FEATURES", "features after the merge", *count, limits.max_features))
            }
            Outcome::RecordTooLarge { bytes } => Some(Self::record_too_large(*bytes, limits.max_record_bytes)),
            Outcome::DocumentTooLarge { bytes, document, maximum } => {
                let message = format!(
                    "a record of {bytes} bytes would take {document} bytes in the store, which holds {maximum} of one record"
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
                "somebody changed how the store is set up, so that its answers would be wrong: it is not used until that is \
                 mended; the server's log says what to do",
            )
            .retry(),
            StoreError::Refused(_) => Self::new(
                Code::FailedPrecondition,
                "L2_REFUSED",
                "the store refuses this record: somebody gave it a rule (a validator, a unique index, an option) that the \
                 server did not; the server's log says which",
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
                format!("the record stands at revision {stored}, older than min_revisions asks for"),
            )
            .with("stored", stored),
            RowError::Deadline => Self::deadline(),
            RowError::TooBusy => Self::busy("more reads of the store at once than the server makes"),
            RowError::NoRoom => Self::too_many_bytes(),
            RowError::Internal => Self::internal("a flight was lost"),
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
                "the cache cannot be reached, and this server refuses writes meanwhile (l1.on_loss = reject)",
            )
            .retry(),
            WriteError::CommittedNotCached => Self::new(
                Code::Unavailable,
                "COMMITTED_NOT_CACHED",
                "the write is durable, but older values may be read for a while (l1.on_loss = reject)",
            ),
            WriteError::TooBusy => Self::busy("more writes at once than the server takes"),
            WriteError::Internal => Self::internal("a detached write was lost"),
        }
    }
}
