//! A look at what Redis holds, before anything is read from it.
//!
//! Redis names each of its runs (`run_id`). The first probe of an epoch in a run leaves a marker, `{}fs:<epoch>`, that holds
//! that name. A marker of another run means that Redis restarted and loaded what an earlier run held: its entries may be
//! older than writes that were acknowledged since. Each probe prolongs the marker, so that it outlives every entry that it
//! vouches for, and the markers of epochs that nobody uses go. Where it was evicted, what this process saw before still
//! tells.
//!
//! Where INFO is not allowed a restart with old data cannot be noticed; a warning says so.

use std::sync::Arc;

use deadpool_redis::redis::{Pipeline, Value};

use super::{
    RedisCache,
    connections::{Shared, unavailable},
};
use crate::cache::{CacheError, Epoch, Probe};

/// Stands for a `run_id` that cannot be asked for.
const UNKNOWN_RUN: &str = "unknown";
/// How long a marker outlives the last probe, in ms: 7 days. No entry lives half as long as a tombstone, whose default is
/// a day.
const MARKER_TTL: &str = "604800000";
/// What the scripts need: SET with KEEPTTL came with 6.0; older ones than this are no longer maintained by anybody.
const OLDEST_VERSION: (u32, u32) = (6, 2);

/// The run in which this process last verified an epoch.
#[derive(Debug)]
pub(super) struct Seen {
    epoch: Epoch,
    run: String,
}

impl RedisCache {
    /// Connects if need be, verifies, and puts the connections to use where all is well. The caller bounds the time, and lets
    /// the connections go where this fails.
    pub(super) async fn verify(&self, epoch: Epoch) -> Result<Probe, CacheError> {
        let mut seen = self.probed.lock().await;
        let (shared, is_new) = match self.connections.verified() {
            Some(shared) if shared.ping().await.is_ok() => (shared, false),
            _ => {
                self.connections.lose();
                (Arc::new(self.connections.connect().await?), true)
            }
        };
        let info = ask(&shared, &["INFO", "server"]).await?;
        if is_new {
            warn_of_settings(&shared, &info, &self.address).await?;
        }
        let run = field(&info, "run_id").unwrap_or(UNKNOWN_RUN).to_owned();
        let held = marker(&shared, epoch, &run, seen.as_ref()).await?;
        if held == Probe::Intact {
            *seen = Some(Seen { epoch, run });
            self.connections.trust(shared);
        } else {
            tracing::warn!(address = self.address, %epoch, "Redis restarted and still holds entries of an earlier time");
        }
        Ok(held)
    }
}

/// Compares the epoch's marker with this run, and leaves one where there is none.
async fn marker(shared: &Shared, epoch: Epoch, run: &str, seen: Option<&Seen>) -> Result<Probe, CacheError> {
    let key = format!("{{}}fs:{epoch}");
    let read = ["GETEX", key.as_str(), "PX", MARKER_TTL];
    let mut found = ask(shared, &read).await?;
    if matches!(found, Value::Nil) {
        // Evicted? Then this process may still know of another run, and a Redis that came back empty is not full.
        let other_run = seen.is_some_and(|seen| seen.epoch == epoch && seen.run != run);
        if other_run && !matches!(ask(shared, &["DBSIZE"]).await?, Value::Int(0)) {
            return Ok(Probe::Restored);
        }
        // Another server may be first: then its marker counts.
        refuse(ask(shared, &["SET", &key, run, "NX", "PX", MARKER_TTL]).await?)?;
        found = ask(shared, &read).await?;
    }
    match refuse(found)? {
        Value::BulkString(found) if found == run.as_bytes() => Ok(Probe::Intact),
        _ => Ok(Probe::Restored),
    }
}

/// Says once a connect what is wrong with the server's settings, as far as it lets us see them.
async fn warn_of_settings(shared: &Shared, info: &Value, address: &str) -> Result<(), CacheError> {
    match field(info, "redis_version") {
        Some(version) if parse_version(version).is_some_and(|version| version < OLDEST_VERSION) => {
            tracing::warn!(address, version, "Redis is older than 6.2");
        }
        Some(_) => {}
        None => tracing::warn!(address, "Redis does not allow INFO: a restart with old data cannot be noticed"),
    }
    for (setting, wanted) in [("save", ""), ("appendonly", "no")] {
        if let Value::Array(reply) = ask(shared, &["CONFIG", "GET", setting]).await?
            && let [_, Value::BulkString(value)] = &reply[..]
            && value != wanted.as_bytes()
        {
            let value = String::from_utf8_lossy(value);
            tracing::warn!(address, setting, %value, "Redis persists; a restart will need a new epoch: set save \"\" and appendonly no");
        }
    }
    Ok(())
}

async fn ask(shared: &Shared, command: &[&str]) -> Result<Value, CacheError> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd(command[0]).arg(&command[1..]);
    let replies = shared.send(pipeline).await.map_err(|e| unavailable(&e))?;
    Ok(replies.into_iter().next().unwrap_or_default())
}

fn refuse(reply: Value) -> Result<Value, CacheError> {
    match reply {
        Value::ServerError(e) => Err(CacheError::Refused(e.to_string().into())),
        other => Ok(other),
    }
}

fn field<'a>(info: &'a Value, name: &str) -> Option<&'a str> {
    let text = match info {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_versions_are_read_from_info() {
        let info = Value::BulkString(b"# Server\r\nredis_version:7.0.15\r\nrun_id:ab12\r\n".to_vec());
        assert_eq!(field(&info, "run_id"), Some("ab12"));
        assert_eq!(field(&info, "run"), None);
        assert_eq!(field(&info, "redis_version").and_then(parse_version), Some((7, 0)));
        assert!((6, 0) < OLDEST_VERSION && (6, 2) >= OLDEST_VERSION);
        assert_eq!(parse_version("unstable"), None);
    }
}
