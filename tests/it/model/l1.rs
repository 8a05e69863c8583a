//! One entry of L1: the production machine, and thin variants of its operations that lack a rule.

use featurestore::{
    cache::{
        Acquired,
        entry::{Entry, Install, Lifetimes},
    },
    record::Revision,
};

use super::setup::{Rule, Setup};

/// Names a lease or a permit.
pub(super) type Id = u8;
/// An entry, or none.
pub(super) type L1 = Option<Entry<Value, Id>>;

/// What the machine keeps for us. It is told the revision only; `version` is what the checker goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Value {
    pub version: u8,
    pub revision: u8,
}

/// Permits and leases live for one tick, entries until they are evicted.
const LIVES: Lifetimes = Lifetimes { lease_ms: 1, permit_ms: 1, pending_ms: u64::MAX };
/// Nobody's.
const FRESH: Id = 100;

/// An operation on the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Command {
    Acquire { token: Id },
    Settle { lease: Option<Id>, value: Value },
    Mark { permit: Id },
    Put { permit: Id, value: Value },
    Unmark { permit: Id },
    Remove,
}

/// What ACQUIRE answers; the others just answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Hit(Value),
    Miss { lease: Option<Id>, suspect: Option<Value> },
    Done,
}

impl Command {
    pub(super) fn execute(self, setup: &Setup, slot: &mut L1, now: u8) -> Reply {
        let now = now.into();
        let install = |value| Install { value, ttl_ms: if setup.short_lived { 1 } else { u64::MAX } };
        match self {
            Self::Acquire { token } => {
                return match Entry::acquire(slot, token, now, &LIVES) {
                    Acquired::Hit(value) => Reply::Hit(value),
                    Acquired::Lease { suspect } => Reply::Miss { lease: Some(token), suspect },
                    Acquired::NoFill { suspect } => Reply::Miss { lease: None, suspect },
                };
            }
            Self::Mark { .. } if setup.lacks(Rule::Permit) => {}
            Self::Mark { permit } => drop(Entry::mark(slot, permit, now, &LIVES)),
            Self::Put { value, .. } if setup.lacks(Rule::Permit) => set_if_newer(slot, value, install(value), now),
            Self::Put { permit, value } => {
                if setup.lacks(Rule::SetIfNewer) && is_permitted(slot, permit, now) {
                    keep_only_permits(slot, now);
                }
                Entry::put(slot, permit, revision(value), install(value), now);
            }
            Self::Settle { lease: Some(_), value } if setup.lacks(Rule::Lease) => {
                set_if_newer(slot, value, install(value), now);
            }
            Self::Settle { lease, value } => {
                let fill = lease.map(|token| (token, install(value)));
                Entry::settle(slot, revision(value), fill, now);
            }
            Self::Unmark { permit } => drop(Entry::unmark(slot, permit, now)),
            Self::Remove => *slot = None,
        }
        if setup.lacks(Rule::Floor) {
            forget_the_floor(slot, now);
        }
        Reply::Done
    }
}

fn revision(value: Value) -> Revision {
    Revision(value.revision.into())
}

/// What one does without permits and leases.
fn set_if_newer(slot: &mut L1, value: Value, install: Install<Value>, now: u64) {
    Entry::mark(slot, FRESH, now, &LIVES);
    Entry::put(slot, FRESH, revision(value), install, now);
}

/// The permit is listed; found out on a copy.
fn is_permitted(slot: &L1, permit: Id, now: u64) -> bool {
    let before = slot.as_ref().map_or(0, Entry::permits);
    let mut slot = slot.clone();
    Entry::unmark(&mut slot, permit, now);
    slot.as_ref().map_or(0, Entry::permits) < before
}

/// A value keeps its own revision for a floor.
fn forget_the_floor(slot: &mut L1, now: u64) {
    if slot.as_ref().is_some_and(|entry| entry.value().is_none() && entry.permits() > 0) {
        keep_only_permits(slot, now);
    }
}

/// The same permits on an entry that has seen nothing.
fn keep_only_permits(slot: &mut L1, now: u64) {
    let permits: Vec<Id> = (0..FRESH).filter(|permit| is_permitted(slot, *permit, now)).collect();
    *slot = None;
    for permit in permits {
        Entry::mark(slot, permit, now, &LIVES);
    }
}
