//! One rule taken away at a time: the checker finds what goes wrong, and with the rule the same roles do nothing wrong.
//! So the checker is known to be able to fail.

use super::{
    explore::{Explored, Schedule, explore},
    setup::{Role::*, Rule, Second, Setup},
};

/// Without the rule a schedule of so many steps, and none shorter, ends with a wrong answer.
fn goes_wrong(rule: Rule, steps: usize, setup: Setup) -> Schedule {
    let start = std::time::Instant::now();
    let Explored { states, wrong } = explore(&setup.clone().without(rule));
    let schedule = wrong.unwrap_or_else(|| panic!("without {rule:?} nothing goes wrong in {states} states"));
    println!("without {rule:?}, after {states} states in {:?}:\n{schedule}", start.elapsed());
    let Explored { states, wrong } = explore(&setup);
    println!("with {rule:?} nothing goes wrong in {states} states ({:?})", start.elapsed());
    if let Some(schedule) = wrong {
        panic!("with {rule:?} it goes wrong too:\n{schedule}");
    }
    assert_eq!(schedule.0.len(), steps, "{schedule}");
    schedule
}

#[test]
fn without_permits_an_old_put_comes_back_after_an_eviction() {
    let schedule = goes_wrong(Rule::Permit, 8, Setup::new(&[Write, Write]));
    let steps = [
        "writer 0 MARK",
        "writer 0 commits revision 2",
        "writer 1 MARK",
        "writer 1 commits revision 3",
        "writer 1 PUT revision 3, and answers cached = true",
        "L1 evicts the entry",
        "writer 0 PUT revision 2, and answers cached = true",
        "a reader at server 0 hits revision 2, although a newer one was answered before",
    ];
    assert_eq!(schedule.to_string().lines().map(|line| &line[5..]).collect::<Vec<_>>(), steps);
}

#[test]
fn without_leases_an_old_fill_comes_back_after_an_eviction() {
    goes_wrong(Rule::Lease, 8, Setup::new(&[Write, Read]));
}

#[test]
fn without_set_if_newer_puts_that_cross_leave_the_older() {
    goes_wrong(Rule::SetIfNewer, 7, Setup { evictions: 0, ..Setup::new(&[Write, Write]) });
}

#[test]
fn without_the_floor_a_newer_write_that_lost_its_permit_is_forgotten() {
    goes_wrong(Rule::Floor, 8, Setup::new(&[Write, Write]));
}

#[test]
fn without_settle_before_a_strong_reply_time_runs_backwards() {
    goes_wrong(Rule::SettleBeforeAStrongReply, 8, Setup::new(&[Write, Read, Strong]));
    goes_wrong(Rule::SettleBeforeAStrongReply, 3, Setup { evictions: 0, ..Setup::new(&[Bulk, Strong]) });
}

#[test]
fn without_settle_before_a_default_reply_time_runs_backwards() {
    goes_wrong(Rule::SettleBeforeAReply, 9, Setup::new(&[Write, Write, Read]));
}

#[test]
fn without_settle_before_a_bulks_reply_a_hit_is_older() {
    goes_wrong(Rule::SettleBeforeABulksReply, 2, Setup { evictions: 0, ..Setup::new(&[Bulk]) });
}

#[test]
fn without_l1s_confirmation_a_cached_write_is_hidden() {
    let servers = [0, 1];
    goes_wrong(Rule::ConfirmationBeforeCached, 8, Setup { faults: 1, ..Setup::new(&[Write, Write]) }.at(servers));
    let bulk = Setup { faults: 1, evictions: 0, ..Setup::new(&[Bulk, Read]) };
    goes_wrong(Rule::ConfirmationBeforeCached, 3, bulk.at(servers));
}

#[test]
fn a_permit_whose_reply_never_came_installs_an_old_value_in_the_next_life() {
    goes_wrong(Rule::ReplyToMarkBeforeL2, 9, Setup { faults: 1, ..Setup::new(&[Write, Write]) }.at([0, 1]));
}

#[test]
fn a_permit_id_that_is_sent_twice_installs_an_old_value_in_the_next_life() {
    goes_wrong(Rule::NewIdForEachMark, 9, Setup { faults: 1, ..Setup::new(&[Write, Write]) }.at([0, 1]));
}

#[test]
fn a_lease_token_that_is_sent_twice_installs_an_old_value_in_the_next_life() {
    goes_wrong(
        Rule::NewIdForEachAcquire,
        10,
        Setup { faults: 1, evictions: 2, ..Setup::new(&[Write, Read]) }.at([0, 1]),
    );
}

#[test]
fn a_flight_that_is_joined_after_it_asked_l2_lands_with_an_old_answer() {
    goes_wrong(Rule::DoorsCloseBeforeL2, 9, Setup { evictions: 0, ..Setup::new(&[Write, Write, Flight]) });
}

