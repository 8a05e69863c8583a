//! Tests of the rules of trust, without a cache and a store.

use super::{remembered::MAX_REMEMBERED, *};
use crate::{
    record::{EntityId, FeatureView},
    store::LEASE,
};

fn key(id: &str) -> RecordKey {
    RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}

fn l1(id: &str, history: &str, shared: bool) -> L1Name {
    let histories = if shared { vec![history.to_owned()] } else { Vec::new() };
    L1Name { id: id.into(), histories: histories.into(), shared, address: "somewhere".into() }
}

fn ours() -> L1Name {
    l1("x", "h1", true)
}

fn state(epoch: u64, dirty: bool) -> EpochState {
    EpochState { dirty, age: SETTLED_AGE, l1: Some(ours()), leased: LEASE, ..EpochState::new(Epoch(epoch)) }
}

/// A wall clock that runs with the clock of tokio.
fn clock() -> Clock {
    let start = Instant::now();
    Clock::new(move || Millis(1_790_000_000_000).after(start.elapsed()))
}

impl Trust {
    fn see_now(&self, state: EpochState) {
        self.see(state, self.now());
    }

    fn holds_now(&self, epoch: Epoch) -> bool {
        self.holds(epoch, self.l1_now().1)
    }
}

fn trusted_by(clock: Clock) -> Trust {
    let trust = Trust::new(false, clock);
    trust.found(&ours());
    trust.see_now(state(1, false));
    assert!(trust.restore());
    trust
}

fn trusted() -> Trust {
    trusted_by(clock())
}

#[tokio::test]
async fn a_remembered_key_is_forgotten_only_when_its_write_has_ended_and_it_was_removed() {
    let trust = trusted();
    let write = trust.begin_bypassed(vec![key("a")]);
    assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)));
    assert!(trust.to_remove(10).is_empty());
    assert!(!trust.restore());
    drop(write);
    let removing = trust.to_remove(10);
    assert_eq!(removing.len(), 1);
    drop(trust.begin_bypassed(vec![key("a")]));
    trust.removed(&removing);
    assert!(!trust.restore(), "it was remembered again while it was being removed");
    trust.removed(&trust.to_remove(10));
    assert!(trust.restore());
}

#[tokio::test]
async fn a_dirty_epoch_is_never_trusted_again() {
    let trust = trusted();
    trust.see_now(state(1, true));
    trust.remember([&key("a")]);
    trust.removed(&trust.to_remove(10));
    assert!(!trust.restore());
    trust.see_now(state(2, false));
    assert!(trust.restore());
    assert_eq!(trust.l1(), L1Use::Paused(Epoch(2)), "until all servers have seen the change");
    assert!(!trust.holds_now(Epoch(2)), "others may still use the epoch before");
}

#[tokio::test(start_paused = true)]
async fn a_view_lives_two_seconds_and_a_change_pauses_three() {
    let trust = trusted();
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    tokio::time::advance(VIEW_LIFE).await;
    assert_eq!(trust.l1(), L1Use::HitsOnly(Epoch(1)));
    assert!(!trust.holds_now(Epoch(1)));
    trust.see_now(state(2, false));
    assert_eq!(trust.l1(), L1Use::Paused(Epoch(2)));
    tokio::time::advance(CHANGE_PAUSE).await;
    trust.see_now(state(2, false));
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(2)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_into_a_young_epoch_pauses_too() {
    let trust = Trust::new(false, clock());
    trust.found(&ours());
    trust.see_now(EpochState { age: Duration::from_secs(1), ..state(1, false) });
    assert!(trust.restore());
    assert_eq!(trust.l1(), L1Use::Paused(Epoch(1)));
    let alone = Trust::new(true, clock());
    alone.found(&ours());
    alone.see_now(EpochState { age: Duration::ZERO, ..state(1, false) });
    assert!(alone.restore());
    assert_eq!(alone.l1(), L1Use::Trusted(Epoch(1)), "no other server can use another epoch");
}

#[tokio::test(start_paused = true)]
async fn an_l1_that_follows_changes_is_used_only_while_it_does() {
    let trust = trusted();
    trust.lost_track();
    assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)));
    trust.heard();
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    tokio::time::advance(HEARD_LIFE).await;
    trust.see_now(state(1, false));
    assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)), "the change stream was silent for too long");
    trust.follows_nobody();
    tokio::time::advance(HEARD_LIFE).await;
    trust.see_now(state(1, false));
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
}

#[tokio::test]
async fn the_list_is_bounded_and_its_overflow_asks_for_a_new_epoch() {
    let trust = trusted();
    for i in 0..=MAX_REMEMBERED {
        drop(trust.begin_bypassed(vec![key(&i.to_string())]));
    }
    assert!(trust.remembered() <= MAX_REMEMBERED);
    assert!(trust.needs_new_epoch());
    trust.renewed(Instant::now());
    assert!(!trust.needs_new_epoch());
    assert!(trust.restore());
}

