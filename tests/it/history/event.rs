//! What clients saw, call by call and key by key, on the one clock of the test process.

use std::time::Duration;

/// Since the start of the test.
pub type Nanos = u64;

/// One call about one key; a batch is one event a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub client: u16,
    pub server: u8,
    pub key: u16,
    pub invoked: Nanos,
    pub returned: Nanos,
    pub call: Call,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Read { strong: bool, at_least: i64 },
    Write(Attempt),
}

/// One sending of a write; retries of it share its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    pub write: u64,
    pub kind: Kind,
    /// Sent before, with an outcome that is not known.
    pub again: bool,
    /// One of several in a message: its answer's revision is that of a read back, which may be another write's.
    pub batched: bool,
    pub if_revision: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sets `last` and `base`.
    Replace,
    /// Sets `last`.
    Merge,
    Delete,
}

/// What a record holds: the numbers of the write that made it and of the last one that replaced all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub last: u64,
    pub base: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A read's; None: no such record.
    Row { revision: i64, value: Option<Value>, degraded: bool, from_l1: bool },
    /// A read that asked for a revision was told that there is none so new.
    NotReached,
    /// A write's; `changed`: WRITTEN or DELETED, else SKIPPED_STALE or NOT_FOUND.
    Done { changed: bool, revision: i64, cached: bool },
    /// `if_revision` differs from what is stored; 0: no live record.
    Mismatch { stored: i64 },
    /// It surely did not happen.
    Refused,
    /// It may have happened, or may happen yet; it returned when the client gave up.
    Unknown,
}

/// What a fault does to the promise: coherence.md's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Whatever was answered as confirmed is seen by every later default read.
    Linearizable,
    /// A deposed primary may answer one old majority read.
    Election,
}

/// A fault, from its start until the servers had recovered from it.
#[derive(Clone, Debug)]
pub struct Window {
    pub fault: &'static str,
    pub class: Class,
    pub from: Nanos,
    pub until: Nanos,
}

/// How long an older value may be read, where the promise is a bound.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// After an answer that said `cached = false` or `degraded`.
    pub unconfirmed: Duration,
    /// After any answer, while MongoDB elects.
    pub election: Duration,
    /// After any answer, at a server whose L1 is its own beside others' and follows MongoDB's changes.
    pub followed: Duration,
    /// That server. What it reads is confirmed to nobody else, by docs/operations.md.
    pub follower: Option<u8>,
}

impl Default for Bounds {
    fn default() -> Self {
        let [unconfirmed, election, followed] = [35, 35, 5].map(Duration::from_secs);
        Self { unconfirmed, election, followed, follower: None }
    }
}
