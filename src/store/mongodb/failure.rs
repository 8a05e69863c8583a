//! What a failed operation means: certainly not done, or perhaps done.
//!
//! The two must be separated with care: a client repeats the second with its request id, and L1
//! takes back a permit only after the first. If the driver does not say which, it may have
//! happened.

use std::{borrow::Cow, fmt, sync::Arc};

use mongodb::error::{Error, ErrorKind, NO_WRITES_PERFORMED, SYSTEM_OVERLOADED_ERROR, WriteFailure};

use super::code;
use crate::{store::StoreError, trace::Failed};

/// The code of a `$toInt` of what is no number.
const CONVERSION_FAILURE: i32 = 241;

/// A failed operation.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    meaning: Meaning,
    /// For the log. It has nothing of what was sent or stored; texts of the server have, and are
    /// dropped.
    text: Arc<str>,
    /// The code in the server's answer.
    code: Option<i32>,
    /// Another try at once may succeed: a new primary, a new connection.
    pub(super) worth_repeating: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It was certainly not done: never sent, or refused before anything was done.
    NotDone,
    /// A server that is not the primary refused it. A single write was certainly not done; of many,
    /// the first ones may be.
    NotPrimary,
    /// It was sent, or may have been, and was not answered in time. It may still happen.
    OutOfTime,
    /// The connection broke, or the answer says too little. It may have happened.
    Unknown,
    /// The server rejects it. It was certainly not done.
    Rejected,
    /// The collections are not usable, so it was not sent.
    Unusable,
}

impl Failure {
    pub(super) fn not_done(text: &str) -> Self {
        Self { meaning: Meaning::NotDone, text: text.into(), code: None, worth_repeating: false }
    }

    pub(super) fn unusable(text: &str) -> Self {
        Self { meaning: Meaning::Unusable, ..Self::not_done(text) }
    }

    pub(super) fn out_of_time() -> Self {
        Self { meaning: Meaning::OutOfTime, text: "the deadline passed".into(), code: None, worth_repeating: false }
    }

    pub(super) fn unknown(text: &str) -> Self {
        Self { meaning: Meaning::Unknown, text: text.into(), code: None, worth_repeating: false }
    }

    /// From the code of an answer, and its name if the answer has one.
    pub(super) fn answered(code: i32, named: &str) -> Self {
        let (meaning, worth_repeating) = match code {
            // Not a writable primary, in each of its forms.
            10107 | 13435 | 10058 | 13436 => (Meaning::NotPrimary, true),
            // Interrupted, shutting down, stepping down, at an unknown point.
            11600 | 11602 | 189 | 91 | 6 | 7 | 89 | 9001 => (Meaning::Unknown, true),
            // MaxTimeMSExpired, ExceededTimeLimit, write concern timeouts.
            50 | 262 | 64 => (Meaning::OutOfTime, false),
            // The majority cannot be reached; a router was interrupted, or did not reach a shard.
            100 | 79 | 134 | 11601 | 202 => (Meaning::Unknown, false),
            // DuplicateKey: another upsert of the same new key was faster; WriteConflict.
            11000 | 112 => (Meaning::Rejected, true),
            // Unauthorized, AuthenticationFailed: nothing works until the configuration is
            // corrected.
            13 | 18 => (Meaning::NotDone, false),
            _ => (Meaning::Rejected, false),
        };
        Self { meaning, text: code::describe(code, named).into(), code: Some(code), worth_repeating }
    }

    /// Done on the server, but perhaps not on a majority.
    pub(super) fn not_confirmed(code: i32, named: &str) -> Self {
        let worth_repeating = !matches!(code, 50 | 64 | 100 | 79);
        let text = code::describe(code, named).into();
        Self { meaning: Meaning::Unknown, text, code: Some(code), worth_repeating }
    }

    /// A failure of an earlier step: the operation itself was never sent.
    pub(super) fn before_the_operation(self) -> Self {
        match self.meaning {
            Meaning::Unusable => self,
            _ => Self { meaning: Meaning::NotDone, ..self },
        }
    }

    /// The failure with another text.
    pub(super) fn with_text(self, text: &str) -> Self {
        Self { text: text.into(), ..self }
    }

    /// The server works, but rejects the operation.
    pub(super) fn is_refusal(&self) -> bool {
        self.meaning == Meaning::Rejected
    }

    /// The server rejects it because the document would be too large.
    pub(super) fn is_too_large(&self) -> bool {
        self.code.is_some_and(code::is_too_large)
    }

    /// The server left a write undone because it cannot decide it (`pipeline::Unsure::Fails`).
    pub(super) fn is_unsure(&self) -> bool {
        self.is_refusal() && self.has_code(CONVERSION_FAILURE)
    }

