//! What clients see while Redis or MongoDB is gone, frozen, or back with what it held before. The tables are in
//! docs/reliability.md: an L1 failure fails nothing, an L2 failure never looks like "no such record".

mod another_redis;
mod failovers;
mod herds;
mod l1_comes_back;
mod l1_is_gone;
mod l2;
mod replicas;

use std::time::{Duration, Instant};

use crate::harness::{
    client::*,
    server::{Server, eventually},
};

/// Ten times the default: a busy test machine fails no read.
const PATIENT_READS: (&str, &str) = ("FEATURESTORE_DEADLINES_READ", "20s");
/// Well beyond the watcher's intervals and the pause after a change of the epoch.
const RECOVERY: Duration = Duration::from_secs(20);

async fn write(client: &mut Client, id: &str, n: f64) -> Result<UpsertFeaturesResponse, tonic::Status> {
    client.upsert_features(upsert(record(id, [("n", double(n))]))).await.map(tonic::Response::into_inner)
}

async fn read(client: &mut Client, id: &str) -> Result<(FeatureRow, bool), tonic::Status> {
    let mut read = client.get_features(get([id])).await?.into_inner();
    Ok((read.rows.remove(0), read.degraded))
}

/// What it brought, and how long it took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (work.await, start.elapsed())
}

/// Reads until L1 answers undegraded again; what was read meanwhile must satisfy `check`.
async fn until_l1_answers(server: &Server, id: &str, mut check: impl FnMut(&FeatureRow)) -> Duration {
    let mut client = server.client().await;
    let start = Instant::now();
    loop {
        let (row, degraded) = read(&mut client, id).await.unwrap();
        check(&row);
        if row.source() == Source::L1 && !degraded {
            return start.elapsed();
        }
        assert!(start.elapsed() < RECOVERY, "L1 does not answer again: {row:?}, degraded: {degraded}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Writes until L1 confirms it.
async fn until_writes_are_cached(client: &mut Client, id: &str) {
    eventually("a write to be cached", async || write(client, id, 0.0).await.unwrap().cached).await;
}