#[tokio::test(start_paused = true)]
async fn an_l1_is_used_only_while_the_epoch_holds_for_it() {
    let trust = trusted();
    for another in [l1("y", "h1", true), l1("x", "h2", true)] {
        let (_, life) = trust.l1_now();
        trust.see_now(EpochState { l1: Some(another.clone()), ..state(1, false) });
        assert_eq!(trust.l1(), L1Use::Bypassed, "{another:?}");
        assert!(!trust.holds(Epoch(1), life) && !trust.stands(Epoch(1)) && trust.ours().is_none());
        // A probe found that ours is that one: after a failover the same epoch may continue, when
        // no server uses the L1 before it.
        trust.found(&another);
        assert_eq!(trust.l1(), L1Use::Paused(Epoch(1)));
        tokio::time::advance(CHANGE_PAUSE).await;
        trust.see_now(EpochState { l1: Some(another), ..state(1, false) });
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
        assert!(trust.holds_now(Epoch(1)));
        assert!(!trust.holds(Epoch(1), life), "what the L1 before confirmed does not count");
    }
    trust.see_now(EpochState { l1: None, ..state(1, false) });
    assert_eq!(trust.l1(), L1Use::Bypassed);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_the_lease_does_not_use_l1() {
    let trust = trusted();
    trust.see_now(EpochState { leased: Duration::from_secs(1), ..state(1, false) });
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(trust.l1(), L1Use::HitsOnly(Epoch(1)), "the lease is over before the view is old");
    assert!(!trust.holds_now(Epoch(1)) && !trust.is_fresh());
}

#[tokio::test(start_paused = true)]
async fn a_view_from_before_a_suspension_is_worth_nothing() {
    use std::sync::{Arc, atomic::AtomicI64};
    let (slept, ticks) = (Arc::new(AtomicI64::new(0)), clock());
    let by = slept.clone();
    let trust = trusted_by(Clock::new(move || Millis(ticks.now().0 + by.load(SeqCst))));
    let (_, life) = trust.l1_now();
    for asleep in [1_000, 3_600_000, -3_600_000] {
        slept.fetch_add(asleep, SeqCst);
        assert_eq!(trust.l1(), L1Use::Bypassed, "the first call after {asleep} ms");
        assert!(!trust.holds(Epoch(1), life) && !trust.is_fresh() && trust.fresh_epoch().is_none());
        trust.see_now(state(1, false));
        assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)), "L2 was asked again");
    }
    slept.fetch_add(400, SeqCst);
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)), "the clock was set by a little");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_suspended_does_not_know_the_changes_it_missed() {
    use std::sync::{Arc, atomic::AtomicI64};
    let (slept, ticks) = (Arc::new(AtomicI64::new(0)), clock());
    let by = slept.clone();
    let trust = trusted_by(Clock::new(move || Millis(ticks.now().0 + by.load(SeqCst))));
    trust.lost_track();
    trust.heard();
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    slept.fetch_add(60_000, SeqCst);
    trust.see_now(state(1, false));
    assert_eq!(trust.l1(), L1Use::Untrusted(Epoch(1)));
    trust.heard();
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
}

#[tokio::test(start_paused = true)]
async fn an_l1_in_this_process_beside_the_named_one_is_read_and_makes_no_write_cached() {
    let trust = Trust::new(false, clock());
    let mine = l1("mine", "", false);
    trust.found(&mine);
    let beside = |beside| EpochState { beside, ..state(1, false) };
    trust.see_now(beside(Duration::ZERO));
    assert!(trust.restore());
    assert_eq!(trust.l1(), L1Use::Bypassed, "no other server knows of it yet");
    trust.see_now(beside(LEASE));
    assert_eq!(trust.l1(), L1Use::Paused(Epoch(1)), "until all servers know of it");
    tokio::time::advance(CHANGE_PAUSE).await;
    trust.see_now(beside(LEASE));
    assert_eq!(trust.l1(), L1Use::Trusted(Epoch(1)));
    assert!(trust.stands(Epoch(1)) && !trust.holds_now(Epoch(1)));
    // Now the epoch names it.
    let named = |beside| EpochState { l1: Some(mine.clone()), beside, ..state(2, false) };
    trust.see_now(named(LEASE));
    tokio::time::advance(CHANGE_PAUSE).await;
    trust.see_now(named(LEASE));
    assert!(trust.stands(Epoch(2)) && !trust.holds_now(Epoch(2)), "other servers read from their own");
    trust.see_now(named(Duration::ZERO));
    assert!(trust.holds_now(Epoch(2)), "it is alone");
}
