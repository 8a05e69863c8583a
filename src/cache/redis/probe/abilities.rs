//! Whether a server can do what L1 needs. Every command is tried on a scratch key under our prefix,
//! with the real scripts and over the same connections. So renamed commands, missing rights,
//! proxies and old versions are found by what they do, not by what they say.
//!
//! The trial runs for each new connection and once a minute. If an operation is refused because a
//! right is missing, the connections are closed (`send`), so the trial runs at once and names the
//! right.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_redis::redis::{Pipeline, Value};
use tokio::time::Instant;

use crate::cache::{
    CacheError, MAX_PERMITS,
    redis::{
        connections::{Lane, Shared, unavailable},
        reader::Reply,
        refusal::{self, Meaning},
        scripts::{Code, Scripts},
    },
};

/// The time between two trials over the same connections.
const INTERVAL: Duration = Duration::from_secs(60);
/// After a failed trial there is none for this long, as somebody must change the server first.
const HOLD_OFF: Duration = Duration::from_secs(5);
/// How long the scratch key lives if it cannot be removed, in ms.
const TTL_MS: u64 = 60_000;
/// An absent entry at revision 1, as `entry` packs it. The scripts ignore its checksum.
const PACKED: &[u8] = b"A\x01\0\0\0\0\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f";

/// When the servers were last tried, and what was missing.
#[derive(Debug, Default)]
pub(in crate::cache::redis) struct Abilities(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tried: HashMap<String, Instant>,
    missing: Option<(Instant, CacheError)>,
}

impl Abilities {
    /// The error of a trial that has just failed. Another one would fail too.
    pub(in crate::cache::redis) fn held_off(&self) -> Option<CacheError> {
        let state = self.lock();
        state.missing.as_ref().filter(|(at, _)| at.elapsed() < HOLD_OFF).map(|(_, error)| error.clone())
    }

    /// Whether the last probe of a server found that something is missing.
    pub(in crate::cache::redis) fn are_missing(&self) -> bool {
        self.lock().missing.is_some()
    }

    /// Notes the result of a probe.
    pub(in crate::cache::redis) fn probed<T>(&self, result: &Result<T, CacheError>) {
        let missing = match result {
            Err(error @ CacheError::Unsuitable(_)) => Some((Instant::now(), error.clone())),
            _ => None,
        };
        self.lock().missing = missing;
    }

    /// Whether to try a server now. It then counts as tried.
    pub(super) fn is_due(&self, address: &str, is_new: bool) -> bool {
        let mut state = self.lock();
        let is_due = is_new || state.tried.get(address).is_none_or(|at| at.elapsed() >= INTERVAL);
        if is_due {
            state.tried.insert(address.to_owned(), Instant::now());
        }
        is_due
    }

    /// Forgets servers that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().tried.retain(|address, _| is_there(address));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server that is tried.
pub(super) struct Subject<'a> {
    pub(super) address: &'a str,
    pub(super) shared: &'a Shared,
    pub(super) scripts: &'a Scripts,
    /// A master of a cluster that is configured as one.
    pub(super) in_cluster: bool,
    /// Whether writes wait for replicas.
    pub(super) waits: bool,
}

/// One command of the trial.
struct Step {
    /// Its name in error texts.
    name: &'static str,
    /// The rights that the user needs, in the syntax of ACL SETUSER.
    right: &'static str,
    /// Whether a reply is the one that L1 needs.
    is_good: fn(&Value) -> bool,
}

#[derive(Default)]
struct Trial {
    pipeline: Pipeline,
    steps: Vec<Step>,
}

impl Trial {
    fn step(&mut self, name: &'static str, right: &'static str, is_good: fn(&Value) -> bool) -> &mut Pipeline {
        self.steps.push(Step { name, right, is_good });
        &mut self.pipeline
    }

    fn script(&mut self, code: &Code, key: &str, is_good: fn(&Value) -> bool) -> &mut Pipeline {
        let pipeline = self.step("EVALSHA", "+evalsha", is_good);
        pipeline.cmd("EVALSHA").arg(code.sha()).arg(1).arg(key)
    }
}

/// The wrong reply to a command.
#[derive(Debug)]
struct Failure {
    name: &'static str,
    right: &'static str,
    meaning: Meaning,
    text: String,
}

