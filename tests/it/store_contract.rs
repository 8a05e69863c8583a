//! Every L2 keeps the contract of `featurestore::store::Store`.
//!
//! Each sentence is a function over `Arc<dyn Store>`. `store_contract!` makes a test of each for one kind of store;
//! `keeps_the_contract` runs them all on one. The store's clock is its own and cannot be turned: where time matters, times
//! to live are short and the test polls. A store under the suite is made with `fixture::rules()`, and the sentences use
//! keys of their own, so they may share a database, but for the epoch.

mod batches;
mod conditions;
mod embedded;
pub(crate) mod fixture;
mod oracle;
mod service;
mod values;
mod writes;

use std::sync::Arc;

use featurestore::store::Store;

macro_rules! every_sentence {
    ($do:ident $(, $argument:expr)*) => {
        $do! { [$($argument),*]
            values::every_kind_of_value_reads_back_as_it_was_written,
            values::names_and_texts_that_look_like_operators_are_only_texts,
            values::a_record_may_have_no_features,
            values::views_with_the_same_entity_are_apart,
            values::names_keep_their_order_in_the_stored_bytes,
            writes::what_was_answered_is_read_at_once,
            writes::replace_takes_the_place_of_all_that_was_there,
            writes::merge_keeps_what_it_does_not_name,
            writes::merge_creates_where_there_is_no_live_record,
            writes::merge_on_an_expired_record_starts_afresh,
            writes::an_expired_record_stays_readable_as_expired,
            writes::times_are_those_of_the_write_in_milliseconds,
            writes::event_times_before_the_epoch_and_far_away_are_kept,
            writes::an_older_event_time_is_skipped_and_an_equal_one_is_not,
            writes::only_a_live_record_guards_its_event_time,
            writes::limits_hold_after_a_merge_and_change_nothing,
            writes::a_record_is_measured_in_stored_bytes_whatever_its_values_are,
            writes::a_long_model_version_from_before_there_was_a_limit_survives_a_merge,
            conditions::if_revision_zero_writes_only_where_there_is_no_live_record,
            conditions::if_revision_writes_only_on_that_revision,
            conditions::if_revision_of_a_tombstone_or_an_expired_record_matches_nothing,
            conditions::the_checks_run_in_the_order_request_revision_event_time_limits,
            conditions::a_repeated_request_applies_once_and_answers_the_first_outcome,
            conditions::a_repeated_refusal_answers_the_first_outcome,
            conditions::the_last_eight_requests_are_remembered,
            conditions::tombstones_remember_requests,
            conditions::equal_request_ids_of_different_records_have_nothing_to_do_with_each_other,
            conditions::a_delete_leaves_a_tombstone,
            conditions::a_delete_of_an_expired_record_finds_nothing,
            conditions::revisions_grow_over_delete_and_recreate,
            batches::a_batch_read_answers_in_order_with_duplicates,
            batches::a_thousand_records_are_written_and_read_in_one_batch,
            batches::of_a_read_that_is_too_large_some_records_come_and_the_others_are_left_out,
            batches::each_write_of_a_batch_has_its_own_outcome,
            batches::equal_keys_of_a_batch_are_written_in_their_order,
            batches::writes_of_one_key_in_a_batch_see_each_other,
            batches::a_thousand_writes_of_one_key_are_each_answered,
            batches::concurrent_merges_of_different_features_lose_nothing,
            batches::of_concurrent_writers_of_one_revision_exactly_one_wins,
            batches::concurrent_writers_get_revisions_of_their_own,
            service::the_epoch_changes_only_for_who_saw_the_present_one,
            service::a_passed_deadline_ends_the_call_and_never_looks_like_absence,
            service::a_dropped_call_does_no_harm,
            service::it_says_that_it_can_serve_and_what_it_is,
            oracle::random_writes_do_what_apply_says,
        }
    };
}

macro_rules! call_each {
    ([$store:expr] $($module:ident :: $sentence:ident,)*) => {
        $(
            println!("{}", stringify!($sentence));
            $module::$sentence(Arc::clone(&$store)).await;
        )*
    };
}

/// Runs every sentence on one store, one after the other, naming each on standard output.
#[allow(dead_code, reason = "for stores that are costly to make")]
pub(crate) async fn keeps_the_contract(store: Arc<dyn Store>) {
    every_sentence!(call_each, store);
}

macro_rules! test_each {
    ([$open:expr] $($module:ident :: $sentence:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                let (store, _kept) = $open.await;
                $crate::store_contract::$module::$sentence(store).await;
            }
        )*
    };
}

/// One test a sentence. `$open` is a future of the store and of what it stands on, which is kept until the test ends.
macro_rules! store_contract {
    ($open:expr) => {
        every_sentence!(test_each, $open);
    };
}

mod embedded_store {
    store_contract!(super::embedded::fresh());
}
