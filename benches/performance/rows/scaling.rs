//! Throughput and latency from one connection and one call in flight to many, of hits of L1 in the process.

use std::sync::Arc;

use serde_json::json;

use super::hits::F20;
use crate::{
    bench::Bench,
    compare::Plan,
    data::{self, Ask},
    pb::Source,
    report::Row,
    server::Server,
};

/// Connections and calls in flight.
const STEPS: [(u32, usize); 10] =
    [(1, 1), (4, 4), (4, 16), (4, 64), (4, 256), (1, 64), (1, 256), (16, 256), (64, 64), (64, 256)];
const ENTITIES: [usize; 2] = [1, 100];

fn name(entities: usize, connections: u32, in_flight: usize) -> String {
    format!("scaling {entities}: {connections} connections, {in_flight} calls")
}

fn steps() -> impl Iterator<Item = (usize, u32, usize)> {
    ENTITIES.into_iter().flat_map(|entities| STEPS.map(|(connections, in_flight)| (entities, connections, in_flight)))
}

pub(crate) fn names() -> Vec<String> {
    steps().map(|(entities, connections, in_flight)| name(entities, connections, in_flight)).collect()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let server = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
    server.load(&F20, 0..F20.entities, true).await?;
    server.until_answered_by(Source::L1, &F20).await?;
    for (entities, connections, in_flight) in steps() {
        let facts = json!({ "entities": entities, "connections": connections, "in_flight": in_flight });
        bench
            .row(Row::new(name(entities, connections, in_flight)).facts(facts), async {
                let keys = data::keys(200, entities, F20.entities);
                let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(entities).request(F20.view, keys)).collect();
                let ours = server.wire("GetFeatures", connections, &requests).await?;
                // Latencies of the closed loop: what counts is how they grow with the calls in flight.
                bench.against_floor(Plan::in_flight(in_flight).closed(), ours, 0).await
            })
            .await;
    }
    Ok(())
}