#[test]
fn a_flight_that_is_joined_after_it_asked_l1_lands_with_an_old_hit() {
    goes_wrong(Rule::DoorsCloseBeforeL1, 10, Setup::new(&[Conditional, Write, Flight]));
}

#[test]
fn a_warming_bulk_that_reads_back_before_its_lease_installs_an_old_value() {
    goes_wrong(Rule::AcquireBeforeTheReadBack, 10, Setup::new(&[WarmBulk, Write]));
}

#[test]
fn unmark_of_a_write_that_l2_has_seen_brings_the_old_value_back() {
    goes_wrong(Rule::UnmarkOnlyIfL2NeverSaw, 4, Setup { evictions: 0, ..Setup::new(&[Conditional, Bulk]) });
    goes_wrong(Rule::UnmarkOnlyIfL2NeverSaw, 9, Setup::new(&[Conditional, Write, Read]));
}

#[test]
fn a_read_whose_settle_was_lost_and_not_remembered_is_followed_by_an_older_hit() {
    let setup = Setup { faults: 1, evictions: 0, ..Setup::new(&[Bulk, Strong]) };
    goes_wrong(Rule::RememberALostSettle, 4, setup.at([0, 1]));
}

#[test]
fn l1_that_is_trusted_before_the_key_was_removed_hides_what_was_owed() {
    goes_wrong(Rule::RemoveBeforeTrust, 4, Setup { faults: 1, evictions: 0, ..Setup::new(&[Bulk]) });
}

#[test]
fn without_the_pause_two_servers_use_two_epochs() {
    let setup = Setup { epochs: true, evictions: 0, ..Setup::new(&[Write, Read]) };
    goes_wrong(Rule::PauseAfterAChange, 6, setup.at([0, 1]));
}

#[test]
fn a_write_that_does_not_check_its_view_again_is_cached_where_nobody_looks() {
    let setup = Setup { epochs: true, evictions: 0, ..Setup::new(&[Write, Read]) };
    goes_wrong(Rule::WriteChecksItsViewAgain, 11, setup.at([0, 1]));
}

#[test]
fn a_read_that_does_not_check_its_view_again_is_followed_by_an_older_hit() {
    let setup = Setup { epochs: true, ..Setup::new(&[Write, Read, Read]) };
    goes_wrong(Rule::ReadChecksItsViewAgain, 13, setup.at([0, 0, 1]));
}

#[test]
fn without_the_suspect_a_deposed_primary_turns_time_back() {
    goes_wrong(Rule::SuspectIsRight, 4, Setup { deposed: true, evictions: 0, ..Setup::new(&[Write, Read]) });
}

#[test]
fn a_tombstone_that_is_forgotten_too_early_lets_the_deleted_record_be_seen_again() {
    goes_wrong(Rule::TombstonesAreKept, 5, Setup { evictions: 0, ..Setup::new(&[BulkDelete, Strong]) });
}

#[test]
fn where_nothing_stands_in_l2_only_removing_is_right() {
    goes_wrong(Rule::RemoveWhereNothingStands, 5, Setup { by_hand: true, evictions: 0, ..Setup::new(&[Delete]) });
}

/// Two servers over two L1, and an address that comes to lead to the other one.
fn two(second: Second, roles: &[super::setup::Role]) -> Setup {
    Setup { second: Some(second), moves: 1, evictions: 0, ..Setup::new(roles) }
}

#[test]
fn without_the_name_in_the_epoch_an_address_that_leads_elsewhere_makes_two_caches_of_one_store() {
    goes_wrong(Rule::EpochNamesItsL1, 5, two(Second::Other, &[Write, Read]).at([0, 1]));
}

#[test]
fn without_the_name_in_the_epoch_a_cache_that_was_left_is_taken_up_again() {
    let setup = Setup { moves: 0, restarts: 2, ..two(Second::Other, &[Write]) };
    goes_wrong(Rule::EpochNamesItsL1, 8, setup);
}

#[test]
fn a_marker_that_is_looked_at_over_a_connection_of_its_own_says_nothing_of_the_others() {
    goes_wrong(Rule::MarkerOverTheSameConnection, 5, two(Second::Other, &[Write, Read]).at([0, 1]));
}

#[test]
fn a_write_that_another_l1_confirmed_is_not_cached() {
    goes_wrong(Rule::WriteConfirmedByTheNamedL1, 4, two(Second::Other, &[Bulk, Read]).at([1, 0]));
    let setup = Setup { evictions: 1, ..two(Second::Other, &[Write, Read]) };
    goes_wrong(Rule::WriteConfirmedByTheNamedL1, 4, setup.at([1, 0]));
}

#[test]
fn a_read_that_another_l1_confirmed_is_followed_by_an_older_hit() {
    goes_wrong(Rule::ReadConfirmedByTheNamedL1, 5, two(Second::Other, &[Bulk, Strong]).at([0, 1]));
}

