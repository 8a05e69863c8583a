//! The entry state machine: what every operation does to one entry of L1.
//!
//! Pure: no clock, no io, and `now` (in ms, of any clock) is passed in. The in-process cache is this machine under a
//! lock, it is the oracle of the Lua scripts, and the model of the whole protocol drives it with tiny values.
//!
//! An entry is **clean** (a value, no permit, no lease: a hit) or **pending** (anything else: a miss). Three things hold
//! between any two operations:
//!
//! - A value's revision is the floor: whatever raises the floor drops or replaces the value. So a suspect is never below
//!   the floor, and a clean entry's floor is its own revision.
//! - An entry holds a value, a permit or a lease; one that holds nothing is removed.
//! - A permit counts until something takes it off the list. A deadline that has passed only lets a reader take the lease:
//!   then the lease holder's SETTLE clears it. The same goes for a lease: it holds until it is used, replaced or voided.
//!
//! **Lifetimes.** Two are kept apart, and at the end of either the thing is gone as if evicted:
//!
//! - A value lives as long as its fill said, whatever happens to the entry. A suspect that becomes clean again has what is
//!   left of that, no more and no less; a suspect past it is no longer there.
//! - An entry. Clean: as long as its value. One that comes into being pending: `Lifetimes::pending_ms`. One that a MARK
//!   turns pending: as long as its value, at most `pending_ms`. MARK prolongs any of them to the end of its permit; nothing
//!   else does, ACQUIRE least of all. So a pending entry never has more than `pending_ms` to live.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::collections::BTreeMap;

use super::{Acquired, Effect, LEASE, MAX_PERMITS, Marked, PENDING, PERMIT};
use crate::record::Revision;

/// How long leases, permits and pending entries live. A life of 0 is over at once, which tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// A read lease, in ms.
    pub lease_ms: u64,
    /// A write permit, in ms; at most `pending_ms`.
    pub permit_ms: u64,
    /// A pending entry, in ms; at least 1.
    pub pending_ms: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let [lease_ms, permit_ms, pending_ms] = [LEASE, PERMIT, PENDING].map(|life| life.as_millis() as u64);
        Self { lease_ms, permit_ms, pending_ms }
    }
}

/// What to install, and for how long, in ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install<V> {
    /// The value.
    pub value: V,
    /// Counted from now.
    pub ttl_ms: u64,
}

/// Something and the time (ms) from which on it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Until<T>(T, u64);

/// One entry of L1; `V` is a value, `P` the name of a lease or a permit. There is no entry where there is None.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry<V, P: Ord> {
    floor: Revision,
    value: Option<Until<V>>,
    lease: Option<Until<P>>,
    permits: BTreeMap<P, u64>,
    until: u64,
}

impl<V: Clone, P: Copy + Ord> Entry<V, P> {
    /// The value of a clean entry.
    pub fn hit(&self, now: u64) -> Option<&V> {
        let clean = self.permits.is_empty() && now < self.until;
        self.value.as_ref().filter(|Until(_, until)| clean && now < *until).map(|Until(value, _)| value)
    }

    /// The value, suspect or not.
    pub fn value(&self) -> Option<&V> {
        self.value.as_ref().map(|Until(value, _)| value)
    }

    /// How many permits are listed.
    pub fn permits(&self) -> usize {
        self.permits.len()
    }

    /// The time (ms) from which on the entry is no longer there.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// ACQUIRE: the lease, unless the entry is clean or somebody else may still change it.
    pub fn acquire(slot: &mut Option<Self>, token: P, now: u64, lives: &Lifetimes) -> Acquired<V> {
        let entry = match Self::at(slot, now) {
            Some(entry) => entry,
            None => slot.insert(Self::pending(now, lives)),
        };
        let value = entry.value().cloned();
        if entry.permits.is_empty()
            && let Some(value) = value
        {
            return Acquired::Hit(value);
        }
        if entry.permits.values().chain(entry.lease.iter().map(|Until(_, until)| until)).any(|until| now < *until) {
            return Acquired::NoFill { suspect: value };
        }
        entry.lease = Some(Until(token, now.saturating_add(lives.lease_ms)));
        Acquired::Lease { suspect: value }
    }

