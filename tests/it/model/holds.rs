//! The protocol as it is: nothing goes wrong, whatever the order.

use super::{
    explore::explore,
    setup::{Role::*, Second, Setup},
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

#[test]
fn addresses_that_come_to_lead_to_another_l1() {
    let two = Setup { second: Some(Second::Other), moves: 2, evictions: 0, ..Setup::new(&[]) };
    let over = |roles| Setup { roles: Setup::new(roles).roles, ..two.clone() };
    holds(over(&[Write, Read]).at([0, 1]));
    holds(Setup { evictions: 1, moves: 1, ..over(&[Write, Read, Read]) }.at([0, 0, 1]));
    holds(Setup { moves: 1, ..over(&[Write, Write, Read]) }.at([0, 1, 1]));
    holds(Setup { moves: 1, ..over(&[Bulk, Read, Strong]) }.at([0, 1, 1]));
    holds(Setup { repairer: true, ..over(&[Bulk, Read]) }.at([0, 1]));
    holds(Setup { epochs: true, ..over(&[Write, Read]) }.at([0, 1]));
    holds(Setup { faults: 1, moves: 1, ..over(&[Write, Read]) }.at([0, 1]));
    holds(Setup { second: Some(Second::Unmarked), ..over(&[Write, Read]) }.at([0, 1]));
}

#[test]
fn servers_that_are_restarted_one_after_the_other_with_another_l1_and_back() {
    let two = Setup { second: Some(Second::Other), restarts: 4, evictions: 0, ..Setup::new(&[Write, Read]) };
    holds(two.clone().at([0, 1]));
    holds(Setup { restarts: 2, evictions: 1, ..two }.at([0, 1]));
}

#[test]
fn promoted_replicas_and_restored_copies_of_l1() {
    for second in [Second::Replica, Second::Restored] {
        for repairer in [false, true] {
            let two = Setup { second: Some(second), moves: 1, repairer, evictions: 0, ..Setup::new(&[Write, Read]) };
            holds(two.clone().at([0, 1]));
            holds(Setup { roles: Setup::new(&[Bulk, Strong]).roles, ..two.clone() }.at([0, 1]));
            holds(Setup { suspends: true, ..two }.at([0, 1]));
        }
    }
}

#[test]
fn an_l1_in_one_process_beside_that_of_others() {
    let two =
        Setup { second: Some(Second::Private), repairer: true, evictions: 0, ..Setup::new(&[Write, Write, Read]) };
    holds(two.clone().at([0, 1, 1]));
    holds(Setup { roles: Setup::new(&[Write, Read, Strong]).roles, ..two }.at([1, 0, 1]));
}

#[test]
fn a_copy_of_l2_and_a_backup_that_is_restored() {
    let copy = Setup { copied: true, ..Setup::new(&[Write, Write, Read, Read]) };
    holds(copy.at([0, 1, 0, 1]));
    holds(Setup { restores: true, ..Setup::new(&[Write, Write, Read]) }.at([0, 1, 1]));
    holds(Setup { restores: true, second: Some(Second::Other), moves: 1, ..Setup::new(&[Write, Read]) }.at([0, 1]));
}

#[test]
fn machines_that_sleep() {
    holds(Setup { suspends: true, epochs: true, ..Setup::new(&[Write, Read, Read]) }.at([0, 0, 1]));
    let two = Setup { suspends: true, second: Some(Second::Other), moves: 1, ..Setup::new(&[Write, Read]) };
    holds(two.at([0, 1]));
}
