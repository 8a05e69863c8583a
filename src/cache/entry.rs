//! The entry state machine: what every operation does to one entry of L1.
//!
//! It is pure: it has no clock and no io, and `now` (in ms, of any clock) is passed in. The cache
//! in memory is this machine under a lock, tests compare the Lua scripts with it, and the model of
//! the whole protocol uses it with tiny values.
//!
//! An entry is **clean** (a value, no permit, no lease: a hit) or **pending** (anything else: a
//! miss). Three things hold between any two operations:
//!
//! - The revision of a value is the floor: whatever raises the floor drops or replaces the value.
//!   So a suspect is never below the floor, and the floor of a clean entry is its own revision.
//! - An entry has a value, a permit or a lease. An entry that has none of them is removed.
//! - A permit counts until it is removed from the list. When its time has ended, a reader may take
//!   the lease, and the SETTLE with that lease removes the permit. A lease likewise holds until it
//!   is used, replaced or voided.
//!
//! **Lifetimes.** There are two, and at the end of either the thing is gone as if evicted:
//!
//! - A value lives as long as its fill said, whatever happens to the entry. A suspect that becomes
//!   clean again keeps the rest of that time.
//! - A clean entry lives as long as its value. An entry that begins as pending lives for
//!   `Lifetimes::pending_ms`. One that a MARK makes pending lives as long as its value, and
//!   `pending_ms` at most. MARK extends each of them to the end of its permit; no other operation
//!   does, and in particular not ACQUIRE. So a pending entry never has more than `pending_ms` left.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::collections::BTreeMap;

use super::{Acquired, Effect, LEASE, MAX_PERMITS, Marked, PENDING, PERMIT};
use crate::record::Revision;

/// How long leases, permits and pending entries live. A life of 0 ends at once (for tests).
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

/// A value to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install<V> {
    /// The value.
    pub value: V,
    /// Its lifetime, in ms from now.
    pub ttl_ms: u64,
}

/// A thing, and the time (ms) at which it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Until<T>(T, u64);

/// One entry of L1. `V` is a value, `P` the id of a lease or a permit. None means no entry.
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

    /// The time (ms) at which the entry ends.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// ACQUIRE: the caller gets the lease, unless the entry is clean or has a live permit or lease.
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

    /// SETTLE: a read of L2 found `revision`. If the caller holds the lease and the revision is not
    /// below the floor, permits that have ended are removed and the value is installed. Otherwise
    /// an older value is removed. The lease is used up in both cases.
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

    /// MARK: a write is announced. The value becomes suspect, and the lease is void.
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

    /// PUT: a write ended, and L2 now holds `revision`. With the permit, a value is installed if it
    /// is newer and not below the floor. Otherwise an older value is removed. While there are other
    /// permits the entry stays pending, and the value is the suspect.
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

    /// UNMARK: a write never reached L2.
    pub fn unmark(slot: &mut Option<Self>, permit: P, now: u64) -> Effect {
        let Some(entry) = Self::at(slot, now) else { return Effect::NoEntry };
        entry.permits.remove(&permit);
        Self::tidy(slot);
        Effect::Kept
    }

    /// The entry as it is at `now`, without a value that has ended. None if the entry has ended.
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

    /// Without a permit an entry is clean if it has a value, and is removed if it has nothing.
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
