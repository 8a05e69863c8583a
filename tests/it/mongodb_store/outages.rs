//! Servers that stop, die or were never there: bounded answers, and never a lie about what happened.

use super::*;

/// Ten times what is expected of a call that ought to end at once.
const SOON: Duration = Duration::from_secs(5);

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn one(n: i32) -> Record {
    record([("n", Kind::Int32Val(n))])
}

#[tokio::test]
async fn a_stalled_server_times_reads_out_and_leaves_writes_unknown_until_they_are_repeated() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.write(upsert("a", one(0))).await;

    mongod.signal("STOP");
    let started = Instant::now();
    for concern in BOTH {
        let answers = bench.store.read(&[key("a"), key("b")], concern, in_ms(300)).await;
        assert!(answers.iter().all(|a| matches!(a, Err(StoreError::Timeout(_)))), "{answers:?}");
    }
    let write = upsert("a", one(1));
    let lost = bench.store.write(write.clone(), in_ms(300)).await;
    assert!(matches!(lost, Err(StoreError::OutcomeUnknown(_))), "{lost:?}");
    let batch = vec![upsert("b", one(1)), upsert("c", one(1))];
    let answers = bench.store.write_batch(batch.clone(), in_ms(300)).await;
    assert!(answers.iter().all(|a| matches!(a, Err(StoreError::OutcomeUnknown(_)))), "{answers:?}");
    assert!(bench.store.ping(in_ms(300)).await.unwrap_err().is_outage());
    assert!(bench.store.epoch(in_ms(300)).await.unwrap_err().is_outage());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    mongod.signal("CONT");

    let (receipt, state) = bench.write(write.clone()).await;
    assert_eq!(receipt.outcome, Outcome::Written);
    assert_eq!(kind_of(&snapshot(&state), "n"), &Kind::Int32Val(1));
    assert_eq!(bench.write(write).await.0, receipt);
    let receipts = bench.store.write_batch(batch, soon()).await;
    assert!(receipts.iter().all(|r| r.as_ref().is_ok_and(|r| r.outcome == Outcome::Written)), "{receipts:?}");
    bench.store.ping(soon()).await.unwrap();
}

#[tokio::test]
async fn the_monitor_ends_what_hangs_on_a_dead_connection_and_that_too_is_unknown() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.store.ping(soon()).await.unwrap();
    mongod.signal("STOP");
    let started = Instant::now();
    let deadline = Instant::now() + Duration::from_secs(60);
    let lost = bench.store.write(upsert("a", one(1)), deadline).await;
    assert!(matches!(lost, Err(StoreError::OutcomeUnknown(_))), "{lost:?}");
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    println!("ended after {:?}: {lost:?}", started.elapsed());
}

#[tokio::test]
async fn many_calls_on_a_stalled_server_all_end_in_time_and_do_not_pile_up() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.store.ping(soon()).await.unwrap();
    mongod.signal("STOP");
    let started = Instant::now();
    let calls = (0..200).map(|n| bench.store.write(upsert(&format!("k{n}"), one(n)), in_ms(1000)));
    let answers = futures_util::future::join_all(calls).await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // What never got a connection surely did not happen; the others may have.
    let unavailable = answers.iter().filter(|a| matches!(a, Err(StoreError::Unavailable(_)))).count();
    let unknown = answers.iter().filter(|a| matches!(a, Err(StoreError::OutcomeUnknown(_)))).count();
    assert_eq!((unavailable, unknown), (200 - 64, 64));
    mongod.signal("CONT");
    let bound = soon();
    while bench.store.ping(in_ms(1000)).await.is_err() {
        assert!(Instant::now() < bound, "the store did not come back");
    }
    bench.store.close().await;
    assert!(matches!(bench.store.ping(soon()).await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn a_dead_server_is_unavailable_and_its_return_is_noticed() {
    let mut mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.write(upsert("a", one(0))).await;
    mongod.kill();

    // The first call may still meet the broken connection.
    let first = bench.store.write(upsert("a", one(1)), soon()).await.unwrap_err();
    assert!(first.is_outage(), "{first:?}");
    let started = Instant::now();
    let write = bench.store.write(upsert("a", one(2)), soon()).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    let batch = bench.store.write_batch(vec![upsert("b", one(2)), delete("a")], soon()).await;
    assert!(batch.iter().all(|a| matches!(a, Err(StoreError::Unavailable(_)))), "{batch:?}");
    for concern in BOTH {
        let read = bench.store.read(&[key("a"), key("b")], concern, soon()).await;
        assert!(read.iter().all(|a| matches!(a, Err(StoreError::Unavailable(_)))), "{read:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());

    let mongod = tokio::task::spawn_blocking(move || {
        mongod.restart();
        mongod
    });
    let _mongod = mongod.await.unwrap();
    let bound = soon();
    while bench.store.ping(in_ms(3000)).await.is_err() {
        assert!(Instant::now() < bound, "the store did not come back");
    }
    assert_eq!(kind_of(&bench.snapshot("a").await, "n"), &Kind::Int32Val(0), "an acknowledged write was lost");
}

#[tokio::test]
async fn a_server_that_is_not_there_at_start_may_come_later() {
    let mut mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    mongod.kill();
    let started = Instant::now();
    let bench = Bench::on(&mongod, rules()).await;
    assert!(!bench.store.info().exclusive);
    assert!(matches!(bench.store.ping(in_ms(500)).await, Err(StoreError::Unavailable(_))));
    let write = bench.store.write(upsert("a", one(1)), in_ms(500)).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    let read = bench.store.read(&[key("a")], ReadConcern::Majority, in_ms(500)).await;
    assert!(matches!(read[0], Err(StoreError::Unavailable(_))), "{read:?}");
    assert!(started.elapsed() < SOON);

    let mongod = tokio::task::spawn_blocking(move || {
        mongod.restart();
        mongod
    });
    let _mongod = mongod.await.unwrap();
    assert_eq!(bench.write(upsert("a", one(1))).await.0.outcome, Outcome::Written);
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_harms_nothing() {
    let bench = Bench::new().await;
    bench.store.ping(soon()).await.unwrap();
    for n in 0..100 {
        let write = bench.store.write(upsert("a", one(n)), soon());
        let _ = tokio::time::timeout(Duration::from_micros(u64::from(n as u32) * 50), write).await;
        let read = bench.store.read(&[], ReadConcern::Majority, soon()).await;
        assert!(read.is_empty());
    }
    let (receipt, _) = bench.write(upsert("a", one(-1))).await;
    assert_eq!(receipt.outcome, Outcome::Written);
    bench.store.close().await;
}
