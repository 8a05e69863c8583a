//! A look at what Redis holds, before anything is read from it.
//!
//! Each master has a marker in its data, `{}fs:<epoch>`, in a cluster `{}fs:<epoch>#<number>` in a slot of its own. It says
//! which server verified the data when; every probe renews it, so that it outlives every entry that it vouches for, and the
//! markers of epochs that nobody uses go. A server whose marker was not written by itself has restarted with what an
//! earlier run held, or was promoted; `marker` tells which. Beside it lies the id of the L1 (`identity`). Where INFO is not
//! allowed neither can be noticed; a warning says so.
//!
//! In a cluster one master that is lost makes the probe fail, and L1 is given up as a whole until the cluster has put
//! another in its place: there is one breaker, and one list of keys that L1 may be wrong about. Until the probe finds out,
//! the other masters' keys are answered.

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
/// Stands for what cannot be asked for.
const UNKNOWN: &str = "unknown";
/// How long a marker and an id outlive the last probe, in ms: 7 days. No entry lives half as long as a tombstone, whose
/// default is a day.
const MARKER_TTL: &str = "604800000";
/// How often a marker is looked at again where another server renewed it at the same time.
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
    masters: HashMap<String, Verified>,
    /// The id of the L1 that was last found, and the runs of the masters that it was found at.
    id: Option<String>,
    runs: HashMap<String, String>,
}

/// Where a master keeps what is ours: a marker and an id, in one slot.
#[derive(Clone, Debug)]
struct Place {
    marker: String,
    id: String,
}

impl RedisCache {
    /// Finds the masters, connects if need be, verifies, and puts the connections to use where all is well. The caller
    /// bounds the time, and lets the connections go where this fails.
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
            // The tiers log what becomes of it, and how often that is repeated.
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

    /// Compares the epoch's marker with a master, and renews it where all is well.
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
            // It can hold only what is just moving here, and nowhere a marker.
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
            beat.cmd("EVAL").arg(BEAT).arg(2).arg(&place.marker).arg(&place.id);
            beat.arg(&held).arg(&prefix).arg(MARKER_TTL).arg(id);
            let mut lane = Lane::Swift;
            if self.wait_replicas > 0 {
                lane = Lane::Waiting;
                beat.cmd("WAIT").arg(self.wait_replicas).arg(REPLICAS_PATIENCE);
            }
            let mut replies = look::ask(shared, beat, lane).await?;
            if self.wait_replicas > 0 && !replies.pop().is_some_and(|reply| has_waited(&reply, self.wait_replicas)) {
                let why = format!("fewer than {} replicas (l1.wait_replicas) confirm", self.wait_replicas);
                return Err(CacheError::Unavailable(why.into()));
            }
            match look::text_of(replies.swap_remove(0)) {
                Ok(done) if done == "OK" => return Ok(found),
                Ok(other) if other == "ID" => {
                    return Err(CacheError::Unavailable(
                        "its id has just changed or gone; it is looked at again".into(),
                    ));
                }
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

/// Whether what all masters hold goes on from what was verified in this epoch until shortly ago. What this process remembers
/// does not count: others may have gone on with another copy for long.
fn go_on(met: &[Option<Met>]) -> bool {
    met.iter().flatten().filter(|met| met.place.is_some()).all(|met| match Marker::parse(&met.marker) {
        Some(marker) => judge(&met.present, Some(&marker), Memory::Nothing) == Probe::Intact,
        None => met.marker.is_empty() && !met.present.holds_keys,
    })
}