impl Subject<'_> {
    /// Tries all commands on the first key that this server has now.
    pub(super) async fn try_all(&self, keys: &[String]) -> Result<(), CacheError> {
        for key in keys {
            let mut failures = self.try_pipeline(key).await?;
            if failures.is_empty() && !self.in_cluster {
                failures.extend(self.try_mget(key).await?);
            }
            if self.in_cluster && failures.iter().any(|failure| failure.meaning == Meaning::Elsewhere) {
                continue; // this slot is moving to another master
            }
            if let Some(now) = failures.iter().find(|failure| failure.meaning == Meaning::NotNow) {
                return Err(refusal::not_now(&now.text));
            }
            // Full memory is no missing ability: what is cached is still served.
            if failures.iter().any(|failure| failure.meaning == Meaning::Full) {
                failures.retain(|failure| {
                    matches!(failure.meaning, Meaning::CommandDenied | Meaning::KeysDenied | Meaning::Unknown)
                });
            }
            return if failures.is_empty() { Ok(()) } else { Err(lacking(self.address, &failures)) };
        }
        Ok(()) // all of these slots are moving; the probe's marker says so
    }

    async fn try_pipeline(&self, key: &str) -> Result<Vec<Failure>, CacheError> {
        let Trial { pipeline, steps } = self.trial(key);
        let replies = self.shared.send(pipeline, Lane::Swift).await.map_err(|e| {
            let why = format!(
                "the connection broke while the commands of L1 were tried ({e}); a proxy between that closes the \
                 connection on EVALSHA, SCRIPT LOAD or another of them prevents the use of L1"
            );
            CacheError::Unavailable(why.into())
        })?;
        if replies.len() != steps.len() {
            return Err(CacheError::Refused("not one reply a command".into()));
        }
        Ok(steps.iter().zip(&replies).filter_map(|(step, reply)| step.failure(reply)).collect())
    }

    /// Everything but MGET, in the order of the life of an entry.
    fn trial(&self, key: &str) -> Trial {
        let mut trial = Trial::default();
        trial.step("DEL", "+del", is_number).cmd("DEL").arg(key);
        trial.step("SET", "+set", is_ok).cmd("SET").arg(key).arg("x").arg("PX").arg(TTL_MS);
        trial.step("SET with KEEPTTL", "+set", is_ok).cmd("SET").arg(key).arg("y").arg("KEEPTTL");
        trial.step("PTTL", "+pttl", is_positive).cmd("PTTL").arg(key);
        trial.step("TIME", "+time", is_list).cmd("TIME");
        trial.step("GET", "+get", is_y).cmd("GET").arg(key);
        let eval = trial.step("EVAL", "+eval", is_y);
        eval.cmd("EVAL").arg("return redis.call('GET', KEYS[1])").arg(1).arg(key);
        trial.step("DEL", "+del", is_number).cmd("DEL").arg(key);
        if self.waits {
            trial.step("WAIT", "+wait", is_number).cmd("WAIT").arg(0).arg(1);
        }
        if self.in_cluster {
            trial.step("ASKING", "+asking", is_ok).cmd("ASKING");
        }
        let Scripts { acquire, settle, mark, put, unmark } = self.scripts;
        for code in [acquire, settle, mark, put, unmark] {
            trial.step("SCRIPT LOAD", "+script|load", is_text).cmd("SCRIPT").arg("LOAD").arg(code.text);
        }
        trial.script(acquire, key, is_list).arg("lease").arg(TTL_MS).arg(TTL_MS);
        trial.script(settle, key, is_text).arg(1).arg("lease").arg(PACKED).arg(TTL_MS);
        for permit in ["one", "two"] {
            trial.script(mark, key, is_text).arg(permit).arg(TTL_MS).arg(TTL_MS).arg(MAX_PERMITS);
        }
        // Another permit is left, so this is a SET with KEEPTTL.
        trial.script(unmark, key, is_text).arg("one");
        trial.script(put, key, is_text).arg("two").arg(PACKED).arg(TTL_MS);
        let is_packed = |reply: &Value| matches!(reply, Value::BulkString(held) if held == PACKED);
        trial.step("GET", "+get", is_packed).cmd("GET").arg(key);
        if self.in_cluster {
            trial.step("DEL", "+del", is_number).cmd("DEL").arg(key); // else MGET comes first
        }
        trial
    }

    /// MGET, over the connections of reads. The two keys are in different slots, which a node of a
    /// cluster refuses.
    async fn try_mget(&self, key: &str) -> Result<Option<Failure>, CacheError> {
        let other = format!("{key}+");
        let reply = self.shared.mget_once(&[key.as_bytes(), other.as_bytes()]).await?;
        let mut clean = Pipeline::new();
        clean.cmd("DEL").arg(key);
        self.shared.send(clean, Lane::Swift).await.map_err(|e| unavailable(&e))?;
        let text = match &reply {
            Reply::Array(values) if values.len() == 2 && values[0].as_deref() == Some(PACKED) => return Ok(None),
            Reply::Error(text) => text.clone(),
            other => format!("{other:?}"),
        };
        Ok(Some(Failure { name: "MGET", right: "+mget", meaning: refusal::meaning(&text), text }))
    }
}

impl Step {
    fn failure(&self, reply: &Value) -> Option<Failure> {
        let text = match reply {
            Value::ServerError(error) => refusal::text_of(error),
            reply if (self.is_good)(reply) => return None,
            reply => format!("{reply:?}"),
        };
        let meaning = if matches!(reply, Value::ServerError(_)) { refusal::meaning(&text) } else { Meaning::Other };
        Some(Failure { name: self.name, right: self.right, meaning, text })
    }
}

