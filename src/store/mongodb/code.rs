//! The names of MongoDB's error codes. The text of an error is never kept, because it repeats the
//! command or the beginning of a document, and so the values of features.

/// MongoDB's name of an error code. None: the code is not known here.
pub(super) fn name(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "BadValue",
        6 => "HostUnreachable",
        7 => "HostNotFound",
        9 => "FailedToParse",
        11 => "UserNotFound",
        13 => "Unauthorized",
        14 => "TypeMismatch",
        18 => "AuthenticationFailed",
        20 => "IllegalOperation",
        26 => "NamespaceNotFound",
        43 => "CursorNotFound",
        50 => "MaxTimeMSExpired",
        59 => "CommandNotFound",
        64 => "WriteConcernTimeout",
        67 => "CannotCreateIndex",
        72 => "InvalidOptions",
        73 => "InvalidNamespace",
        79 => "UnknownReplWriteConcern",
        85 => "IndexOptionsConflict",
        86 => "IndexKeySpecsConflict",
        89 => "NetworkTimeout",
        91 => "ShutdownInProgress",
        96 => "OperationFailed",
        100 => "UnsatisfiableWriteConcern",
        112 => "WriteConflict",
        241 => "ConversionFailure",
        115 => "CommandNotSupported",
        121 => "DocumentValidationFailure",
        134 => "ReadConcernMajorityNotAvailableYet",
        136 => "CappedPositionLost",
        166 => "CommandNotSupportedOnView",
        189 => "PrimarySteppedDown",
        246 => "SnapshotUnavailable",
        260 => "InvalidResumeToken",
        262 => "ExceededTimeLimit",
        263 => "OperationNotSupportedInTransaction",
        276 => "IndexBuildAborted",
        280 => "ChangeStreamFatalError",
        286 => "ChangeStreamHistoryLost",
        8000 => "AtlasError",
        9001 => "SocketException",
        10058 => "LegacyNotPrimary",
        10107 => "NotWritablePrimary",
        10334 => "BSONObjectTooLarge",
        11000 => "DuplicateKey",
        11600 => "InterruptedAtShutdown",
        11602 => "InterruptedDueToReplStateChange",
        13435 => "NotPrimaryNoSecondaryOk",
        13436 => "NotPrimaryOrSecondary",
        14031 => "OutOfDiskSpace",
        17419 => "the document would be too large after the update",
        17420 => "the new document would be too large",
        _ => return None,
    })
}

/// Whether MongoDB refused a write because the document, or a part of it, would be too large.
pub(super) fn is_too_large(code: i32) -> bool {
    matches!(code, 10334 | 17419 | 17420)
}

/// An error, without anything that was sent or stored. `named`: the name of the code in the answer.
pub(super) fn describe(code: i32, named: &str) -> String {
    let is_name = !named.is_empty() && named.len() <= 64 && named.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let name = name(code).or(is_name.then_some(named));
    let hint = match code {
        13 => "; the user of mongodb.uri lacks a right, see docs/security.md",
        11000 => "; another index of the collection, or its collation, forbids it",
        121 => "; a validator of the collection forbids it",
        14031 => "; MongoDB has no room on its disk",
        _ => "",
    };
    match name {
        Some(name) => format!("MongoDB answered with an error: {name} (code {code}){hint}"),
        None => format!("MongoDB answered with an error: code {code}"),
    }
}
