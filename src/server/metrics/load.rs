//! The load of this moment. All gauges named `.._in_flight` are zero when nobody calls; what stays
//! above zero has leaked.

use super::super::guard::GuardLayer;
use crate::{
    metrics::{Kind, Text},
    tiered::Tiered,
};

pub(super) fn write(text: &mut Text, tiered: &Tiered, calls: &GuardLayer) {
    let (reads, writes) = (tiered.l2_reads(), tiered.writes());
    let gauges = [
        ("featurestore_calls_in_flight", "Calls that are in progress, of limits.max_in_flight.", calls.in_flight()),
        (
            "featurestore_bytes_in_flight",
            "Bytes of requests, of what reads hold, and of answers, of limits.max_bytes_in_flight.",
            calls.bytes().held(),
        ),
        (
            "featurestore_tasks_in_flight",
            "Tasks that continue when their calls end: writes, and reads of L2 (flights).",
            tiered.tasks(),
        ),
        ("featurestore_writes_in_flight", "Writes, including those whose calls have ended.", writes.taken()),
        ("featurestore_flights_in_flight", "Keys that are being read from L2 for one or more calls.", tiered.flights()),
        ("featurestore_l2_reads_in_flight", "Reads of L2 that are in progress, of l2.max_reads.", reads.taken()),
        ("featurestore_l2_reads_waiting", "Reads of L2 that wait for others to end.", reads.waiting()),
    ];
    for (name, help, value) in gauges {
        text.family(name, Kind::Gauge, help).value(&[], value as f64);
    }
    let shed = [
        ("featurestore_calls_shed", "Calls that were shed because of limits.max_in_flight.", calls.shed()),
        (
            "featurestore_bytes_shed",
            "Calls and answers that were refused because limits.max_bytes_in_flight was used up.",
            calls.bytes().refused(),
        ),
        ("featurestore_l2_reads_shed", "Reads of L2 that were shed because of l2.max_reads.", reads.shed()),
        ("featurestore_writes_shed", "Writes that were shed because too many were in progress.", writes.shed()),
    ];
    for (name, help, value) in shed {
        text.family(name, Kind::Counter, help).value(&[], value as f64);
    }
    streams(text, calls);
    pools(text, tiered);
}

fn streams(text: &mut Text, calls: &GuardLayer) {
    let streams: Vec<_> = calls.streams().reading().collect();
    text.family("featurestore_streams_in_flight", Kind::Gauge, "Open streams, by kind.");
    for stream in &streams {
        text.value(&[("kind", stream.kind)], stream.open as f64);
    }
    let help = "The most open streams, by kind; one connection may have an eighth of them.";
    text.family("featurestore_streams_max", Kind::Gauge, help);
    for stream in &streams {
        text.value(&[("kind", stream.kind)], stream.max as f64);
    }
    let help = "Streams that were shed because too many of their kind were open.";
    text.family("featurestore_streams_shed", Kind::Counter, help);
    for stream in &streams {
        text.value(&[("kind", stream.kind)], stream.refused as f64);
    }
}

/// Connections to Redis and MongoDB; no series for an engine without connections.
fn pools(text: &mut Text, tiered: &Tiered) {
    let pools =
        [(tiered.cache().info().kind, tiered.cache().pool()), (tiered.store().info().kind, tiered.store().pool())];
    let pools: Vec<_> = pools.into_iter().filter_map(|(kind, pool)| Some((kind, pool?))).collect();
    let name = |kind: &&'static str| ("db_client_connection_pool_name", *kind);
    text.family("db_client_connections", Kind::Gauge, "Connections to a backend that are in use.");
    for (kind, pool) in &pools {
        text.value(&[name(kind), ("db_client_connection_state", "used")], pool.used as f64);
    }
    text.family("db_client_connection_max", Kind::Gauge, "The most connections to a backend.");
    for (kind, pool) in &pools {
        text.value(&[name(kind)], pool.max as f64);
    }
    let help = "Operations that wait for a connection, or, where connections are shared, for their answer.";
    text.family("db_client_connection_pending_requests", Kind::Gauge, help);
    for (kind, pool) in &pools {
        text.value(&[name(kind)], pool.pending as f64);
    }
    let help = "How long operations waited for a connection.";
    text.family("db_client_connection_wait_time_seconds", Kind::Histogram, help);
    for (kind, pool) in &pools {
        if let Some(waits) = &pool.waits {
            text.histogram(&[name(kind)], waits);
        }
    }
}
