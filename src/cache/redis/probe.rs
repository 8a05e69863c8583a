//! A look at what Redis holds, before anything is read from it.
//!
//! Each master has a marker in its data, `{}fs:<epoch>`, in a cluster `{}fs:<epoch>#<number>` in a slot of its own. It says
//! which server verified the data when; every probe renews it, so that it outlives every entry that it vouches for, and the
//! markers of epochs that nobody uses go. A server whose marker was not written by itself has restarted with what an
//! earlier run held, or was promoted; `marker` tells which. Where INFO is not allowed neither can be noticed; a warning
//! says so.
//!
//! In a cluster one master that is lost makes the probe fail, and L1 is given up as a whole until the cluster has put
//! another in its place: there is one breaker, and one list of keys that L1 may be wrong about. Until the probe finds out,
//! the other masters' keys are answered.

mod abilities;
mod marker;
mod settings;

use std::{collections::HashMap, sync::Arc};

use deadpool_redis::redis::{Pipeline, Value};
use futures_util::future::join_all;

pub(super) use self::{abilities::Abilities, settings::Settings};
use self::{
    abilities::Subject,
    marker::{Identity, Marker, Memory, Present, judge},
};
use super::{
    RedisCache,
    connections::{Lane, Shared, unavailable},
    refusal,
    send::has_waited,
    servers::{Layout, Master, slots},
};
use crate::cache::{CacheError, Epoch, Probe};

const BEAT: &str = include_str!("../scripts/beat.lua");
/// Stands for what cannot be asked for.
const UNKNOWN: &str = "unknown";
/// How long a marker outlives the last probe, in ms: 7 days. No entry lives half as long as a tombstone, whose default is
/// a day.
const MARKER_TTL: &str = "604800000";
/// How often the marker is looked at again where another server renewed it at the same time.
const TRIES: usize = 5;
/// Slots of a master that may hold its marker: the next one where one is on its way to another master.
const MARKER_SLOTS: usize = 3;
/// How long replicas may take in a probe, in ms.
const REPLICAS_PATIENCE: u32 = 500;
/// What the keys begin with on which the abilities of a server are tried.
const SCRATCH: &str = "{}fs:check:";

/// What this process last verified, and in which epoch.
#[derive(Debug, Default)]
pub(super) struct Seen {
    epoch: Option<Epoch>,
    masters: HashMap<String, Identity>,
}

/// A master that was looked at; not yet in use.
struct Look {
    found: Probe,
    identity: Identity,
    shared: Arc<Shared>,
}

impl RedisCache {
    /// Finds the masters, connects if need be, verifies, and puts the connections to use where all is well. The caller
    /// bounds the time, and lets the connections go where this fails.
    pub(super) async fn verify(&self, epoch: Epoch) -> Result<Probe, CacheError> {
        let mut seen = self.probed.lock().await;
        if seen.epoch != Some(epoch) {
            *seen = Seen { epoch: Some(epoch), masters: HashMap::new() };
        }
        let layout = self.servers.look().await?;
        let places = 0..layout.masters.len();
        let looks = join_all(places.map(|place| self.look_at(&layout, place, epoch, &seen.masters))).await;
        let is_restored = |look: &_| matches!(look, Ok(Some(Look { found: Probe::Restored, .. })));
        if let Some(place) = looks.iter().position(is_restored) {
            let address = self.shown(&layout.masters[place]);
            tracing::warn!(address, %epoch, "Redis holds entries of an earlier time: it restarted with them, or a replica that was behind took over");
            return Ok(Probe::Restored);
        }
        let looks = looks.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (master, look) in layout.masters.iter().zip(looks) {
            let Some(look) = look else { continue };
            seen.masters.insert(self.name(master), look.identity);
            master.connections.trust(look.shared);
        }
        let is_there = |address: &str| layout.masters.iter().any(|master| self.shown(master) == address);
        self.abilities.retain(is_there);
        self.settings.retain(is_there);
        Ok(Probe::Intact)
    }

