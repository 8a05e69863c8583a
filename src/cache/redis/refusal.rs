//! What an error of Redis means for L1: the server lacks something, it cannot serve for a while, or
//! neither.
//!
//! Errors differ between versions. Since Redis 7 the error of a command in a script keeps its code.
//! Earlier it was `ERR Error running script`, with the code in the text.

use deadpool_redis::redis::{ServerError, Value};

use crate::cache::CacheError;

/// Longer texts are cut: the reply to an unknown command repeats its arguments, such as a script.
const MAX_SHOWN: usize = 160;

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The user may not run the command.
    CommandDenied,
    /// The user may not use keys with our prefix.
    KeysDenied,
    /// There is no command of this name.
    Unknown,
    /// The server is a node of a Redis Cluster, and does not have this key.
    Elsewhere,
    /// Its memory is full.
    Full,
    /// It cannot serve now, but may do so later without a change of its settings.
    NotNow,
    /// Something else.
    Other,
}

/// The error as Redis sent it.
pub(super) fn text_of(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

/// What an error means, by its text.
pub(super) fn meaning(text: &str) -> Meaning {
    let lower = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let denied = ["acl failure in script", "executing script can't", "executing the script can't"];
    if text.starts_with("NOPERM") || says(&denied) {
        let keys =
            says(&["access a key", "access the '", "access one of the keys", "can't access at least one of the keys"]);
        return if keys { Meaning::KeysDenied } else { Meaning::CommandDenied };
    }
    if says(&["unknown command", "unknown redis command", "unknown subcommand"]) {
        return Meaning::Unknown;
    }
    match code(text) {
        "MOVED" | "ASK" | "CROSSSLOT" | "TRYAGAIN" | "CLUSTERDOWN" => Meaning::Elsewhere,
        "OOM" => Meaning::Full,
        "READONLY" | "LOADING" | "MASTERDOWN" | "BUSY" | "MISCONF" | "NOREPLICAS" | "NOAUTH" | "DENIED" => {
            Meaning::NotNow
        }
        _ if text.starts_with("ERR max number of clients") => Meaning::NotNow,
        _ => Meaning::Other,
    }
}

/// The code of an error. For an error of a script it is the code of the command that failed.
fn code(text: &str) -> &str {
    let first = |text: &'_ str| text.split(' ').next().map_or(0, str::len);
    let inner = if text.starts_with("ERR Error running script") {
        text.split(": -").nth(1).or_else(|| text.split("-@user_script").next())
    } else {
        None
    };
    let text = inner.unwrap_or(text);
    &text[..first(text)]
}

/// The text of an error up to where it repeats values: Redis repeats the arguments of an unknown
/// command, and the driver a reply that it did not expect.
pub(super) fn without_values(text: &str) -> &str {
    let repeated = [", with args beginning with", "(response was"].into_iter().filter_map(|begin| text.find(begin));
    repeated.min().map_or(text, |end| text[..end].trim_end())
}

/// The error on one line, cut, and without repeated values.
pub(super) fn shown(text: &str) -> String {
    let line: String = without_values(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", line[..end].trim_end()),
        None => line.trim_end().to_owned(),
    }
}

/// Why a server cannot serve now, and what to do.
pub(super) fn not_now(text: &str) -> CacheError {
    let what = match code(text) {
        "READONLY" => "it is a replica: redis.url must name the master, or the sentinels (redis-sentinel://)",
        "LOADING" => "it is still loading its data from disk, because it persists: L1 is used when it has finished",
        "MASTERDOWN" => "it is a replica that has lost its master: redis.url must name the master",
        "BUSY" => "a script of another client blocks it; SCRIPT KILL ends that script",
        "MISCONF" => "it cannot save its data to disk and therefore refuses writes: set save \"\" and appendonly no",
        "NOREPLICAS" => "it has fewer replicas than min-replicas-to-write asks for, and therefore refuses writes",
        "NOAUTH" => "authentication failed: Redis asks for a password (redis.url, or redis.password)",
        "DENIED" => "it is in protected mode: set a password or an ACL user in Redis, and the same in redis.url",
        "OOM" => "its memory is full and nothing can be evicted: raise maxmemory, and set maxmemory-policy allkeys-lru",
        _ if text.contains("max number of clients") => {
            "it accepts no more connections: raise maxclients in Redis, or use fewer (redis.connections)"
        }
        _ => "it cannot serve now",
    };
    CacheError::Unavailable(format!("{what} ({})", shown(text)).into())
}

/// Whether a refusal says that memory is full.
pub(super) fn is_full(text: &str) -> bool {
    meaning(text) == Meaning::Full
}

/// Whether a refusal ends by itself, or with more memory.
pub(super) fn is_full_or_not_now(text: &str) -> bool {
    matches!(meaning(text), Meaning::Full | Meaning::NotNow)
}

/// The first reply that says that the server cannot serve now.
pub(super) fn hindrance(replies: &[Value]) -> Option<CacheError> {
    replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => {
            let text = text_of(error);
            (meaning(&text) == Meaning::NotNow).then(|| not_now(&text))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_versions_are_understood() {
        for (text, expected) in [
            ("NOPERM this user has no permissions to run the 'evalsha' command", Meaning::CommandDenied),
            ("NOPERM this user has no permissions to run the 'eval' command or its subcommand", Meaning::CommandDenied),
            ("NOPERM User me has no permissions to run the 'script|load' command", Meaning::CommandDenied),
            ("NOPERM No permissions to access a key", Meaning::KeysDenied),
            ("NOPERM User me has no permissions to access the '{}fs:1' key", Meaning::KeysDenied),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", Meaning::KeysDenied),
            (
                "ERR ACL failure in script: this user has no permissions to run the 'set' command script: f1, on \
                 @user_script:8.",
                Meaning::CommandDenied,
            ),
            (
                "ERR Error running script (call to f_12): @user_script:8: @user_script: 8: -NOPERM The user executing \
                 the script can't run this command or subcommand",
                Meaning::CommandDenied,
            ),
            ("ERR unknown command 'EVAL', with args beginning with: 'return 1' '0' ", Meaning::Unknown),
            ("ERR unknown command `EVAL`, with args beginning with: ", Meaning::Unknown),
            ("ERR Unknown Redis command called from script script: f1, on @user_script:1.", Meaning::Unknown),
            ("ERR Unknown subcommand or wrong number of arguments for 'load'. Try SCRIPT HELP.", Meaning::Unknown),
            ("MOVED 3999 127.0.0.1:6381", Meaning::Elsewhere),
            ("CROSSSLOT Keys in request don't hash to the same slot", Meaning::Elsewhere),
            ("OOM command not allowed when used memory > 'maxmemory'.", Meaning::Full),
            ("ERR Error running script (call to f_12): @user_script:8: -OOM command not allowed", Meaning::Full),
            ("READONLY You can't write against a read only replica.", Meaning::NotNow),
            ("ERR Error running script (call to f_1): @user_script:8: -READONLY You can't write", Meaning::NotNow),
            ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", Meaning::NotNow),
            ("BUSY Redis is busy running a script.", Meaning::NotNow),
            ("ERR syntax error", Meaning::Other),
            ("", Meaning::Other),
        ] {
            assert_eq!(meaning(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_shown_of_an_error_is_one_short_line() {
        assert_eq!(shown("ERR a\r\nb "), "ERR a  b");
        assert_eq!(shown(&"ü".repeat(500)).chars().count(), MAX_SHOWN + 3);
        let CacheError::Unavailable(why) = not_now("READONLY You can't write against a read only replica.") else {
            panic!("it is not there for us")
        };
        assert!(why.contains("redis-sentinel://") && why.ends_with("a read only replica.)"), "{why}");
    }

    #[test]
    fn no_text_of_an_error_repeats_a_value() {
        let unknown = "ERR: unknown command 'EVALSHA', with args beginning with: 'a1' '1' 'key' 'SECRETVALUE' ";
        assert_eq!(without_values(unknown), "ERR: unknown command 'EVALSHA'");
        let parse =
            "Response was of incompatible type - TypeError: no number (response was bulk-string('\"SECRETVALUE\"'))";
        assert_eq!(without_values(parse), "Response was of incompatible type - TypeError: no number");
        assert_eq!(shown(unknown), "ERR: unknown command 'EVALSHA'");
        assert_eq!(without_values("timed out"), "timed out");
    }
}
