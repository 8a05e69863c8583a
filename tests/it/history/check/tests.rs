//! The checker itself: green on what may be, red on each thing that must not be.

use super::*;
use crate::history::event::{Answer, Attempt, Call, Kind, Value};

fn event(invoked: Nanos, returned: Nanos, call: Call, answer: Answer) -> Event {
    Event { client: 0, server: 0, key: 0, invoked, returned, call, answer }
}

fn attempt(write: u64, kind: Kind) -> Attempt {
    Attempt { write, kind, again: false, batched: false, if_revision: None }
}

fn done(revision: i64) -> Answer {
    Answer::Done { changed: true, revision, cached: true }
}

fn wrote(invoked: Nanos, returned: Nanos, write: u64, revision: i64) -> Event {
    event(invoked, returned, Call::Write(attempt(write, Kind::Replace)), done(revision))
}

fn merged(invoked: Nanos, returned: Nanos, write: u64, revision: i64) -> Event {
    event(invoked, returned, Call::Write(attempt(write, Kind::Merge)), done(revision))
}

fn conditional(at: Nanos, write: u64, built_on: i64, revision: i64) -> Event {
    let call = Attempt { if_revision: Some(built_on), ..attempt(write, Kind::Replace) };
    event(at, at + 5, Call::Write(call), done(revision))
}

fn unknown(invoked: Nanos, write: u64) -> Event {
    event(invoked, invoked + 4, Call::Write(attempt(write, Kind::Replace)), Answer::Unknown)
}

fn again(invoked: Nanos, returned: Nanos, write: u64, revision: i64) -> Event {
    let call = Attempt { again: true, ..attempt(write, Kind::Replace) };
    event(invoked, returned, Call::Write(call), done(revision))
}

fn row(revision: i64, value: Option<Value>) -> Answer {
    Answer::Row { revision, value, degraded: false, from_l1: true }
}

fn value(last: u64) -> Option<Value> {
    Some(Value { last, base: Some(last) })
}

fn read(invoked: Nanos, returned: Nanos, last: u64, revision: i64) -> Event {
    event(invoked, returned, Call::Read { strong: false, at_least: 0 }, row(revision, value(last)))
}

fn strong(invoked: Nanos, returned: Nanos, last: u64, revision: i64) -> Event {
    event(invoked, returned, Call::Read { strong: true, at_least: 0 }, row(revision, value(last)))
}

fn found_nothing(invoked: Nanos, returned: Nanos, revision: i64) -> Event {
    event(invoked, returned, Call::Read { strong: false, at_least: 0 }, row(revision, None))
}

fn deleted(invoked: Nanos, returned: Nanos, write: u64, revision: i64) -> Event {
    event(invoked, returned, Call::Write(attempt(write, Kind::Delete)), done(revision))
}

fn judge(events: &[Event]) -> Verdict {
    check(events, &[], Bounds::default())
}

fn rules(events: &[Event]) -> Vec<Rule> {
    judge(events).rules()
}

#[test]
fn a_good_history_is_green() {
    let history = [
        found_nothing(0, 5, 0),
        wrote(10, 20, 1, 100),
        read(12, 15, 1, 100), // during the write
        read(21, 25, 1, 100),
        wrote(30, 50, 2, 200),
        read(31, 32, 1, 100), // the old one, while the new one is under way
        read(60, 65, 2, 200),
        merged(70, 75, 3, 300),
        event(76, 78, Call::Read { strong: false, at_least: 300 }, row(300, Some(Value { last: 3, base: Some(2) }))),
        conditional(80, 4, 300, 400),
        deleted(90, 95, 5, 500),
        found_nothing(96, 97, 500),
        merged(100, 105, 6, 600),
        event(106, 107, Call::Read { strong: true, at_least: 0 }, row(600, Some(Value { last: 6, base: None }))),
        unknown(110, 7),
        read(120, 121, 7, 700),
        again(130, 135, 7, 700),
    ];
    let verdict = judge(&history);
    assert!(verdict.violations.is_empty(), "{:?}", verdict.violations);
    assert_eq!(verdict.judged, 16);
}

