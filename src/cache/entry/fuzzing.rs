//! Fuzzes the entry state machine: long programs of operations, some late or repeated, at any time.
//! The rights that each operation leaves are tracked beside it. The model (`tests/it/model`)
//! explores short programs of the whole protocol instead.

use std::collections::BTreeMap;

use super::*;
use crate::fuzzing::Input;

/// A value is its own revision.
type Slot = Option<Entry<i64, u8>>;

/// What L1 has issued and learned in the present life of the entry.
#[derive(Debug, Default)]
struct Life {
    /// The highest revision that a call has named to it.
    told: i64,
    lease: Option<(u8, u64)>,
    permits: BTreeMap<u8, u64>,
}

impl Life {
    /// Whether a permit or lease is still alive.
    fn is_awaited(&self, now: u64) -> bool {
        self.permits.values().chain(self.lease.iter().map(|(_, until)| until)).any(|until| now < *until)
    }
}

/// Runs a program: lifetimes, then operations.
pub fn entry(data: &[u8]) {
    let mut input = Input::new(data);
    let lives =
        Lifetimes { lease_ms: 3, permit_ms: u64::from(input.byte() % 8), pending_ms: 8 + u64::from(input.byte()) };
    let (mut slot, mut life, mut now): (Slot, Life, u64) = (None, Life::default(), 0);
    while !input.is_over() {
        if !is_there(&slot, now) {
            life = Life::default();
        }
        let operation = input.byte() % 8;
        let (name, revision, ttl_ms) = (input.byte() % 72, input.number(), input.number().unsigned_abs());
        let install = Install { value: revision, ttl_ms };
        match operation {
            0 => match Entry::acquire(&mut slot, name, now, &lives) {
                Acquired::Hit(value) => {
                    assert!(life.permits.is_empty() && value >= life.told, "{value} is no hit: {life:?}");
                }
                Acquired::Lease { suspect } => {
                    assert!(!life.is_awaited(now), "two may change it: {life:?}");
                    assert!(suspect.is_none_or(|value| value >= life.told && !life.permits.is_empty()), "{life:?}");
                    life.lease = Some((name, now.saturating_add(lives.lease_ms)));
                }
                Acquired::NoFill { suspect } => {
                    assert!(life.is_awaited(now), "nobody may change it: {life:?}");
                    assert!(suspect.is_none_or(|value| value >= life.told && !life.permits.is_empty()), "{life:?}");
                }
            },
            1 | 2 => {
                let fill = (operation == 1).then_some((name, install));
                let is_filler = fill.is_some() && life.lease.is_some_and(|(lease, _)| lease == name);
                let effect = Entry::settle(&mut slot, Revision(revision), fill, now);
                check_effect(effect, revision, is_filler, &mut life);
                if is_filler {
                    life.lease = None;
                }
                if effect == Effect::Installed {
                    life.permits.retain(|_, until| now < *until);
                }
            }
            3 => {
                life.lease = None;
                life.permits.insert(name, now.saturating_add(lives.permit_ms));
                let marked = Entry::mark(&mut slot, name, now, &lives);
                assert_eq!(marked == Marked::Overflow, life.permits.len() > MAX_PERMITS, "{life:?}");
            }
            4 => {
                let is_permitted = life.permits.remove(&name).is_some();
                let effect = Entry::put(&mut slot, name, Revision(revision), install, now);
                check_effect(effect, revision, is_permitted, &mut life);
                if effect == Effect::Installed {
                    life.lease = None;
                }
            }
            5 => {
                life.permits.remove(&name);
                let effect = Entry::unmark(&mut slot, name, now);
                assert!(matches!(effect, Effect::Kept | Effect::NoEntry), "{effect:?}");
            }
            6 => now = now.saturating_add(ttl_ms),
            _ => slot = None, // evicted
        }
        if operation != 6 {
            check(&slot, &mut life, now, &lives);
        }
    }
}

/// Whether an operation finds the entry.
fn is_there(slot: &Slot, now: u64) -> bool {
    slot.as_ref().is_some_and(|entry| {
        let has_value = entry.value.as_ref().is_some_and(|Until(_, until)| now < *until);
        now < entry.until && (has_value || entry.lease.is_some() || !entry.permits.is_empty())
    })
}

/// Checks a SETTLE or a PUT, with or without the right to install.
fn check_effect(effect: Effect, revision: i64, may_install: bool, life: &mut Life) {
    if effect == Effect::Installed {
        assert!(may_install && revision >= life.told, "{revision} got in: {life:?}");
    }
    if effect != Effect::NoEntry {
        life.told = life.told.max(revision);
    }
}

/// Checks what must hold between any two operations.
fn check(slot: &Slot, life: &mut Life, now: u64, lives: &Lifetimes) {
    let Some(entry) = slot else {
        *life = Life::default();
        return;
    };
    assert!(!entry.is_empty() && entry.permits() <= MAX_PERMITS, "{entry:?}");
    assert!(entry.permits.keys().eq(life.permits.keys()), "{entry:?}, {life:?}");
    assert!(entry.floor.0 >= life.told, "{entry:?}, {life:?}");
    if let Some(value) = entry.value() {
        assert!(*value == entry.floor.0 && *value >= life.told, "{entry:?}, {life:?}");
    }
    match entry.hit(now) {
        Some(_) => assert!(life.permits.is_empty() && entry.lease.is_none(), "{entry:?}, {life:?}"),
        None => assert!(entry.until <= now.saturating_add(lives.pending_ms), "{entry:?} outlives its time at {now}"),
    }
}
