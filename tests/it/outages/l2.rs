//! MongoDB stopped or frozen: what L1 holds is served, the rest is an error and never "no such record".

use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::harness::backends::Backends;

const OUTAGE: [&str; 2] = ["KILL", "STOP"];

fn assert_unavailable(status: &tonic::Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    assert!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
    assert!(details.error_info().is_some_and(|info| !info.reason.is_empty()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mongodb_hits_are_served_and_the_rest_is_an_error() {
    let mut backends = Backends::start();
    let server = backends.serve(&[]).await;
    let mut client = server.client().await;
    for signal in OUTAGE {
        let before = write(&mut client, "cached", 1.0).await.unwrap();
        write(&mut client, "cold", 1.0).await.unwrap();
        let key = backends.redis.cli(&["KEYS", "*:cold"]);
        backends.redis.cli(&["DEL", &key]);
        read(&mut client, "nobody").await.unwrap(); // a negative entry
        match signal {
            "KILL" => backends.mongod.kill(),
            _ => backends.mongod.signal(signal),
        }

        let hits = client.get_features(get(["cached", "nobody"])).await.unwrap().into_inner().rows;
        let statuses: Vec<_> = hits.iter().map(|row| (row.status(), row.source())).collect();
        assert_eq!(statuses, [(RowStatus::Found, Source::L1), (RowStatus::NotFound, Source::L1)], "{signal}");

        // Writes of others meet the outage too, and must not take the hits away.
        let mut writer = server.client().await;
        let writing = tokio::spawn(async move {
            for i in 0.. {
                let _ = write(&mut writer, &format!("other {i}"), 1.0).await;
                let _ = writer.delete_features(delete(["another"])).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let unknown = format!("unknown to {signal}");
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        // Longer than a view of the epoch lives.
        while start.elapsed() < Duration::from_secs(5) {
            let (mixed, took) = timed(client.get_features(get(["cached", "cold", &unknown]))).await;
            slowest = slowest.max(took);
            let mixed = mixed.unwrap().into_inner();
            assert!(mixed.degraded, "{signal}");
            let statuses: Vec<_> = mixed.rows.iter().map(|row| (row.status(), row.source())).collect();
            let error = (RowStatus::Error, Source::Unspecified);
            assert_eq!(statuses, [(RowStatus::Found, Source::L1), error, error], "{signal}");
            assert_eq!(mixed.rows[0].revision, before.revision);
            for row in &mixed.rows[1..] {
                assert_eq!(row.error.as_ref().unwrap().code, Code::Unavailable as i32, "{row:?}");
            }
        }
        writing.abort();
        println!("{signal}: the slowest read with a miss: {slowest:?}");
        assert_unavailable(&read(&mut client, "cold").await.unwrap_err());
        let ((row, degraded), took) = timed(async { read(&mut client, "cached").await.unwrap() }).await;
        assert_eq!((row.status(), degraded), (RowStatus::Found, true));
        println!("{signal}: a hit: {took:?}");

        let (refused, took) = timed(write(&mut client, "cached", 2.0)).await;
        assert_unavailable(&refused.unwrap_err());
        println!("{signal}: a refused write: {took:?}");
        assert_unavailable(&client.delete_features(delete(["cached", "cold"])).await.unwrap_err());
        let chunk = BulkUpsertRequest { records: vec![record("cached", [])], ..BulkUpsertRequest::default() };
        let mut answers = client.bulk_upsert(tokio_stream::iter([chunk])).await.unwrap().into_inner();
        assert_unavailable(&answers.message().await.unwrap_err());

        match signal {
            "KILL" => tokio::task::block_in_place(|| backends.mongod.restart()),
            _ => backends.mongod.signal("CONT"),
        }
        eventually("writes to be cached again", async || {
            write(&mut client, "cold", 3.0).await.is_ok_and(|written| written.cached)
        })
        .await;
        let (row, degraded) = read(&mut client, "cached").await.unwrap();
        assert_eq!((row.status(), row.revision, degraded), (RowStatus::Found, before.revision, false), "{signal}");
        assert_eq!(read(&mut client, &unknown).await.unwrap().0.status(), RowStatus::NotFound);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_mongodb_is_given_up_no_write_touches_redis_and_both_are_used_again_by_themselves() {
    let mut backends = Backends::start();
    let server = backends.serve(&[]).await;
    let mut client = server.client().await;
    let before = write(&mut client, "cached", 1.0).await.unwrap();
    assert_eq!(server.metric("featurestore_tier_mode{tier=\"l2\",mode=\"healthy\"}").await, 1.0);
    backends.mongod.kill();
    eventually("MongoDB to be given up", async || {
        let _ = write(&mut client.clone(), "another", 2.0).await;
        !server.tiered.l2_breaker().is_healthy()
    })
    .await;
    eventually("the writes before to end", async || server.tiered.writes().taken() == 0).await;
    assert_eq!(server.metric("featurestore_tier_mode{tier=\"l2\",mode=\"healthy\"}").await, 0.0);
    let touched = (backends.redis.calls("evalsha"), backends.redis.calls("del"));
    for i in 0..20 {
        assert_unavailable(&write(&mut client, "cached", 2.0).await.unwrap_err());
        assert_unavailable(&write(&mut client, &i.to_string(), 2.0).await.unwrap_err());
        assert_unavailable(&client.delete_features(delete(["cached"])).await.unwrap_err());
        let (_, ended) = bulk(&mut client, [chunk(1, [record("cached", [])])]).await;
        assert_unavailable(&ended.unwrap());
        // A miss takes no lease either.
        assert_unavailable(&read(&mut client, &format!("unknown {i}")).await.unwrap_err());
        let (row, _) = read(&mut client, "cached").await.unwrap();
        assert_eq!((row.revision, row.source()), (before.revision, Source::L1));
    }
    // As soon as L2 has not confirmed the epoch for two seconds.
    eventually("hits to be degraded", async || read(&mut client, "cached").await.unwrap().1).await;
    assert_eq!((backends.redis.calls("evalsha"), backends.redis.calls("del")), touched);
    tokio::task::block_in_place(|| backends.mongod.restart());
    eventually("writes to be cached again", async || {
        write(&mut client, "cached", 3.0).await.is_ok_and(|written| written.cached)
    })
    .await;
    for tier in ["l1", "l2"] {
        let name = format!("featurestore_tier_mode{{tier=\"{tier}\",mode=\"healthy\"}}");
        eventually(&name, async || server.metric(&name).await == 1.0).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_calls_after_mongodb_went_away_are_bounded_by_their_deadlines() {
    let backends = Backends::start();
    let server = backends.serve(&[("FEATURESTORE_DEADLINES_WRITE", "3s")]).await;
    let mut client = server.client().await;
    write(&mut client, "a", 1.0).await.unwrap();
    backends.mongod.signal("STOP");
    let (read, took) = timed(read(&mut client, "unknown")).await;
    println!("the first read: {took:?}");
    let code = read.unwrap_err().code();
    assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
    assert!(took < 10 * Duration::from_secs(2), "{took:?}");
    let (written, took) = timed(write(&mut client, "a", 2.0)).await;
    println!("the first write: {took:?}");
    let code = written.unwrap_err().code();
    assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
    assert!(took < 10 * Duration::from_secs(3), "{took:?}");
    backends.mongod.signal("CONT");
    // Whether that write happened was unknown; what is read is the one or the other, and stays so.
    eventually("MongoDB to answer again", async || super::read(&mut client, "a").await.is_ok_and(|(_, d)| !d)).await;
    let (row, _) = super::read(&mut client, "a").await.unwrap();
    let (again, _) = super::read(&mut client, "a").await.unwrap();
    assert!(again.revision >= row.revision);
    server.stop().await;
}