#[test]
fn a_write_that_the_server_tried_twice_may_be_answered_with_a_later_one() {
    let answered = wrote(0, 50, 1, 200);
    assert_eq!(rules(&[answered, wrote(10, 40, 2, 200), read(60, 65, 2, 200)]), []);
}

#[test]
fn concurrent_writes_may_commit_in_any_order() {
    assert_eq!(rules(&[wrote(0, 100, 1, 200), wrote(10, 90, 2, 100), read(101, 102, 1, 200)]), []);
}

#[test]
fn a_stale_read_is_red() {
    assert_eq!(rules(&[wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), read(31, 40, 1, 100)]), [Rule::Stale]);
    // Nobody but a reader was told of it.
    let backwards = [wrote(0, 10, 1, 100), unknown(20, 2), read(25, 30, 2, 200), read(31, 40, 1, 100)];
    assert_eq!(rules(&backwards), [Rule::Stale]);
    let gone = [wrote(0, 10, 1, 100), found_nothing(20, 30, 0)];
    assert_eq!(rules(&gone), [Rule::Stale]);
}

#[test]
fn a_stale_read_from_l2_is_red_whatever_was_promised() {
    let unconfirmed = Answer::Done { changed: true, revision: 200, cached: false };
    let write = event(20, 30, Call::Write(attempt(2, Kind::Replace)), unconfirmed);
    assert_eq!(rules(&[wrote(0, 10, 1, 100), write, strong(31, 40, 1, 100)]), [Rule::StaleL2]);
}

#[test]
fn what_was_not_confirmed_may_be_hidden_for_a_while() {
    let unconfirmed = Answer::Done { changed: true, revision: 200, cached: false };
    let write = event(20, 30, Call::Write(attempt(2, Kind::Replace)), unconfirmed);
    let verdict = judge(&[wrote(0, 10, 1, 100), write.clone(), read(1030, 1040, 1, 100)]);
    assert!(verdict.violations.is_empty());
    assert_eq!(verdict.stale["none"].largest, Duration::from_nanos(1000));
    let later = 31 + Bounds::default().unconfirmed.as_nanos() as Nanos;
    assert_eq!(rules(&[wrote(0, 10, 1, 100), write, read(later, later + 1, 1, 100)]), [Rule::BoundExceeded]);
}

#[test]
fn an_election_turns_stale_reads_into_a_bound() {
    let history = [wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), read(31, 40, 1, 100)];
    let window = |class| [Window { fault: "a fault", class, from: 25, until: 50 }];
    let verdict = check(&history, &window(Class::Election), Bounds::default());
    assert!(verdict.violations.is_empty());
    assert_eq!(verdict.stale["a fault"].reads, 1);
    assert_eq!(check(&history, &window(Class::Linearizable), Bounds::default()).rules(), [Rule::Stale]);
}

#[test]
fn an_l1_that_follows_the_changes_is_held_to_its_lag() {
    let follower = Bounds { followed: Duration::from_nanos(20), follower: Some(1), ..Bounds::default() };
    let history = |server, at| {
        let stale = Event { server, ..read(at, at + 2, 1, 100) };
        check(&[wrote(1, 2, 1, 100), wrote(3, 4, 2, 200), stale], &[], follower).rules()
    };
    assert_eq!(history(1, 24), []);
    assert_eq!(history(1, 25), [Rule::BoundExceeded]);
    assert_eq!(history(0, 10), [Rule::Stale], "the others promise as ever");
}