    /// The user lacks a right.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.has_code(13)
    }

    /// Whether the server answered with this code.
    pub(super) fn has_code(&self, code: i32) -> bool {
        self.code == Some(code)
    }

    /// Whether a write with this failure may have happened.
    pub(super) fn may_be_done(&self) -> bool {
        matches!(self.meaning, Meaning::OutOfTime | Meaning::Unknown)
    }

    /// The failure of a whole command with many writes: those before the failure may be done.
    pub(super) fn of_many(mut self) -> Self {
        if matches!(self.meaning, Meaning::NotPrimary | Meaning::Rejected) {
            self.meaning = Meaning::Unknown;
        }
        self
    }

    /// For a trace, which must not contain text of the driver.
    pub(super) fn for_traces(&self) -> Failed {
        match (self.code, self.meaning) {
            (Some(code), _) => Failed::with_code(code.to_string()),
            (None, Meaning::OutOfTime) => Failed::because("timeout"),
            (None, Meaning::NotDone | Meaning::NotPrimary) => Failed::because("unavailable"),
            (None, Meaning::Unknown) => Failed::because("outcome_unknown"),
            (None, Meaning::Rejected) => Failed::because("rejected"),
            (None, Meaning::Unusable) => Failed::because("unusable"),
        }
    }

    /// For a read.
    pub(super) fn of_read(self) -> StoreError {
        match self.meaning {
            Meaning::OutOfTime => StoreError::Timeout(self.text),
            Meaning::NotDone | Meaning::NotPrimary | Meaning::Unknown => StoreError::Unavailable(self.text),
            Meaning::Rejected | Meaning::Unusable => self.of_refusal(),
        }
    }

    /// For the read before a write of which earlier tries `may_be_done`.
    pub(super) fn of_look(self, earlier_may_be_done: bool) -> StoreError {
        self.before_the_operation().of_write(earlier_may_be_done)
    }

    /// For a write of which earlier tries `may_be_done`.
    pub(super) fn of_write(self, earlier_may_be_done: bool) -> StoreError {
        match self.meaning {
            _ if earlier_may_be_done => StoreError::OutcomeUnknown(self.text),
            Meaning::OutOfTime | Meaning::Unknown => StoreError::OutcomeUnknown(self.text),
            Meaning::NotDone | Meaning::NotPrimary => StoreError::Unavailable(self.text),
            Meaning::Rejected | Meaning::Unusable => self.of_refusal(),
        }
    }

    /// A code of the server depends on how its collections are configured. An error of the driver
    /// itself is a bug.
    fn of_refusal(self) -> StoreError {
        match (self.meaning, self.code) {
            (Meaning::Unusable, _) => StoreError::Unusable(self.text),
            (_, Some(_)) => StoreError::Refused(self.text),
            (_, None) => StoreError::Internal(self.text),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = text_of(&error.kind);
        let of = |meaning, worth_repeating| Self { meaning, text: text.as_ref().into(), code: None, worth_repeating };
        match error.kind.as_ref() {
            ErrorKind::Command(answer) if error.contains_label(NO_WRITES_PERFORMED) => {
                Self { meaning: Meaning::NotDone, ..Self::answered(answer.code, &answer.code_name) }
            }
            ErrorKind::Command(answer) => Self::answered(answer.code, &answer.code_name),
            ErrorKind::Write(WriteFailure::WriteError(answer)) => {
                Self::answered(answer.code, answer.code_name.as_deref().unwrap_or_default())
            }
            ErrorKind::Write(WriteFailure::WriteConcernError(answer)) => {
                Self::not_confirmed(answer.code, &answer.code_name)
            }
            // The driver puts this label on network errors while it connects: nothing was sent.
            ErrorKind::Io(_) if error.contains_label(SYSTEM_OVERLOADED_ERROR) => of(Meaning::NotDone, true),
            ErrorKind::Io(_) => of(Meaning::Unknown, true),
            // The pool was cleared while this waited for a connection. The same kind is used when
            // the monitor closes a connection in use, and then it may have been sent.
            ErrorKind::ConnectionPoolCleared { message, .. } if message.starts_with("Connection pool for") => {
                of(Meaning::NotDone, true)
            }
            ErrorKind::Authentication { .. } => Self::not_done(&format!(
                "authentication failed: MongoDB rejects the user name and password in mongodb.uri, or its authSource \
                 ({text})"
            )),
            ErrorKind::ServerSelection { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::InvalidTlsConfig { .. }
            | ErrorKind::IncompatibleServer { .. }
            | ErrorKind::SessionsNotSupported
            | ErrorKind::Shutdown => of(Meaning::NotDone, false),
            ErrorKind::InvalidArgument { .. } => of(Meaning::Rejected, false),
            _ => of(Meaning::Unknown, false),
        }
    }
}

/// The driver's text for errors of connections, and a text of ours for others, which may repeat
/// what was sent or stored.
fn text_of(kind: &ErrorKind) -> Cow<'static, str> {
    match kind {
        ErrorKind::Io(_)
        | ErrorKind::Authentication { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::IncompatibleServer { .. }
        | ErrorKind::InvalidTlsConfig { .. }
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::SessionsNotSupported
        | ErrorKind::Shutdown => kind.to_string().into(),
        ErrorKind::InvalidArgument { .. } => "the driver rejects the arguments of the operation".into(),
        ErrorKind::InvalidResponse { .. } => "the driver does not understand the answer of MongoDB".into(),
        _ => "the driver could not write or read a message (its text may contain values and is not logged)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_an_error_repeats_what_the_server_or_the_driver_say_of_values() {
        const SECRET: &str = "SECRETVALUE";
        let unreadable = bson::deserialize_from_bson::<u8>(bson::Bson::String(SECRET.to_owned())).unwrap_err();
        let error = Error::from(unreadable);
        assert!(error.to_string().contains(SECRET), "the driver's own words hold it: {error}");
        let text = Failure::from(error).to_string();
        assert!(!text.contains(SECRET), "{text}");
        for code in [0, 11000, 121, 10334, 17419, 123_456] {
            let text = Failure::answered(code, &format!("an index says {SECRET}")).to_string();
            assert!(!text.contains(SECRET) && text.contains(&code.to_string()), "{text}");
        }
        let named = Failure::answered(123_456, "SomethingNew").to_string();
        assert_eq!(named, "MongoDB answered with an error: SomethingNew (code 123456)");
    }
}