    /// None: it has no slots and cannot be used either.
    async fn look_at(
        &self,
        layout: &Layout,
        place: usize,
        epoch: Epoch,
        seen: &HashMap<String, Identity>,
    ) -> Result<Option<Look>, CacheError> {
        let master = &layout.masters[place];
        let keys: Vec<String> = match &layout.slots {
            None => vec![format!("{{}}fs:{epoch}")],
            Some(slots) => {
                let slots = slots.first_of(place, MARKER_SLOTS).into_iter();
                slots.map(|slot| slots::key_in(&format!("{{}}fs:{epoch}#"), slot)).collect()
            }
        };
        let look = async {
            let (shared, present, is_new) = match self.connect(master).await {
                Ok(connected) => connected,
                Err(error) => return Err(master.connections.explained(error).await),
            };
            let scratch = scratch_keys(layout, place);
            if !keys.is_empty() && self.abilities.is_due(&self.shown(master), is_new) {
                let subject = Subject {
                    address: &self.shown(master),
                    shared: &shared,
                    scripts: &self.scripts,
                    in_cluster: layout.slots.is_some(),
                    waits: self.wait_replicas > 0,
                };
                subject.try_all(&scratch).await?;
            }
            self.settings.look(&shared, &self.shown(master), is_new).await?;
            let known = seen.get(&self.name(master));
            let memory = match known {
                Some(identity) => Memory::This(identity),
                None if seen.is_empty() => Memory::Nothing,
                None => Memory::OtherServers,
            };
            let found = if keys.is_empty() {
                // It can hold only what is just moving here, and nowhere a marker.
                if present.holds_keys && known != Some(&present.identity) {
                    return Err(CacheError::Unavailable("a master without slots holds keys".into()));
                }
                Probe::Intact
            } else {
                match self.marked(&shared, &keys, &present, memory).await {
                    Err(CacheError::Refused(why)) if refusal::is_full_or_not_now(&why) => {
                        return Err(refusal::not_now(&why));
                    }
                    found => found?,
                }
            };
            Ok(Look { found, identity: present.identity, shared })
        };
        match look.await {
            Err(error) if keys.is_empty() => {
                tracing::debug!(%error, address = %master.address, "a master without slots cannot be used");
                master.connections.lose();
                Ok(None)
            }
            look => look.map(Some),
        }
    }

    /// The connections to a master, new ones if need be, what it says of itself, and whether they are new.
    async fn connect(&self, master: &Master) -> Result<(Arc<Shared>, Present, bool), CacheError> {
        let (shared, is_new) = match master.connections.verified() {
            Some(shared) if shared.ping().await.is_ok() => (shared, false),
            _ => {
                master.connections.lose();
                (Arc::new(master.connections.connect().await?), true)
            }
        };
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ROLE").cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("TIME").cmd("DBSIZE");
        let replies = shared.send(pipeline, Lane::Swift).await.map_err(|e| unavailable(&e))?;
        let [role, server, replication, time, size] = &replies[..] else {
            return Err(CacheError::Refused("not one reply a command".into()));
        };
        // Not each of these is granted everywhere. But what is refused for a moment must not count as not known: a server
        // without a name would look like another one.
        if let Some(error) = refusal::hindrance(&replies) {
            return Err(error);
        }
        let by_role = if let Value::Array(role) = role { role.first().and_then(text) } else { None };
        if by_role.or(field(replication, "role")).is_some_and(|role| role != "master") {
            let why = "it is a replica now: redis.url must name the master, or the sentinels (redis-sentinel://)";
            return Err(CacheError::Unavailable(why.into()));
        }
        if is_new
            && let Some(run) = field(server, "run_id")
            && !shared.are_readers_of(run).await?
        {
            return Err(CacheError::Unavailable("another server answers at the same address".into()));
        }
        let word = |info, name| field(info, name).unwrap_or(UNKNOWN).to_owned();
        let has_previous = |id: &&str| id.bytes().any(|byte| byte != b'0');
        let present = Present {
            identity: Identity { run: word(server, "run_id"), history: word(replication, "master_replid") },
            previous: field(replication, "master_replid2").filter(has_previous).map(str::to_owned),
            now: milliseconds(time).unwrap_or(0),
            uptime: field(server, "uptime_in_seconds").and_then(|s| s.parse::<i64>().ok()).unwrap_or(0) * 1000,
            holds_keys: *size != Value::Int(0),
        };
        Ok((shared, present, is_new))
    }

    /// Compares the epoch's marker with this server, and renews it where all is well. The first of the keys whose slot
    /// rests is the marker's.
    async fn marked(
        &self,
        shared: &Shared,
        keys: &[String],
        present: &Present,
        memory: Memory<'_>,
    ) -> Result<Probe, CacheError> {
        for key in keys {
            match self.marked_at(shared, key, present, memory).await {
                Err(CacheError::Refused(why)) if why.starts_with("MOVED") || why.starts_with("ASK") => {}
                found => return found,
            }
        }
        Err(CacheError::Unavailable(
            "its slots are moving, or it is of a Redis Cluster that should be named as redis-cluster://host1,host2"
                .into(),
        ))
    }