#[test]
fn what_an_l1_that_follows_the_changes_read_is_confirmed_to_nobody_else() {
    let follower = Bounds { unconfirmed: Duration::from_nanos(20), follower: Some(1), ..Bounds::default() };
    let written = Answer::Done { changed: true, revision: 200, cached: false };
    let not_cached = event(3, 4, Call::Write(attempt(2, Kind::Replace)), written);
    let newer = Event { server: 1, ..read(5, 6, 2, 200) };
    let history = |newer: &Event, at| {
        check(&[wrote(1, 2, 1, 100), not_cached.clone(), newer.clone(), read(at, at + 2, 1, 100)], &[], follower)
            .rules()
    };
    assert_eq!(history(&newer, 10), []);
    assert_eq!(history(&newer, 50), [Rule::BoundExceeded]);
    assert_eq!(history(&Event { server: 0, ..newer }, 10), [Rule::Stale]);
}

#[test]
fn a_lost_write_is_red() {
    // A strong read of what was there before.
    assert_eq!(rules(&[wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), strong(40, 50, 1, 100)]), [Rule::StaleL2]);
    // A merge that did not see it.
    let merge =
        event(50, 55, Call::Read { strong: true, at_least: 0 }, row(300, Some(Value { last: 3, base: Some(1) })));
    let history = [wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), merged(40, 45, 3, 300), merge];
    assert_eq!(rules(&history), [Rule::LostUpdate]);
    // A condition that did not see it.
    let history = [wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), conditional(40, 3, 100, 300)];
    assert_eq!(rules(&history), [Rule::LostUpdate]);
}

#[test]
fn a_write_applied_twice_is_red_while_the_record_remembers_it() {
    let mut history = vec![unknown(0, 1), read(5, 8, 1, 100), again(10, 20, 1, 200), read(25, 30, 1, 200)];
    assert_eq!(rules(&history), [Rule::AppliedTwice]);
    for n in 0..8 {
        history.push(wrote(9, 11, 10 + n, 110 + n as i64));
    }
    let verdict = judge(&history);
    assert!(!verdict.rules().contains(&Rule::AppliedTwice));
    assert_eq!(verdict.late_repeats, 1);
}

#[test]
fn a_value_that_nobody_wrote_is_red() {
    assert_eq!(rules(&[wrote(0, 10, 1, 100), read(20, 30, 9, 200)]), [Rule::NeverWritten]);
    let refused = event(0, 10, Call::Write(attempt(1, Kind::Replace)), Answer::Mismatch { stored: 0 });
    assert_eq!(rules(&[refused, read(20, 30, 1, 100)]), [Rule::NeverWritten]);
    // A tombstone without a delete.
    assert_eq!(rules(&[wrote(0, 10, 1, 100), found_nothing(20, 30, 200)]), [Rule::NeverWritten]);
}

#[test]
fn a_read_from_the_future_is_red() {
    assert_eq!(rules(&[read(0, 10, 1, 100), unknown(20, 1)]), [Rule::FromTheFuture, Rule::NotRising]);
}

#[test]
fn two_values_of_one_revision_are_red() {
    let history = [wrote(0, 10, 1, 100), unknown(0, 2), read(5, 20, 1, 100), read(11, 20, 2, 100)];
    assert_eq!(rules(&history), [Rule::TwoValues]);
}

#[test]
fn a_revision_below_what_was_answered_before_is_red() {
    assert_eq!(rules(&[wrote(0, 10, 1, 200), wrote(20, 30, 2, 100)]), [Rule::NotRising, Rule::StaleL2]);
}

#[test]
fn less_than_was_asked_for_is_red_even_in_an_election() {
    let window = [Window { fault: "election", class: Class::Election, from: 0, until: 100 }];
    let asked = Call::Read { strong: false, at_least: 200 };
    for answer in [row(100, value(1)), Answer::NotReached] {
        let history = [wrote(0, 10, 1, 100), wrote(20, 30, 2, 200), event(40, 50, asked.clone(), answer)];
        assert_eq!(check(&history, &window, Bounds::default()).rules(), [Rule::MinRevision]);
    }
}

#[test]
fn keys_have_nothing_to_do_with_each_other() {
    let mut other = wrote(0, 5, 2, 900);
    other.key = 1;
    assert_eq!(rules(&[other, wrote(10, 20, 1, 100), read(30, 40, 1, 100)]), []);
}
