//! Redis stopped or frozen: reads come from L2, writes are accepted with `cached = false`, and neither waits long.

use super::*;
use crate::harness::server::Pair;

/// How long a call waits for L1: so long that who waits for it is told from who waits for a busy machine.
const L1_TIMEOUT: Duration = Duration::from_secs(2);
const PATIENT: [(&str, &str); 2] = [("FEATURESTORE_L1_TIMEOUT", "2s"), PATIENT_READS];
/// Ten times what MongoDB needs on a busy machine.
const L2_ALONE: Duration = Duration::from_secs(1);

async fn row_from_l2(client: &mut Client, id: &str, n: f64) -> Duration {
    let (answer, took) = timed(read(client, id)).await;
    let (row, degraded) = answer.unwrap();
    assert_eq!((row.status(), row.source(), degraded), (RowStatus::Found, Source::L2, true), "{row:?}");
    assert_eq!(row.features, features([("n", double(n))]));
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_come_from_l2_and_writes_are_not_cached_while_redis_is_stopped() {
    let mut pair = Pair::real();
    let server = pair.serve_with(&PATIENT).await;
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await.unwrap();
    write(&mut client, "b", 1.0).await.unwrap();
    pair.redis().kill();

    let mut took = Vec::new();
    for i in 0..50 {
        took.push(row_from_l2(&mut client, "a", 1.0).await);
        let n = f64::from(i);
        let written = write(&mut client, "b", n).await.unwrap();
        assert!(!written.cached && written.outcome() == WriteOutcome::Written, "{written:?}");
        took.push(row_from_l2(&mut client, "b", n).await);
    }
    assert_eq!(read(&mut client, "nobody").await.unwrap().0.status(), RowStatus::NotFound);
    let deleted = client.delete_features(delete(["b", "nobody"])).await.unwrap().into_inner().results;
    let outcomes: Vec<_> = deleted.iter().map(|result| (result.outcome(), result.cached)).collect();
    assert_eq!(outcomes, [(WriteOutcome::Deleted, false), (WriteOutcome::NotFound, false)]);
    assert_eq!(read(&mut client, "b").await.unwrap().0.status(), RowStatus::NotFound);
    took.sort();
    println!("reads without Redis: median {:?}, slowest {:?}", took[50], took[99]);
    // Not one of them waits for Redis. The median, as a busy machine may hold up any one of them.
    assert!(took[50] < L2_ALONE, "{took:?}");

    pair.redis().start_again();
    until_writes_are_cached(&mut client, "a").await;
    until_l1_answers(&server, "a", |row| assert_eq!(row.status(), RowStatus::Found)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_costs_a_call_little_and_soon_nothing() {
    let pair = Pair::real();
    let server = pair.serve_with(&PATIENT).await;
    let (mut client, redis) = (server.client().await, pair.redis.as_ref().unwrap());
    write(&mut client, "a", 1.0).await.unwrap();
    row_from_l1(&mut client).await;
    redis.freeze();
    let mut waited = Vec::new();
    while server.tiered.trust().breaker.is_healthy() {
        waited.push(row_from_l2(&mut client, "a", 1.0).await);
        assert!(waited.len() < 10, "the breaker does not trip: {waited:?}");
    }
    println!("reads until the breaker tripped: {waited:?}");
    // At most one L1 timeout a call.
    assert!(waited.iter().all(|took| *took < L1_TIMEOUT + L2_ALONE), "{waited:?}");

    let mut took = Vec::new();
    for _ in 0..101 {
        took.push(row_from_l2(&mut client, "a", 1.0).await);
        write(&mut client, "b", 1.0).await.unwrap();
    }
    took.sort();
    println!("reads afterwards: median {:?}, slowest {:?}", took[50], took[100]);
    // Not one of them waits for Redis. The median, as a busy machine may hold up any one of them.
    assert!(took[50] < L2_ALONE, "{took:?}");
    redis.thaw();
    until_l1_answers(&server, "a", |row| assert_eq!(row.status(), RowStatus::Found)).await;
    server.stop().await;
}

/// What a call takes that meets a Redis which has just frozen.
async fn met_frozen<T>(call: impl AsyncFnOnce(Client) -> T) -> T {
    let pair = Pair::new(true, false);
    let server = pair.serve_with(&PATIENT).await;
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await.unwrap();
    pair.redis.as_ref().unwrap().freeze();
    let (answer, took) = timed(call(client)).await;
    pair.redis.as_ref().unwrap().thaw();
    println!("a call that met a frozen Redis took {took:?}");
    assert!(took < 2 * L1_TIMEOUT, "it waited more than once: {took:?}");
    until_l1_answers(&server, "a", |row| assert_ne!(row.status(), RowStatus::Error)).await;
    server.stop().await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_call_it_waits_once_for_a_redis_that_has_just_frozen() {
    let written = met_frozen(async |mut client| write(&mut client, "a", 2.0).await.unwrap());
    let deleted = met_frozen(async |mut client| client.delete_features(delete(["a", "b"])).await.unwrap().into_inner());
    let warmed = met_frozen(async |mut client| {
        let chunk = BulkUpsertRequest { warm_cache: true, ..chunk(1, [record("a", []), record("b", [])]) };
        bulk(&mut client, [chunk]).await.0.remove(0)
    });
    let read = met_frozen(async |mut client| client.get_features(get(["a", "b"])).await.unwrap().into_inner());
    let strongly = met_frozen(async |mut client| client.get_features(strong(["a", "b"])).await.unwrap().into_inner());
    let (written, deleted, warmed, read, strongly) = tokio::join!(written, deleted, warmed, read, strongly);
    assert!(!written.cached && deleted.results.iter().all(|result| !result.cached) && !warmed.cached);
    assert!(read.degraded && strongly.degraded);
}

async fn row_from_l1(client: &mut Client) {
    let (row, degraded) = read(client, "a").await.unwrap();
    assert_eq!((row.source(), degraded), (Source::L1, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_refused_without_l1_where_the_operator_wants_that() {
    let mut pair = Pair::real();
    let server = pair.serve_with(&[("FEATURESTORE_L1_ON_LOSS", "reject")]).await;
    let mut client = server.client().await;
    let before = write(&mut client, "a", 1.0).await.unwrap();
    pair.redis().kill();
    for _ in 0..5 {
        let refused = write(&mut client, "a", 2.0).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        let details = tonic_types::StatusExt::get_error_details(&refused);
        assert_eq!(details.error_info().unwrap().reason, "L1_LOST", "{refused:?}");
        let (row, _) = read(&mut client, "a").await.unwrap();
        assert_eq!(row.revision, before.revision, "a refused write happened");
    }
    let all = client.delete_features(delete(["a"])).await.unwrap_err();
    assert_eq!(all.code(), tonic::Code::Unavailable);
    pair.redis().start_again();
    eventually("a write to be taken again", async || write(&mut client, "a", 3.0).await.is_ok()).await;
    let (row, _) = read(&mut client, "a").await.unwrap();
    assert_eq!(row.features, features([("n", double(3.0))]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_call_was_cancelled_is_completed_in_both_tiers() {
    let pair = Pair::real();
    let server = pair.serve_with(&[("FEATURESTORE_L1_TIMEOUT", "10s")]).await;
    let (mut client, redis) = (server.client().await, pair.redis.as_ref().unwrap());
    let before = write(&mut client, "a", 1.0).await.unwrap();
    // It hangs at its MARK, and its caller leaves.
    redis.freeze();
    let mut request = tonic::Request::new(upsert(record("a", [("n", double(2.0))])));
    request.set_timeout(Duration::from_millis(300));
    client.upsert_features(request).await.unwrap_err();
    let dropped = tokio::time::timeout(Duration::from_millis(200), write(&mut client, "b", 2.0)).await;
    assert!(dropped.is_err(), "{dropped:?}");
    redis.thaw();
    for id in ["a", "b"] {
        eventually("the write to be readable", async || {
            let (row, _) = read(&mut client, id).await.unwrap();
            assert!(id == "b" || row.revision >= before.revision);
            row.features == features([("n", double(2.0))]) && row.source() == Source::L1
        })
        .await;
    }
    server.stop().await;
}