    /// SETTLE: L2 was seen at `revision`. Under the entry's lease, and not below the floor, it clears the permits that are
    /// over and installs; else it removes what is older. The lease that it names is used up either way.
    pub fn settle(slot: &mut Option<Self>, revision: Revision, fill: Option<(P, Install<V>)>, now: u64) -> Effect {
        let Some(entry) = Self::at(slot, now) else { return Effect::NoEntry };
        let fill = fill.filter(|(token, _)| entry.lease.is_some_and(|Until(lease, _)| lease == *token));
        if fill.is_some() {
            entry.lease = None;
        }
        let effect = match fill {
            Some((_, install)) if revision >= entry.floor => {
                entry.permits.retain(|_, until| now < *until);
                entry.install(revision, install, now)
            }
            _ => entry.raise(revision),
        };
        Self::tidy(slot);
        effect
    }

    /// MARK: a write is coming. The value becomes suspect, the lease void.
    pub fn mark(slot: &mut Option<Self>, permit: P, now: u64, lives: &Lifetimes) -> Marked {
        let entry = match Self::at(slot, now) {
            Some(entry) => entry,
            None => slot.insert(Self::pending(now, lives)),
        };
        entry.lease = None;
        let end = now.saturating_add(lives.permit_ms);
        entry.until = entry.until.min(now.saturating_add(lives.pending_ms)).max(end);
        entry.permits.insert(permit, end);
        if entry.permits.len() > MAX_PERMITS {
            *slot = None;
            return Marked::Overflow;
        }
        Marked::Granted
    }

    /// PUT: a write ended, and L2 now holds `revision`. With the permit, installs what is newer than the value and not below
    /// the floor; without, removes what is older. Other permits keep the entry pending: then the value is their suspect.
    pub fn put(slot: &mut Option<Self>, permit: P, revision: Revision, install: Install<V>, now: u64) -> Effect {
        let Some(entry) = Self::at(slot, now) else { return Effect::NoEntry };
        let permitted = entry.permits.remove(&permit).is_some();
        let newer = revision > entry.floor || (revision == entry.floor && entry.value.is_none());
        let effect = if permitted && newer {
            entry.lease = None;
            entry.install(revision, install, now)
        } else {
            entry.raise(revision)
        };
        Self::tidy(slot);
        effect
    }

    /// UNMARK: a write that never reached L2.
    pub fn unmark(slot: &mut Option<Self>, permit: P, now: u64) -> Effect {
        let Some(entry) = Self::at(slot, now) else { return Effect::NoEntry };
        entry.permits.remove(&permit);
        Self::tidy(slot);
        Effect::Kept
    }

    /// The entry as it stands at `now`: without a value whose time is over, and none at all where its own time is.
    fn at(slot: &mut Option<Self>, now: u64) -> Option<&mut Self> {
        if let Some(entry) = slot {
            entry.value.take_if(|Until(_, until)| *until <= now);
            if entry.until <= now || entry.is_empty() {
                *slot = None;
            }
        }
        slot.as_mut()
    }

    fn pending(now: u64, lives: &Lifetimes) -> Self {
        let until = now.saturating_add(lives.pending_ms);
        Self { floor: Revision::NONE, value: None, lease: None, permits: BTreeMap::new(), until }
    }

    fn is_empty(&self) -> bool {
        self.value.is_none() && self.lease.is_none() && self.permits.is_empty()
    }

    fn install(&mut self, revision: Revision, Install { value, ttl_ms }: Install<V>, now: u64) -> Effect {
        self.floor = revision;
        self.value = Some(Until(value, now.saturating_add(ttl_ms)));
        Effect::Installed
    }

    /// Raises the floor, and drops a value that is now below it.
    fn raise(&mut self, revision: Revision) -> Effect {
        if revision <= self.floor {
            return Effect::Kept;
        }
        self.floor = revision;
        if self.value.take().is_some() { Effect::Dropped } else { Effect::Kept }
    }

    /// After the last permit is gone: clean where there is a value, removed where there is nothing.
    fn tidy(slot: &mut Option<Self>) {
        let Some(entry) = slot else { return };
        if entry.is_empty() {
            *slot = None;
        } else if let (true, Some(Until(_, until))) = (entry.permits.is_empty(), &entry.value) {
            entry.until = *until;
            entry.lease = None;
        }
    }
}

#[cfg(test)]
mod tests;
