//! Reads that L1 answers, and single writes, against the floor; L2 is embedded.

use std::sync::Arc;

use serde_json::json;

use super::{embedded::ROW_SLACK, latency, share};
use crate::{
    backends::Redis,
    bench::Bench,
    compare::Plan,
    data::{self, Ask, Chunks, Set, Shape},
    pb::{ResponseFormat, Source},
    report::Row,
    server::{Server, Settings},
};

/// Where L1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L1 {
    Memory,
    Redis,
}

impl L1 {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }

    /// Starts what it needs; None: the machine lacks it.
    pub(crate) async fn start(
        self,
        bench: &Bench,
        options: &[&str],
    ) -> Result<Option<(Option<Redis>, Settings)>, String> {
        if self == Self::Memory {
            return Ok(Some((None, Vec::new())));
        }
        let redis = Redis::start(&bench.folder()?, options).await?;
        Ok(redis.map(|redis| {
            let settings = vec![("REDIS_URL", redis.url())];
            (Some(redis), settings)
        }))
    }
}

pub(crate) const F20: Set = Set { view: "f20", shape: Shape::Doubles(20), entities: 10_000 };
const F5: Set = Set { view: "f5", shape: Shape::Doubles(5), entities: 10_000 };
const F200: Set = Set { view: "f200", shape: Shape::Doubles(200), entities: 2_000 };
const EMBEDDING: Set = Set { view: "embedding", shape: Shape::Embedding(768), entities: 2_000 };
const WRITTEN: Set = Set { view: "written", shape: Shape::Doubles(20), entities: 10_000 };

pub(crate) const NO_REDIS: &str = "there is no redis-server in PATH";

struct Read {
    name: &'static str,
    set: Set,
    ask: Ask,
    in_flight: usize,
    /// With L1 in the process, and in Redis.
    targets: [&'static str; 2],
}

fn reads() -> Vec<Read> {
    let read = |name, set, ask, in_flight| Read { name, set, ask, in_flight, targets: ["", ""] };
    let matrix = |format| Ask::rows(100).names(20).format(format);
    vec![
        Read { targets: [">= 0.90, CPU <= 1.15", ">= 0.75"], ..read("hit 1", F20, Ask::rows(1), 128) },
        Read { targets: [">= 0.80, CPU <= 1.30", ">= 0.50"], ..read("hit 100", F20, Ask::rows(100), 32) },
        Read {
            targets: ["", ">= 0.45"],
            ..read("hit 100, 5 of 20 features by name", F20, Ask::rows(100).names(5), 32)
        },
        read("hit 10", F20, Ask::rows(10), 64),
        read("hit 500", F20, Ask::rows(500), 16),
        read("hit 100, 5 features", F5, Ask::rows(100), 32),
        read("hit 100, 200 features", F200, Ask::rows(100), 8),
        read("hit 1, embedding of 768", EMBEDDING, Ask::rows(1), 64),
        read("hit 100, embedding of 768", EMBEDDING, Ask::rows(100), 16),
        read("hit 100, matrix float64", F20, matrix(ResponseFormat::MatrixFloat64), 32),
        read("hit 100, matrix float32", F20, matrix(ResponseFormat::MatrixFloat32), 32),
    ]
}

pub(crate) fn names(l1: L1) -> Vec<String> {
    let reads = reads().into_iter().map(|read| read.name);
    let latency = (l1 == L1::Redis).then_some(latency::NAME);
    reads.chain(["write 1"]).chain(latency).map(|name| format!("{} {name}", l1.name())).collect()
}

pub(crate) async fn run(bench: Arc<Bench>, l1: L1) -> Result<(), String> {
    let Some((redis, settings)) = l1.start(&bench, &[]).await? else {
        bench.leave_out(&names(l1), NO_REDIS);
        return Ok(());
    };
    let server = Server::start(&bench.folder()?.join("data"), settings).await?;
    let wanted = |set: &Set| {
        reads()
            .iter()
            .any(|read| read.set.view == set.view && bench.args.wants(&format!("{} {}", l1.name(), read.name)))
    };
    for set in [F20, F5, F200, EMBEDDING].iter().filter(|set| wanted(set) || set.view == F20.view) {
        server.load(set, 0..set.entities, true).await?;
        server.until_answered_by(Source::L1, set).await?;
    }
    for read in reads() {
        let Read { name, set, ask, in_flight, targets } = read;
        let facts = json!({ "l1": l1.name(), "entities": ask.entities, "view": set.view });
        let row = Row::new(format!("{} {name}", l1.name())).target(targets[l1 as usize]).facts(facts);
        bench
            .row(row, async {
                // Enough calls that the rows of one do not stay in the CPU's caches for the next.
                let calls = (20_000 / ask.entities).min(256);
                let keys = data::keys(calls, ask.entities, set.entities);
                let requests: Vec<_> = keys.iter().map(|keys| ask.request(set.view, keys)).collect();
                let ours = server.wire("GetFeatures", bench.args.connections, &requests).await?;
                let compared = bench.against_floor(Plan::in_flight(in_flight), ours, 0);
                share::of_l1(&server, 99.0..=100.0, compared).await
            })
            .await;
    }
    bench
        .row(Row::new(format!("{} write 1", l1.name())), async {
            let chunks = Chunks::of(&WRITTEN);
            let requests: Vec<_> = (0..WRITTEN.entities).map(|number| chunks.upsert(number)).collect();
            let ours = server.wire("UpsertFeatures", bench.args.connections, &requests).await?;
            bench.against_floor(Plan::in_flight(64), ours, ROW_SLACK).await
        })
        .await;
    if let Some(redis) = redis {
        latency::run(&bench, l1, &server, &redis).await;
    }
    Ok(())
}
