//! The probe of Redis: it verifies what Redis holds before anything is read from it.
//!
//! Each master has a marker in its data, `{}fs:<epoch>`, or in a cluster `{}fs:<epoch>#<number>` in
//! a slot of its own. It says which server verified the data, and when. Every probe renews it, so
//! it outlives every entry that it vouches for, and the markers of unused epochs end. If a server
//! did not write its marker itself, it restarted with the data of an earlier run, or was promoted;
//! `marker` decides which. The id of the L1 is beside the marker (`identity`). Without the right to
//! INFO neither can be noticed; a warning says so.
//!
//! In a cluster the loss of one master makes the probe fail, and all of L1 is bypassed until the
//! cluster has replaced it, because there is one circuit breaker and one list of remembered keys.
//! Until the probe notices the loss, keys of the other masters are answered.

mod abilities;
mod identity;
mod look;
mod marker;
mod settings;

use std::{collections::HashMap, sync::Arc};

use deadpool_redis::redis::{Pipeline, Value};
use futures_util::future::join_all;

pub(super) use self::{abilities::Abilities, settings::Settings};
use self::{
    abilities::Subject,
    look::{Met, field, text},
    marker::{Marker, Memory, Present, Verified, judge},
};
use super::{
    RedisCache,
    connections::{Lane, Shared, unavailable},
    refusal,
    send::has_waited,
    servers::{Layout, Master, slots},
};
use crate::cache::{CacheError, Epoch, L1Name, Probe};

const BEAT: &str = include_str!("../scripts/beat.lua");
/// Used if Redis does not allow INFO.
const UNKNOWN: &str = "unknown";
/// How long a marker and an id outlive the last probe, in ms: 7 days. An entry lives for less than
/// half of `tombstone_ttl`, which is one day by default.
const MARKER_TTL: &str = "604800000";
/// How often a marker is read again if another server renewed it at the same time.
const TRIES: usize = 5;
/// How many slots of a master may hold its marker: the next one is used while one is moving.
const MARKER_SLOTS: usize = 3;
/// How long a probe waits for replicas, in ms.
const REPLICAS_TIMEOUT_MS: u32 = 500;
/// The prefix of the keys with which the abilities of a server are tried.
const SCRATCH: &str = "{}fs:check:";

/// What this process last verified, and in which epoch.
#[derive(Debug, Default)]
pub(super) struct Seen {
    epoch: Option<Epoch>,
    masters: HashMap<String, Verified>,
    /// The id of the L1 that was last found, and the runs of its masters at that time.
    id: Option<String>,
    runs: HashMap<String, String>,
}

/// The keys of our marker and id on a master. Both are in one slot.
#[derive(Clone, Debug)]
struct Place {
    marker: String,
    id: String,
}

impl RedisCache {
    /// Finds the masters, connects if necessary, verifies them, and puts the connections to use if
    /// all is well. The caller limits the time, and closes the connections on a failure.
    pub(super) async fn verify(&self, epoch: Epoch, named: Option<&L1Name>) -> Result<Probe, CacheError> {
        let mut seen = self.probed.lock().await;
        if seen.epoch != Some(epoch) {
            (seen.epoch, seen.masters) = (Some(epoch), HashMap::new());
        }
        let layout = self.servers.look().await?;
        let masters = (0..layout.masters.len()).map(|place| self.meet(&layout, place, epoch));
        let mut met = join_all(masters).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let found = self.identify(&layout, &mut met, &mut seen).await?;
        if !named.is_some_and(|named| found.is(named)) {
            let is_copy = named.is_some_and(|named| found.id == named.id);
            let goes_on = is_copy && go_on(&met);
            for (master, met) in layout.masters.iter().zip(met) {
                master.connections.set_aside(met.map(|met| met.shared));
            }
            return Ok(Probe::Another { found, goes_on });
        }
        let looks =
            layout.masters.iter().zip(&met).map(|(master, met)| self.look_at(master, met.as_ref(), &found, &seen));
        let looks = join_all(looks).await;
        if let Some(place) = looks.iter().position(|look| *look == Ok(Probe::Restored)) {
            let address = self.shown(&layout.masters[place]);
            // The tiers log what follows, and limit how often.
            tracing::debug!(address, %epoch, "Redis holds entries of an earlier time");
            return Ok(Probe::Restored);
        }
        looks.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (master, met) in layout.masters.iter().zip(met) {
            let Some(met) = met else { continue };
            let Present { identity, now, .. } = met.present;
            let verified = seen.masters.entry(self.name(master)).or_insert_with(|| Verified::new(identity.clone()));
            if verified.by != identity {
                *verified = Verified::new(identity);
            }
            verified.again(met.place.as_ref().map(|place| &*place.marker), now);
            master.connections.trust(met.shared);
        }
        let is_there = |address: &str| layout.masters.iter().any(|master| self.shown(master) == address);
        self.abilities.retain(is_there);
        self.settings.retain(is_there);
        self.name.store(Some(found.into()));
        Ok(Probe::Intact)
    }