/// What is missing and what to do. Of several kinds the one to correct first.
fn lacking(address: &str, failures: &[Failure]) -> CacheError {
    let kinds = [Meaning::Elsewhere, Meaning::KeysDenied, Meaning::CommandDenied, Meaning::Unknown];
    let first = kinds.iter().find_map(|kind| failures.iter().find(|failure| failure.meaning == *kind));
    let first = first.unwrap_or(&failures[0]);
    let list = |of: fn(&Failure) -> &'static str, separator: &str| {
        let mut all: Vec<&str> = failures.iter().filter(|other| other.meaning == first.meaning).map(of).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|one| seen.insert(*one));
        all.join(separator)
    };
    let (names, answer) = (list(|failure| failure.name, ", "), refusal::shown(&first.text));
    let what = match first.meaning {
        Meaning::Elsewhere => format!(
            "is a node of a Redis Cluster ({answer}), so L1 is bypassed: set redis.url to \
             redis-cluster://host1,host2"
        ),
        Meaning::KeysDenied => format!(
            "does not allow keys that begin with {{}}fs: ({answer}), so L1 is bypassed: allow them for this user with \
             ACL SETUSER USER ~{{}}fs:*"
        ),
        Meaning::CommandDenied => format!(
            "does not allow {names} ({answer}), so L1 is bypassed: allow this user what it lacks with ACL SETUSER USER \
             {}",
            list(|failure| failure.right, " ")
        ),
        Meaning::Unknown => format!(
            "does not know {names} ({answer}), so L1 is bypassed: each of these must exist under its own name, \
             which rename-command, a proxy or a managed service may prevent"
        ),
        _ => format!(
            "does not execute {names} as L1 needs it ({answer}), so L1 is bypassed: L1 needs Redis 6.2 or newer, \
             or Valkey"
        ),
    };
    CacheError::Unsuitable(format!("Redis at {address} {what}").into())
}

fn is_ok(reply: &Value) -> bool {
    matches!(reply, Value::Okay)
}

fn is_number(reply: &Value) -> bool {
    matches!(reply, Value::Int(_))
}

fn is_positive(reply: &Value) -> bool {
    matches!(reply, Value::Int(1..))
}

fn is_list(reply: &Value) -> bool {
    matches!(reply, Value::Array(values) if values.len() == 2)
}

fn is_text(reply: &Value) -> bool {
    matches!(reply, Value::BulkString(_) | Value::SimpleString(_))
}

fn is_y(reply: &Value) -> bool {
    matches!(reply, Value::BulkString(held) if held == b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &'static str, right: &'static str, text: &str) -> Failure {
        Failure { name, right, meaning: refusal::meaning(text), text: text.to_owned() }
    }

    fn told(failures: &[Failure]) -> String {
        lacking("redis://h:6379/0", failures).to_string()
    }

    #[test]
    fn everything_that_is_missing_is_named_once_with_what_to_do() {
        let denied = "NOPERM this user has no permissions to run the 'evalsha' command";
        let text = told(&[
            failure("EVALSHA", "+evalsha", denied),
            failure("EVALSHA", "+evalsha", denied),
            failure("PTTL", "+pttl", denied),
        ]);
        assert!(text.contains("does not allow EVALSHA, PTTL (NOPERM"), "{text}");
        assert!(text.ends_with("ACL SETUSER USER +evalsha +pttl"), "{text}");
        let unknown = told(&[failure("SCRIPT LOAD", "+script|load", "ERR unknown command 'SCRIPT', with args")]);
        assert!(unknown.contains("redis://h:6379/0 does not know SCRIPT LOAD (ERR unknown"), "{unknown}");
        let old = told(&[failure("SET with KEEPTTL", "+set", "ERR syntax error")]);
        assert!(old.contains("SET with KEEPTTL") && old.contains("6.2 or newer"), "{old}");
    }

    #[test]
    fn a_node_of_a_cluster_is_named_as_such_whatever_else_it_refuses() {
        let text =
            told(&[failure("EVALSHA", "+evalsha", "ERR syntax error"), failure("SET", "+set", "MOVED 1 127.0.0.1:1")]);
        assert!(text.contains("redis-cluster://host1,host2"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lacks_something_is_left_alone_for_a_while() {
        let abilities = Abilities::default();
        let lack: Result<(), _> = Err(CacheError::Unsuitable("no".into()));
        abilities.probed(&lack);
        assert_eq!(abilities.held_off(), lack.clone().err());
        tokio::time::advance(HOLD_OFF).await;
        assert!(abilities.held_off().is_none() && abilities.are_missing());
        abilities.probed(&Ok(()));
        assert!(!abilities.are_missing());
        assert!(abilities.is_due("a", false) && !abilities.is_due("a", false) && abilities.is_due("a", true));
        tokio::time::advance(INTERVAL).await;
        assert!(abilities.is_due("a", false));
    }
}
