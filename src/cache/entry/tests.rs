//! Each rule of the machine on tiny values: a value is its own revision, a permit a number.

use super::{Acquired::*, Effect::*, *};

type Slot = Option<Entry<i64, u8>>;

const LIVES: Lifetimes = Lifetimes { lease_ms: 3, permit_ms: 5, pending_ms: 60 };

fn acquire(slot: &mut Slot, token: u8, now: u64) -> Acquired<i64> {
    Entry::acquire(slot, token, now, &LIVES)
}

fn settle(slot: &mut Slot, revision: i64, token: Option<u8>, now: u64) -> Effect {
    let fill = token.map(|token| (token, Install { value: revision, ttl_ms: 1000 }));
    Entry::settle(slot, Revision(revision), fill, now)
}

fn mark(slot: &mut Slot, permit: u8, now: u64) -> Marked {
    Entry::mark(slot, permit, now, &LIVES)
}

fn put(slot: &mut Slot, permit: u8, revision: i64, now: u64) -> Effect {
    Entry::put(slot, permit, Revision(revision), Install { value: revision, ttl_ms: 1000 }, now)
}

/// Clean at revision 5, filled at 0 for 1000 ms.
fn clean() -> Slot {
    let mut slot = None;
    assert_eq!(acquire(&mut slot, 1, 0), Lease { suspect: None });
    assert_eq!(settle(&mut slot, 5, Some(1), 0), Installed);
    slot
}

fn hit(slot: &Slot, now: u64) -> Option<i64> {
    slot.as_ref().and_then(|entry| entry.hit(now)).copied()
}

#[test]
fn a_fill_needs_the_lease_and_lives_as_long_as_it_said() {
    let mut slot = clean();
    assert_eq!(acquire(&mut slot, 2, 999), Hit(5));
    assert_eq!((hit(&slot, 999), hit(&slot, 1000)), (Some(5), None));
    assert_eq!(acquire(&mut slot, 2, 1000), Lease { suspect: None });
    assert_eq!(settle(&mut slot, 6, Some(3), 1000), Kept, "a foreign token installs nothing");
    assert_eq!(settle(&mut slot, 6, Some(2), 1000), Installed);
    assert_eq!(settle(&mut None, 6, Some(2), 0), NoEntry);
}

#[test]
fn only_one_reader_holds_the_lease_until_its_time_is_over() {
    let mut slot = None;
    acquire(&mut slot, 1, 0);
    assert_eq!(acquire(&mut slot, 2, 2), NoFill { suspect: None });
    assert_eq!(acquire(&mut slot, 2, 3), Lease { suspect: None });
    assert_eq!(settle(&mut slot, 5, Some(1), 3), Kept, "the first lease is void");
    assert_eq!(settle(&mut slot, 5, Some(2), 9), Installed, "nobody took the second one, late as it is");
}

#[test]
fn a_fill_below_the_floor_uses_up_the_lease_and_leaves_nothing() {
    let mut slot = None;
    acquire(&mut slot, 1, 0);
    assert_eq!(settle(&mut slot, 7, None, 0), Kept);
    assert_eq!(settle(&mut slot, 6, Some(1), 0), Kept);
    assert_eq!(slot, None);
}

#[test]
fn settle_without_a_lease_only_removes_what_is_older() {
    let mut slot = clean();
    assert_eq!(settle(&mut slot, 5, None, 0), Kept);
    assert_eq!(settle(&mut slot, 4, Some(9), 0), Kept);
    assert_eq!(hit(&slot, 0), Some(5));
    assert_eq!(settle(&mut slot, 6, None, 0), Dropped);
    assert_eq!(slot, None);
}

#[test]
fn a_mark_makes_the_value_suspect_and_voids_the_lease() {
    let mut slot = clean();
    assert_eq!(mark(&mut slot, 1, 0), Marked::Granted);
    assert_eq!(hit(&slot, 0), None);
    assert_eq!(acquire(&mut slot, 9, 4), NoFill { suspect: Some(5) });
    assert_eq!(acquire(&mut slot, 9, 5), Lease { suspect: Some(5) });
    assert_eq!(mark(&mut slot, 2, 5), Marked::Granted);
    assert_eq!(settle(&mut slot, 5, Some(9), 5), Kept, "the lease is void");
    assert_eq!(slot.as_ref().unwrap().permits(), 2, "permits stay until a lease holder clears them");
}

#[test]
fn a_lease_holder_clears_the_permits_that_are_over() {
    let mut slot = clean();
    mark(&mut slot, 1, 0);
    acquire(&mut slot, 9, 5);
    assert_eq!(settle(&mut slot, 5, Some(9), 5), Installed);
    assert_eq!(hit(&slot, 1004), Some(5), "filled anew at 5");
    assert_eq!(put(&mut slot, 1, 6, 6), Dropped, "the permit is gone, so its PUT may only remove");
}

