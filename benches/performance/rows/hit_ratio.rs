//! Reads of which L1 answers a part: a few entities that are always in it, and many that come by so seldom that they never
//! are, as L1 is smaller than all of them.

use std::sync::Arc;

use serde_json::json;

use super::{
    embedded::ROW_SLACK,
    hits::{L1, NO_REDIS},
    share,
};
use crate::{
    bench::Bench,
    compare::Plan,
    data::{Ask, Set, Shape},
    pb::Source,
    report::Row,
    server::Server,
};

const SET: Set = Set { view: "mixed", shape: Shape::Doubles(20), entities: 200_000 };
const HOT: u64 = 1_000;
/// A tenth of what the set would take.
const L1_BYTES: &str = "16MiB";
const ENTITIES: usize = 100;

const RATIOS: [usize; 4] = [0, 50, 95, 100];

fn name(l1: L1, percent: usize) -> String {
    format!("{} read 100, {percent} % hits", l1.name())
}

pub(crate) fn names(l1: L1) -> Vec<String> {
    RATIOS.map(|percent| name(l1, percent)).into()
}

pub(crate) async fn run(bench: Arc<Bench>, l1: L1) -> Result<(), String> {
    let small = ["--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru"];
    let Some((_redis, mut settings)) = l1.start(&bench, &small).await? else {
        bench.leave_out(&names(l1), NO_REDIS);
        return Ok(());
    };
    if matches!(l1, L1::Memory) {
        settings.push(("FEATURESTORE_L1_MEMORY", L1_BYTES.to_owned()));
    }
    let server = Server::start(&bench.folder()?.join("data"), settings).await?;
    server.load(&SET, 0..SET.entities, false).await?;
    server.until_answered_by(Source::L1, &Set { entities: HOT, ..SET }).await?;
    for percent in RATIOS {
        let facts = json!({ "l1": l1.name(), "entities": ENTITIES, "hit_percent": percent });
        bench
            .row(Row::new(name(l1, percent)).facts(facts), async {
                let ours = server.wire("GetFeatures", bench.args.connections, &requests(percent)).await?;
                let compared = bench.against_floor(Plan::in_flight(32), ours, ROW_SLACK * ENTITIES);
                // An L1 that evicts by samples is not exact.
                let should_be = percent.saturating_sub(10) as f64..=(percent + 10) as f64;
                share::of_l1(&server, should_be, compared).await
            })
            .await;
    }
    Ok(())
}

/// As many as it takes to come by all of the cold entities once.
fn requests(percent: usize) -> Vec<bytes::Bytes> {
    let hot = ENTITIES * percent / 100;
    let cold = ENTITIES - hot;
    let calls = ((SET.entities - HOT) as usize).checked_div(cold).unwrap_or(256);
    let mut next_cold = HOT;
    let mut request = |call: usize| {
        let mut keys: Vec<u64> = (0..hot).map(|i| (call * hot + i) as u64 % HOT).collect();
        keys.extend(next_cold..next_cold + cold as u64);
        next_cold += cold as u64;
        Ask::rows(ENTITIES).request(SET.view, &keys)
    };
    (0..calls).map(&mut request).collect()
}
