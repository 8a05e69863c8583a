//! Writes whose callers have gone: they go on, and what they have in memory counts for as long as they do.

use tokio::task::JoinSet;

use super::*;
use crate::harness::mongod::Mongod;

const RECORD_BYTES: usize = 1_000_000;

async fn gauge(server: &Binary, name: &str) -> f64 {
    let metrics = server.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("featurestore_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

fn large(id: &str) -> FeatureRecord {
    record(id, [("text", value(value::Kind::StringVal("x".repeat(RECORD_BYTES))))])
}

/// Writes of one connection whose callers leave, each in its way.
async fn write_and_leave(client: &Client) {
    const PATIENCE: Duration = Duration::from_millis(500);
    let mut calls = JoinSet::new();
    for i in 0..9 {
        let mut client = client.clone();
        calls.spawn(async move {
            let id = format!("large {i}");
            match i % 3 {
                0 => _ = tokio::time::timeout(PATIENCE, client.upsert_features(upsert(large(&id)))).await,
                1 => {
                    let mut request = tonic::Request::new(upsert(large(&id)));
                    request.set_timeout(PATIENCE);
                    _ = client.upsert_features(request).await;
                }
                _ => _ = tokio::time::timeout(PATIENCE, bulk(&mut client, [chunk(1, [large(&id)])])).await,
            }
        });
    }
    calls.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_nobody_waits_for_any_more_count_until_they_end() {
    // Its starter blocks.
    let mongod = std::thread::spawn(Mongod::replica_set).join().unwrap();
    // Longer than this test looks at them.
    let settings = [("MONGO_URI", mongod.uri()), ("FEATURESTORE_DEADLINES_WRITE", "4s".to_owned())];
    let server = Binary::start(&borrowed(&settings));
    server.until_serving().await;
    let mut client = server.client().await;
    put(&mut client, large("before")).await;
    // Nothing is written while it is locked, and the server does not take it for lost.
    let admin = mongod.database("admin").await;
    admin.run_command(bson::doc! { "fsync": 1, "lock": true }).await.unwrap();
    write_and_leave(&client).await;
    eventually("all calls to have ended", async || gauge(&server, "calls_in_flight").await <= 0.0).await;
    let (bytes, writes) = (gauge(&server, "bytes_in_flight").await, gauge(&server, "writes_in_flight").await);
    println!("{writes} writes go on, with {bytes} bytes");
    admin.run_command(bson::doc! { "fsyncUnlock": 1 }).await.unwrap();
    assert!(writes > 0.0, "none is left to look at");
    assert!(bytes >= writes * RECORD_BYTES as f64, "{writes} writes have {bytes} bytes");
    for gauges in ["writes_in_flight", "bytes_in_flight"] {
        eventually(gauges, async || gauge(&server, gauges).await == 0.0).await;
    }
}