    fn memory<'a>(&self, master: &Master, met: &Met, seen: &'a Seen) -> Memory<'a> {
        match seen.masters.get(&self.name(master)) {
            Some(verified) => verified.at(met.place.as_ref().map(|place| &*place.marker)),
            None if seen.masters.is_empty() => Memory::Nothing,
            None => Memory::OtherServers,
        }
    }

    /// Compares the epoch's marker with a master, and renews it if all is well.
    async fn look_at(
        &self,
        master: &Master,
        met: Option<&Met>,
        found: &L1Name,
        seen: &Seen,
    ) -> Result<Probe, CacheError> {
        let Some(met) = met else { return Ok(Probe::Intact) };
        let memory = self.memory(master, met, seen);
        let Some(place) = &met.place else {
            // It can hold only keys that are just moving here, and it cannot hold a marker.
            return match met.present.holds_keys && !memory.knows(&met.present.identity) {
                true => Err(CacheError::Unavailable("a master without slots holds keys".into())),
                false => Ok(Probe::Intact),
            };
        };
        match self.marked_at(met, place, &found.id, memory).await {
            Err(CacheError::Refused(why)) if refusal::is_full_or_not_now(&why) => Err(refusal::not_now(&why)),
            found => found,
        }
    }

    async fn marked_at(&self, met: &Met, place: &Place, id: &str, memory: Memory<'_>) -> Result<Probe, CacheError> {
        let Met { shared, present, marker, .. } = met;
        let mut held = marker.clone();
        let prefix = format!("{} {} ", present.identity.run, present.identity.history);
        for _ in 0..TRIES {
            let marker = Marker::parse(&held);
            // A value that is not a marker counts as data of an earlier time.
            if !held.is_empty() && marker.is_none() {
                return Ok(Probe::Restored);
            }
            let found = judge(present, marker.as_ref(), memory);
            if found == Probe::Restored {
                return Ok(found);
            }
            let is_ours = marker.is_some_and(|marker| marker.by == present.identity);
            let mut beat = Pipeline::new();
            beat.cmd("EVAL").arg(BEAT).arg(2).arg(&place.marker).arg(&place.id);
            beat.arg(&held).arg(&prefix).arg(MARKER_TTL).arg(id);
            let mut lane = Lane::Swift;
            if self.wait_replicas > 0 {
                lane = Lane::Waiting;
                beat.cmd("WAIT").arg(self.wait_replicas).arg(REPLICAS_TIMEOUT_MS);
            }
            let mut replies = look::ask(shared, beat, lane).await?;
            if self.wait_replicas > 0 && !replies.pop().is_some_and(|reply| has_waited(&reply, self.wait_replicas)) {
                let why = format!("fewer than {} replicas (l1.wait_replicas) confirm writes", self.wait_replicas);
                return Err(CacheError::Unavailable(why.into()));
            }
            match look::text_of(replies.swap_remove(0)) {
                Ok(done) if done == "OK" => return Ok(found),
                Ok(other) if other == "ID" => {
                    return Err(CacheError::Unavailable(
                        "the id of this L1 has just changed or was removed; the next probe reads it again".into(),
                    ));
                }
                Ok(other) => held = other,
                // Memory is full, but what is there can be verified. No other refusal is accepted:
                // a master without its replicas (NOREPLICAS) may have been replaced.
                Err(CacheError::Refused(why)) if is_ours && refusal::is_full(&why) => return Ok(found),
                Err(error) => return Err(error),
            }
        }
        // Other servers renew it all the time.
        Ok(Marker::parse(&held).map_or(Probe::Restored, |marker| judge(present, Some(&marker), memory)))
    }

    /// The key under which a master is remembered. If there is only one at a time, its address does
    /// not matter.
    fn name(&self, master: &Master) -> String {
        if self.info.kind == "redis-cluster" { master.address.to_string() } else { String::new() }
    }

    /// The address of a master, for logs.
    fn shown(&self, master: &Master) -> String {
        if self.info.kind == "redis" { self.info.address.clone() } else { master.address.to_string() }
    }
}

/// Unused keys, one in each slot where the marker may be; one key for a single server.
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

/// Whether the data of all masters continues what was verified in this epoch a short time ago. What
/// this process remembers does not count: others may have used another copy for long.
fn go_on(met: &[Option<Met>]) -> bool {
    met.iter().flatten().filter(|met| met.place.is_some()).all(|met| match Marker::parse(&met.marker) {
        Some(marker) => judge(&met.present, Some(&marker), Memory::Nothing) == Probe::Intact,
        None => met.marker.is_empty() && !met.present.holds_keys,
    })
}