    async fn marked_at(
        &self,
        shared: &Shared,
        key: &str,
        present: &Present,
        memory: Memory<'_>,
    ) -> Result<Probe, CacheError> {
        let mut get = Pipeline::new();
        get.cmd("GET").arg(key);
        let mut held = word_of(self.ask(shared, get, Lane::Swift).await?.swap_remove(0))?;
        let prefix = format!("{} {} ", present.identity.run, present.identity.history);
        for _ in 0..TRIES {
            let marker = Marker::parse(&held);
            // What is no marker is none of an earlier time either way.
            if !held.is_empty() && marker.is_none() {
                return Ok(Probe::Restored);
            }
            let found = judge(present, marker.as_ref(), memory);
            if found == Probe::Restored {
                return Ok(found);
            }
            let is_ours = marker.is_some_and(|marker| marker.by == present.identity);
            let mut beat = Pipeline::new();
            beat.cmd("EVAL").arg(BEAT).arg(1).arg(key).arg(&held).arg(&prefix).arg(MARKER_TTL);
            let mut lane = Lane::Swift;
            if self.wait_replicas > 0 {
                lane = Lane::Waiting;
                beat.cmd("WAIT").arg(self.wait_replicas).arg(REPLICAS_PATIENCE);
            }
            let mut replies = self.ask(shared, beat, lane).await?;
            if self.wait_replicas > 0 && !replies.pop().is_some_and(|reply| has_waited(&reply, self.wait_replicas)) {
                let why = format!("fewer than {} replicas (l1.wait_replicas) confirm", self.wait_replicas);
                return Err(CacheError::Unavailable(why.into()));
            }
            match word_of(replies.swap_remove(0)) {
                Ok(done) if done == "OK" => return Ok(found),
                Ok(other) => held = other,
                // Memory is full; what is there still tells. No other refusal is forgiven: a master without its replicas
                // (NOREPLICAS) may have been replaced.
                Err(CacheError::Refused(why)) if is_ours && refusal::is_full(&why) => return Ok(found),
                Err(error) => return Err(error),
            }
        }
        // The others keep it up to date.
        Ok(Marker::parse(&held).map_or(Probe::Restored, |marker| judge(present, Some(&marker), memory)))
    }

    async fn ask(&self, shared: &Shared, pipeline: Pipeline, lane: Lane) -> Result<Vec<Value>, CacheError> {
        let sent = pipeline.len();
        let replies = shared.send(pipeline, lane).await.map_err(|e| unavailable(&e))?;
        if replies.len() == sent { Ok(replies) } else { Err(CacheError::Refused("not one reply a command".into())) }
    }

    /// Under which a master is remembered. Where there is one at a time, it is "the master" at whatever address.
    fn name(&self, master: &Master) -> String {
        if self.info.kind == "redis-cluster" { master.address.to_string() } else { String::new() }
    }

    /// How a master is shown to people.
    fn shown(&self, master: &Master) -> String {
        if self.info.kind == "redis" { self.info.address.clone() } else { master.address.to_string() }
    }
}

/// Keys of nobody, one in each of the slots where the marker may be; of one server just one.
fn scratch_keys(layout: &Layout, place: usize) -> Vec<String> {
    let name = format!("{SCRATCH}{:016x}", rand::random::<u64>());
    match &layout.slots {
        None => vec![name],
        Some(slots) => {
            let slots = slots.first_of(place, MARKER_SLOTS).into_iter();
            slots.map(|slot| slots::key_in(&format!("{name}#"), slot)).collect()
        }
    }
}

/// A text; nothing is an empty one.
fn word_of(reply: Value) -> Result<String, CacheError> {
    match &reply {
        Value::Nil => Ok(String::new()),
        Value::Okay => Ok("OK".to_owned()),
        // Not a text, so somebody else's.
        Value::ServerError(e) if e.code() == "WRONGTYPE" => Ok("?".to_owned()),
        Value::ServerError(e) => Err(CacheError::Refused(refusal::text_of(e).into())),
        // Of no marker's kind, but not nothing either.
        other => Ok(text(other).unwrap_or("?").to_owned()),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn field<'a>(info: &'a Value, name: &str) -> Option<&'a str> {
    text(info)?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// What TIME answers.
fn milliseconds(time: &Value) -> Option<i64> {
    let Value::Array(time) = time else { return None };
    let [seconds, micros] = &time[..] else { return None };
    Some(text(seconds)?.parse::<i64>().ok()? * 1000 + text(micros)?.parse::<i64>().ok()? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_info() {
        let info = Value::BulkString(b"# Server\r\nredis_version:7.0.15\r\nrun_id:ab12\r\n".to_vec());
        assert_eq!(field(&info, "run_id"), Some("ab12"));
        assert_eq!(field(&info, "run"), None);
    }
}
