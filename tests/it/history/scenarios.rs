//! What operators fear most, one at a time and under load, with figures.

mod cancelled;
mod epochs;
mod left_behind;
pub(super) mod one_l1;
mod primary_killed;
mod redis_killed;

use std::time::Duration;

use super::{client::CallRecord, event::Nanos};

/// The 99th percentile of the calls that began in this time.
fn p99(calls: &[CallRecord], from: Nanos, until: Nanos) -> Duration {
    let began = |call: &&CallRecord| (from..until).contains(&call.invoked);
    let mut took: Vec<Nanos> = calls.iter().filter(began).map(|call| call.returned - call.invoked).collect();
    took.sort_unstable();
    Duration::from_nanos(took.get(took.len() * 99 / 100).copied().unwrap_or(0))
}

/// How many calls began in each second of this time.
fn rate(calls: &[CallRecord], from: Nanos, until: Nanos) -> f64 {
    let count = calls.iter().filter(|call| (from..until).contains(&call.invoked)).count();
    count as f64 / Duration::from_nanos(until - from).as_secs_f64()
}

fn failures(calls: &[CallRecord]) -> Vec<&CallRecord> {
    calls.iter().filter(|call| call.has_failed()).collect()
}
