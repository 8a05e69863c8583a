//! BulkUpsert: every record is answered for, messages in order, and the stream's ends.

mod stream;

use crate::harness::{client::*, server::Pair};

fn some(entity_id: &str, number: f64) -> FeatureRecord {
    record(entity_id, [("a", double(number))])
}

/// Sends one message; its answer.
async fn one(client: &mut Client, message: BulkUpsertRequest) -> BulkUpsertResponse {
    let (mut answers, ended) = bulk(client, [message]).await;
    assert!(ended.is_none() && answers.len() == 1, "{answers:?} {ended:?}");
    answers.remove(0)
}

fn outcomes(answer: &BulkUpsertResponse) -> Vec<(u32, WriteOutcome)> {
    answer.results.iter().map(|result| (result.index, result.outcome())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_records_with_every_seventh_bad_write_all_the_others_and_name_each_bad_one() {
    for pair in [Pair::embedded(), Pair::real()] {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let is_bad = |i: usize| i % 7 == 3;
        let of = |i: usize| match is_bad(i) {
            true => record(&format!("E{i}"), [("mean radius", double(1.0))]),
            false => some(&format!("E{i}"), i as f64),
        };
        // Messages of uneven sizes.
        let sizes = [1000, 999, 1, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000];
        assert_eq!(sizes.iter().sum::<usize>(), 10_000);
        let mut next = 0;
        let messages: Vec<_> = (0..)
            .zip(sizes)
            .map(|(sequence, size)| {
                next += size;
                chunk(sequence * 10, (next - size..next).map(of))
            })
            .collect();
        let (answers, ended) = bulk(&mut client, messages).await;
        assert!(ended.is_none() && answers.len() == sizes.len(), "{} {ended:?}", pair.name());
        let mut first = 0;
        for ((number, size), answer) in (0..).zip(sizes).zip(answers) {
            assert_eq!(answer.sequence, number * 10, "{}", pair.name());
            let bad: Vec<usize> = (first..first + size).filter(|i| is_bad(*i)).collect();
            assert_eq!(answer.written, (size - bad.len()) as u64, "{}", pair.name());
            assert_eq!((answer.skipped_stale, answer.failed), (0, bad.len() as u64), "{}", pair.name());
            assert!(answer.cached, "{}", pair.name());
            let named = |result: &WriteResult| {
                let error = result.error.clone().unwrap();
                (result.index as usize, result.entity_id.clone(), result.outcome(), error.field, error.reason)
            };
            let wanted = |i: &usize| {
                let field = format!("records[{}].features[\"mean radius\"]", i - first);
                (i - first, format!("E{i}"), WriteOutcome::Failed, field, "INVALID_FEATURE_NAME".to_owned())
            };
            let (named, wanted): (Vec<_>, Vec<_>) =
                (answer.results.iter().map(named).collect(), bad.iter().map(wanted).collect());
            assert_eq!(named, wanted, "{}", pair.name());
            first += size;
        }
        for first in (0..10_000).step_by(1000) {
            let found = rows(&mut client, get((first..first + 1000).map(|i| format!("E{i}")))).await;
            for (i, row) in (first..).zip(found) {
                if is_bad(i) {
                    assert_eq!((row.status(), row.revision), (RowStatus::NotFound, 0), "{} {i}", pair.name());
                } else {
                    assert_eq!(row.features, features([("a", double(i as f64))]), "{} {i}", pair.name());
                }
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_outcome_is_counted_and_all_results_names_them_all() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let future = Some(timestamp(4_000_000_000));
        let stored = put(&mut client, FeatureRecord { event_time: future, ..some("STALE", 1.0) }).await;
        let guarded = put(&mut client, some("GUARDED", 1.0)).await;
        put(&mut client, record("MERGED", [("kept", double(1.0))])).await;
        let message = chunk(
            7,
            [
                some("NEW", 1.0),
                FeatureRecord { event_time: Some(timestamp(1)), ..some("STALE", 2.0) },
                FeatureRecord { if_revision: Some(5), ..some("GUARDED", 2.0) },
                FeatureRecord { write_mode: WriteMode::Merge.into(), ..some("MERGED", 2.0) },
                FeatureRecord { ttl: Some(seconds(0)), ..some("BAD", 2.0) },
                FeatureRecord { if_revision: Some(0), ..some("FIRST", 1.0) },
            ],
        );
        let (written, skipped, failed) = (WriteOutcome::Written, WriteOutcome::SkippedStale, WriteOutcome::Failed);
        let answer = one(&mut client, BulkUpsertRequest { all_results: true, ..message.clone() }).await;
        assert_eq!((answer.written, answer.skipped_stale, answer.failed), (3, 1, 2), "{}", pair.name());
        let wanted = [(0, written), (1, skipped), (2, failed), (3, written), (4, failed), (5, written)];
        assert_eq!(outcomes(&answer), wanted, "{}", pair.name());
        assert_eq!(answer.results[1].revision, stored.revision, "{}", pair.name());
        let aborted = answer.results[2].error.as_ref().unwrap();
        assert_eq!((aborted.code, aborted.reason.as_str()), (tonic::Code::Aborted as i32, "REVISION_MISMATCH"));
        assert_eq!(aborted.metadata["stored"], guarded.revision.to_string(), "{}", pair.name());
        assert_eq!(answer.results[2].revision, guarded.revision, "{}", pair.name());
        let bad = answer.results[4].error.as_ref().unwrap();
        assert_eq!((bad.field.as_str(), bad.reason.as_str()), ("records[4].ttl", "INVALID_TTL"), "{}", pair.name());

        let ids = ["NEW", "STALE", "GUARDED", "MERGED", "BAD", "FIRST"];
        let revisions: Vec<_> = answer.results.iter().map(|result| result.revision).collect();
        for request in [get(ids), strong(ids)] {
            let rows = rows(&mut client, request).await;
            assert_eq!(rows.iter().map(|row| row.revision).collect::<Vec<_>>(), revisions, "{}", pair.name());
            assert_eq!(rows[3].features, features([("a", double(2.0)), ("kept", double(1.0))]), "{}", pair.name());
        }
        // Without all_results only the failures are named; FIRST is there now.
        let answer = one(&mut client, message).await;
        assert_eq!((answer.written, answer.skipped_stale, answer.failed), (2, 1, 3), "{}", pair.name());
        assert_eq!(outcomes(&answer), [(2, failed), (4, failed), (5, failed)], "{}", pair.name());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_ids_the_last_wins() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let merge = FeatureRecord { write_mode: WriteMode::Merge.into(), ..record("M", [("b", double(2.0))]) };
        let records = [some("R", 1.0), some("M", 1.0), some("R", 2.0), some("OTHER", 1.0), merge, some("R", 3.0)];
        for warm_cache in [false, true] {
            let message = BulkUpsertRequest { all_results: true, warm_cache, ..chunk(1, records.clone()) };
            let answer = one(&mut client, message).await;
            assert_eq!((answer.written, answer.failed, answer.results.len()), (6, 0, 6), "{}", pair.name());
            let found = rows(&mut client, get(["R", "M"])).await;
            assert_eq!(found[0].features, features([("a", double(3.0))]), "{}", pair.name());
            assert_eq!(found[1].features, features([("a", double(1.0)), ("b", double(2.0))]), "{}", pair.name());
            assert_eq!(found[0].revision, answer.results[5].revision, "{}", pair.name());
            assert_eq!(found[1].revision, answer.results[4].revision, "{}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l1_holds_what_warm_cache_put_there_and_else_nothing_older() {
    for pair in Pair::all() {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let ids = ["A", "B", "C"];
        for (warm_cache, number) in [(false, 1.0), (true, 2.0), (false, 3.0), (true, 4.0)] {
            let what = format!("{} {number}", pair.name());
            let message = chunk(1, ids.map(|id| some(id, number)));
            assert!(one(&mut client, BulkUpsertRequest { warm_cache, ..message }).await.cached, "{what}");
            let first = if warm_cache { Source::L1 } else { Source::L2 };
            for source in [first, Source::L1] {
                for row in rows(&mut client, get(ids)).await {
                    assert_eq!((row.source(), &row.features["a"]), (source, &double(number)), "{what}");
                }
            }
        }
        server.stop().await;
    }
}