#[test]
fn a_key_that_was_removed_from_another_l1_is_still_in_this_one() {
    let setup = Setup { moves: 2, ..two(Second::Other, &[Bulk]) };
    goes_wrong(Rule::RemoveFromTheNamedL1, 5, setup.at([1]));
}

#[test]
fn a_repairer_of_another_l1_repairs_nothing() {
    let setup = Setup { repairer: true, ..two(Second::Other, &[Bulk, Read]) };
    goes_wrong(Rule::RepairOfTheNamedL1, 5, setup.at([1, 0]));
}

#[test]
fn without_the_lease_servers_take_the_epoch_from_each_other() {
    goes_wrong(Rule::TakeoverAfterTheLease, 2, two(Second::Other, &[Write, Read]).at([0, 1]));
}

#[test]
fn a_marker_that_is_overwritten_puts_those_who_use_it_out_of_use() {
    goes_wrong(Rule::MarkerIsNeverOverwritten, 2, two(Second::Other, &[Write, Read]).at([0, 1]));
}

#[test]
fn without_the_pause_a_new_epoch_for_another_l1_makes_two_caches() {
    let setup = Setup { epochs: true, ..two(Second::Other, &[Write, Read]) };
    goes_wrong(Rule::PauseAfterAChange, 6, setup.at([0, 1]));
}

#[test]
fn another_run_without_a_marker_that_is_given_the_known_id_is_a_second_cache() {
    goes_wrong(Rule::AnotherRunIsAnotherL1, 5, two(Second::Unmarked, &[Write, Read]).at([0, 1]));
}

#[test]
fn without_the_history_in_the_epoch_a_promoted_copy_is_a_second_cache() {
    let replica = two(Second::Replica, &[Write, Read]);
    goes_wrong(Rule::EpochNamesTheHistory, 6, replica.at([0, 1]));
}

#[test]
fn a_history_that_moves_on_while_somebody_uses_the_old_one_makes_two_caches() {
    let replica = Setup { repairer: true, ..two(Second::Replica, &[Write, Read]) };
    goes_wrong(Rule::HistoryMovesAfterTheLease, 8, replica.at([0, 1]));
}

#[test]
fn a_view_that_is_fresh_before_its_lease_is_renewed_makes_two_caches() {
    let replica = Setup { repairer: true, ..two(Second::Replica, &[Write, Read]) };
    goes_wrong(Rule::LeaseWithTheLook, 10, replica.at([0, 1]));
}

#[test]
fn a_promoted_replica_that_lagged_and_that_nobody_repairs_hides_what_it_lost() {
    let replica = two(Second::Replica, &[Write, Read]);
    goes_wrong(Rule::NoReplicaWithoutARepairer, 8, replica.at([0, 1]));
}

#[test]
fn a_marker_from_a_backup_that_is_taken_for_a_living_one_brings_old_entries_back() {
    let restored = Setup { repairer: true, ..two(Second::Restored, &[Write, Read]) };
    goes_wrong(Rule::OldMarkerIsARestoredL1, 7, restored.at([0, 1]));
}

#[test]
fn a_history_that_moves_on_to_a_copy_of_long_ago_brings_old_entries_back() {
    let replica = Setup { repairer: true, ..two(Second::Replica, &[Write, Read]) };
    goes_wrong(Rule::OldMarkerIsARestoredL1, 9, replica.at([0, 1]));
}

#[test]
fn an_l1_of_one_process_beside_others_is_nobody_elses_cache() {
    let private = Setup { repairer: true, moves: 0, ..two(Second::Private, &[Read, Write]) };
    goes_wrong(Rule::PrivateL1CountsOnlyAlone, 4, private.at([0, 1]));
}

#[test]
fn without_an_identity_of_l2_a_copy_shares_the_entries_of_the_original() {
    let copy = Setup { copied: true, evictions: 0, ..Setup::new(&[Write, Write]) };
    goes_wrong(Rule::L2HasAnIdentity, 5, copy.at([0, 1]));
}

#[test]
fn without_an_identity_of_l2_a_backup_meets_the_entries_of_later() {
    let restored = Setup { restores: true, evictions: 0, ..Setup::new(&[Write]) };
    goes_wrong(Rule::L2HasAnIdentity, 3, restored);
}

#[test]
fn a_machine_that_slept_uses_an_epoch_that_is_gone() {
    let sleeper = Setup { suspends: true, epochs: true, evictions: 0, ..Setup::new(&[Write, Read]) };
    goes_wrong(Rule::ViewIsFreshByTheWallClock, 8, sleeper.at([0, 1]));
    let replica = Setup { suspends: true, repairer: true, ..two(Second::Replica, &[Write, Read]) };
    goes_wrong(Rule::ViewIsFreshByTheWallClock, 10, replica.at([0, 1]));
}