#[test]
fn a_put_installs_what_is_newer_under_its_permit() {
    let mut slot = clean();
    mark(&mut slot, 1, 0);
    assert_eq!(put(&mut slot, 1, 6, 100), NoEntry, "at 100 the pending entry is over");
    let mut slot = clean();
    mark(&mut slot, 1, 0);
    assert_eq!(put(&mut slot, 1, 6, 10), Installed, "a permit counts as long as it is listed");
    assert_eq!(hit(&slot, 1009), Some(6));
    assert_eq!(put(&mut slot, 1, 7, 10), Dropped, "once only");
    assert_eq!(slot, None);
}

#[test]
fn a_put_beside_other_permits_leaves_a_suspect() {
    let mut slot = clean();
    mark(&mut slot, 1, 0);
    mark(&mut slot, 2, 0);
    assert_eq!(put(&mut slot, 1, 7, 1), Installed);
    assert_eq!(acquire(&mut slot, 9, 1), NoFill { suspect: Some(7) });
    assert_eq!(put(&mut slot, 2, 6, 1), Kept, "older than the value");
    assert_eq!(hit(&slot, 1), Some(7), "and with the last permit gone it is clean");
}

#[test]
fn a_put_below_the_floor_installs_nothing() {
    let mut slot = None;
    mark(&mut slot, 1, 0);
    assert_eq!(put(&mut slot, 2, 7, 0), Kept, "no permit, but the floor is 7 now");
    assert_eq!(put(&mut slot, 1, 6, 0), Kept);
    assert_eq!(slot, None);
}

#[test]
fn unmark_makes_the_suspect_clean_with_what_it_has_left_to_live() {
    let mut slot = clean();
    mark(&mut slot, 1, 0);
    mark(&mut slot, 2, 0);
    assert_eq!(Entry::unmark(&mut slot, 1, 1), Kept);
    assert_eq!(hit(&slot, 1), None);
    assert_eq!(Entry::unmark(&mut slot, 2, 1), Kept);
    assert_eq!((hit(&slot, 999), hit(&slot, 1000)), (Some(5), None));
    let mut slot = None;
    mark(&mut slot, 1, 0);
    assert_eq!(Entry::unmark(&mut slot, 1, 0), Kept);
    assert_eq!(slot, None);
    assert_eq!(Entry::unmark(&mut slot, 1, 0), NoEntry);
}

#[test]
fn a_suspect_does_not_outlive_its_time_and_a_mark_lives_to_the_end_of_its_permit() {
    let mut slot = clean();
    mark(&mut slot, 1, 998);
    assert_eq!(slot.as_ref().unwrap().until(), 1003);
    assert_eq!(acquire(&mut slot, 9, 1001), NoFill { suspect: None });
    assert_eq!(Entry::unmark(&mut slot, 1, 1001), Kept);
    assert_eq!(slot, None);

    let mut slot = clean();
    mark(&mut slot, 1, 0);
    assert_eq!(slot.as_ref().unwrap().until(), 60, "not the value's 1000");
    acquire(&mut slot, 9, 59);
    assert_eq!(slot.as_ref().unwrap().until(), 60, "a lease prolongs nothing");
    mark(&mut slot, 2, 59);
    assert_eq!(slot.as_ref().unwrap().until(), 64);
}

#[test]
fn one_permit_too_many_removes_the_entry() {
    let mut slot = clean();
    for permit in 0..MAX_PERMITS as u8 {
        assert_eq!(mark(&mut slot, permit, 0), Marked::Granted);
    }
    assert_eq!(mark(&mut slot, 0, 0), Marked::Granted, "the same again is none more");
    assert_eq!(mark(&mut slot, 200, 0), Marked::Overflow);
    assert_eq!(slot, None);
}

#[test]
fn a_late_put_voids_the_lease_of_a_reader_that_saw_less() {
    let mut slot = None;
    mark(&mut slot, 1, 0);
    assert_eq!(acquire(&mut slot, 9, 5), Lease { suspect: None });
    assert_eq!(put(&mut slot, 1, 6, 6), Installed);
    assert_eq!(settle(&mut slot, 5, Some(9), 6), Kept);
    assert_eq!(hit(&slot, 6), Some(6));
}

#[test]
fn a_put_beside_another_permit_voids_the_lease_and_so_does_a_mark() {
    for put_first in [true, false] {
        let mut slot = None;
        mark(&mut slot, 1, 0);
        mark(&mut slot, 2, 0);
        assert_eq!(acquire(&mut slot, 9, 5), Lease { suspect: None });
        if put_first {
            assert_eq!(put(&mut slot, 1, 6, 5), Installed);
        } else {
            mark(&mut slot, 3, 5);
        }
        assert_eq!(settle(&mut slot, 6, Some(9), 5), Kept, "the lease is void");
        assert_eq!(hit(&slot, 5), None, "a fill would have cleared what is over");
    }
}
