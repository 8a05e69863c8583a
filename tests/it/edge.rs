//! The edge: connections, TLS, limits over all calls, and clients that mean no good.

mod abuse;
mod drain;
mod flood;
mod idle;
mod memory;
mod not_grpc;
mod packed;
mod slow;
mod small_chunks;
mod streams;
mod tls;
mod unfolded;

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    binary::{Binary, SERVICE, run},
    client::*,
    process::temp_dir,
    raw::{self, Raw},
    server::{PATIENCE, eventually},
    tls::{Authority, Secret, Signed},
};

/// Settings as the binary takes them.
fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Bytes that are counted now, over all connections.
async fn in_flight(server: &Binary) -> usize {
    let metrics = server.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix("featurestore_bytes_in_flight "));
    value.unwrap().parse::<f64>().unwrap() as usize
}

/// Another client is served, and at once.
async fn another_is_served(server: &Binary) {
    let start = Instant::now();
    let mut client = server.client().await;
    let written = put(&mut client, record("another", [("n", double(1.0))])).await;
    let found = row(&mut client, get(["another"])).await;
    assert_eq!((found.status(), found.revision), (RowStatus::Found, written.revision));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
