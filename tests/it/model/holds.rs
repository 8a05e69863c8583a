//! The protocol as it is: nothing goes wrong, whatever the order.

use super::{
    explore::explore,
    setup::{Role::*, Setup},
};

/// No schedule of these goes wrong.
fn holds(setup: Setup) {
    let start = std::time::Instant::now();
    let explored = explore(&setup);
    println!("{} states in {:?}: {setup:?}", explored.states, start.elapsed());
    if let Some(schedule) = explored.wrong {
        panic!("after {} states, {setup:?}:\n{schedule}", explored.states);
    }
}

#[test]
fn writers_and_readers() {
    holds(Setup { ticks: 1, ..Setup::new(&[Write, Write, Read, Read]) });
}

#[test]
fn three_writers() {
    holds(Setup { evictions: 2, ..Setup::new(&[Write, Write, Write, Read]) });
}

#[test]
fn strong_readers() {
    holds(Setup { ticks: 1, ..Setup::new(&[Write, Write, Read, Strong]) });
}

#[test]
fn deadlines_that_pass_twice() {
    holds(Setup { ticks: 2, ..Setup::new(&[Write, Write, Read]) });
}

#[test]
fn values_that_end_before_their_entry() {
    holds(Setup { ticks: 2, short_lived: true, ..Setup::new(&[Write, Write, Read]) });
}

#[test]
fn conditions_that_are_not_met() {
    holds(Setup { ticks: 1, ..Setup::new(&[Conditional, Write, Bulk, Read]) });
}

#[test]
fn deletes_until_nothing_is_left() {
    holds(Setup { ticks: 1, ..Setup::new(&[Delete, Delete, Write, Read]) });
    holds(Setup::new(&[BulkDelete, Write, Read, Strong]));
}

#[test]
fn records_that_do_not_exist_yet() {
    holds(Setup { absent: true, ticks: 1, ..Setup::new(&[Write, Delete, Read, Read]) });
    holds(Setup { absent: true, ..Setup::new(&[Bulk, Delete, Read, Strong]) });
}

#[test]
fn bulks_beside_writers() {
    holds(Setup { evictions: 2, ticks: 1, ..Setup::new(&[Bulk, Write, Read, Read]) });
    holds(Setup { ticks: 1, ..Setup::new(&[WarmBulk, Write, Read, Strong]) });
    holds(Setup { ticks: 1, ..Setup::new(&[WarmBulk, WarmBulk, Bulk, Read]) });
}

#[test]
fn flights_that_many_readers_share() {
    holds(Setup { ticks: 1, ..Setup::new(&[Conditional, Write, Flight]) });
    holds(Setup { ticks: 1, ..Setup::new(&[Write, Bulk, Flight, Strong]) });
}

#[test]
fn change_events_at_any_time() {
    holds(Setup { repairer: true, ticks: 1, ..Setup::new(&[Write, Write, Read]) });
    holds(Setup { repairer: true, ..Setup::new(&[Bulk, Delete, Read, Strong]) });
}

#[test]
fn a_deposed_primary_where_there_is_a_suspect() {
    holds(Setup { deposed: true, evictions: 0, ticks: 1, ..Setup::new(&[Write, Write, Read]) });
}

#[test]
fn commands_that_are_lost_late_or_repeated() {
    holds(Setup { faults: 1, ..Setup::new(&[Write, Write, Read]) }.at([0, 1, 1]));
    holds(Setup { faults: 2, evictions: 0, ..Setup::new(&[Write, Read]) }.at([0, 1]));
    holds(Setup { faults: 1, ..Setup::new(&[Bulk, Write, Strong]) }.at([0, 1, 1]));
    holds(Setup { faults: 1, ..Setup::new(&[Write, Conditional, Strong]) }.at([0, 1, 0]));
}

#[test]
fn a_new_epoch() {
    holds(Setup { epochs: true, ..Setup::new(&[Write, Read, Read]) }.at([0, 0, 1]));
    holds(Setup { epochs: true, evictions: 0, ..Setup::new(&[Write, Write, Read]) }.at([0, 1, 1]));
    holds(Setup { epochs: true, evictions: 0, ..Setup::new(&[Bulk, Read, Strong]) }.at([0, 1, 1]));
}
