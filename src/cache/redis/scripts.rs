//! The Lua scripts: running one for a batch, and reading its reply.
//!
//! A batch is one pipeline of EVALSHA for each server. Redis forgets scripts (a restart, SCRIPT
//! FLUSH). An unknown script did nothing, so it is sent once more after a SCRIPT LOAD (`send`). If
//! a script fails in any other way, or its reply cannot be read, the entry is removed.

use std::time::Duration;

use deadpool_redis::redis::{Pipeline, Script, Value};
use tokio::time::Instant;

use super::{RedisCache, entry, refusal, send::Sending};
use crate::cache::{Acquired, CacheError, CacheKey, Effect, Marked};

macro_rules! script {
    ($name:literal) => {
        Code::new(
            $name,
            concat!(include_str!("../scripts/prelude.lua"), include_str!(concat!("../scripts/", $name, ".lua"))),
        )
    };
}

#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) acquire: Code,
    pub(super) settle: Code,
    pub(super) mark: Code,
    pub(super) put: Code,
    pub(super) unmark: Code,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: script!("acquire"),
            settle: script!("settle"),
            mark: script!("mark"),
            put: script!("put"),
            unmark: script!("unmark"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Code {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    sha: String,
}

impl Code {
    fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, sha: Script::new(text).get_hash().to_owned() }
    }

    /// The hash for EVALSHA.
    pub(super) fn sha(&self) -> &str {
        &self.sha
    }
}

/// An operation: how the key and arguments of an item are sent, how its reply is read, and what is
/// answered if the entry had to be removed instead.
pub(super) struct Operation<'a, I, T> {
    pub(super) code: &'a Code,
    /// How many replicas must have it before it counts.
    pub(super) wait: u32,
    pub(super) key: fn(&I) -> &CacheKey,
    pub(super) args: &'a (dyn Fn(&mut Pipeline, &I) + Sync),
    pub(super) read: fn(&I, Value) -> Option<T>,
    pub(super) instead: T,
}

impl RedisCache {
    /// Runs an operation on every item. One result for each item.
    pub(super) async fn run<I: Sync, T: Clone + Sync>(
        &self,
        operation: Operation<'_, I, T>,
        items: &[I],
        deadline: Instant,
    ) -> Vec<Result<T, CacheError>> {
        if items.is_empty() {
            return Vec::new();
        }
        let write = |pipeline: &mut Pipeline, item: &I| {
            pipeline.cmd("EVALSHA").arg(&operation.code.sha).arg(1).arg((operation.key)(item).as_bytes());
            (operation.args)(pipeline, item);
        };
        let sending = Sending {
            key: operation.key,
            write: &write,
            command: "EVALSHA",
            script: Some(operation.code),
            wait: operation.wait,
        };
        let replies = self.servers.send_each(items, &sending, deadline).await;

        let read = |(item, reply): (&I, Result<Value, CacheError>)| reply.map(|reply| operation.read(item, reply));
        let results: Vec<Result<Option<T>, CacheError>> = items.iter().zip(replies).map(read).collect();
        let failed = positions(&results, |result| matches!(result, Ok(None)));
        let failed: Vec<&CacheKey> = failed.into_iter().map(|at| (operation.key)(&items[at])).collect();
        let mut removed = self.remove_all(&failed, operation.wait, deadline).await.into_iter();
        let settled = results.into_iter().map(|result| match result {
            Ok(Some(result)) => Ok(result),
            // `removed` has one result for each of these, in this order.
            Ok(None) => removed.next().unwrap_or(Err(CacheError::Timeout)).map(|()| operation.instead.clone()),
            Err(e) => Err(e),
        });
        settled.collect()
    }
}

impl<I, T> Operation<'_, I, T> {
    /// None: the script failed, or its reply is invalid.
    fn read(&self, item: &I, reply: Value) -> Option<T> {
        if let Value::ServerError(e) = &reply {
            tracing::debug!(
                error = refusal::without_values(&e.to_string()),
                "a script failed in Redis, so the entry is removed"
            );
        }
        (self.read)(item, reply)
    }
}

fn positions<T>(all: &[T], is: impl Fn(&T) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|at| is(&all[*at])).collect()
}

/// The reply of `acquire.lua`. A value that cannot be read counts as a failure.
pub(super) fn acquired(key: &CacheKey, reply: Value) -> Option<Acquired> {
    let Value::Array(reply) = reply else { return None };
    let [what, packed] = <[Value; 2]>::try_from(reply).ok()?;
    let value = match packed {
        Value::Nil => None,
        Value::BulkString(packed) => Some(entry::unpack(key, packed.into())?),
        _ => return None,
    };
    match word(&what)? {
        "HIT" => Some(Acquired::Hit(value?)),
        "LEASE" => Some(Acquired::Lease { suspect: value }),
        "NOFILL" => Some(Acquired::NoFill { suspect: value }),
        _ => None,
    }
}

/// The reply of `settle.lua`, `put.lua` and `unmark.lua`.
pub(super) fn effect(reply: &Value) -> Option<Effect> {
    match word(reply)? {
        "INSTALLED" => Some(Effect::Installed),
        "DROPPED" => Some(Effect::Dropped),
        "KEPT" => Some(Effect::Kept),
        "NONE" => Some(Effect::NoEntry),
        _ => None,
    }
}

/// The reply of `mark.lua`.
pub(super) fn marked(reply: &Value) -> Option<Marked> {
    match word(reply)? {
        "GRANTED" => Some(Marked::Granted),
        "OVERFLOW" => Some(Marked::Overflow),
        _ => None,
    }
}

fn word(reply: &Value) -> Option<&str> {
    match reply {
        Value::BulkString(word) => std::str::from_utf8(word).ok(),
        Value::SimpleString(word) => Some(word),
        _ => None,
    }
}

/// A lifetime for Redis, in ms: at least 1, and at most 49 days so that sums cannot overflow.
pub(super) fn ttl_ms(ttl: Duration) -> u64 {
    ttl.as_millis().clamp(1, u128::from(u32::MAX)) as u64
}
