//! Bulk loads of the embedded store against the engine's own batches at the same durability.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde_json::json;

use crate::{
    bench::Bench,
    bulk::Bulk,
    compare::{Plan, compare},
    data::{Chunks, Set, Shape},
    engine::{Engine, engine_key},
    load::Call,
    report::{Outcome, Row},
    server::{CHUNK, Server},
};

const SET: Set = Set { view: "bulk", shape: Shape::Doubles(20), entities: u64::MAX };

pub(crate) fn names() -> Vec<String> {
    ["bulk", "bulk, 4 streams"].map(|name| format!("embedded {name}")).into()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let folder = bench.folder()?;
    let envelopes = envelopes(&folder).await?;
    let server = Server::start(&folder.join("data"), Vec::new()).await?;
    let engine = Arc::new(Engine::open(&folder.join("engine")).map_err(|e| e.to_string())?);
    // Each row writes records that no other has written.
    let (ours_next, engine_next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for (streams, name, target) in [(1, "embedded bulk", ">= 0.70"), (4, "embedded bulk, 4 streams", "")] {
        let row = Row::new(name).against("the engine's batches, one thread").target(target);
        bench
            .row(row.facts(json!({ "unit": "records" })), async {
                let inserts =
                    Inserts { engine: engine.clone(), envelopes: envelopes.clone(), next: engine_next.clone() };
                let mut ours = Vec::new();
                for _ in 0..streams {
                    ours.push(Bulk::open(&server, Chunks::of(&SET), ours_next.clone()).await?);
                }
                let ours = Streams { ours, turn: AtomicU64::new(0), pid: server.pid() };
                let plan = Plan { in_flight: [1, 3 * streams], ..Plan::in_flight(1).closed().per_call(CHUNK as f64) };
                Ok(Outcome::Compared(compare(&bench.args, plan, inserts, ours).await?))
            })
            .await;
    }
    Ok(())
}

/// What the store makes of such records, out of a store of ours.
async fn envelopes(folder: &Path) -> Result<Vec<Arc<[u8]>>, String> {
    let server = Server::start(&folder.join("small"), Vec::new()).await?;
    server.load(&SET, 0..CHUNK, false).await?;
    let engine = Engine::open(&server.crash()).map_err(|e| e.to_string())?;
    let envelope = |number| match engine.records.get(engine_key(SET.view, number)) {
        Ok(Some(envelope)) => Ok(envelope.as_ref().into()),
        Ok(None) => Err("a record is not where the bench looks for it".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    (0..CHUNK).map(envelope).collect()
}

struct Inserts {
    engine: Arc<Engine>,
    envelopes: Vec<Arc<[u8]>>,
    next: Arc<AtomicU64>,
}

impl Call for Inserts {
    async fn call(&self) -> Result<(), String> {
        let first = self.next.fetch_add(CHUNK, Relaxed);
        let items =
            (first..).zip(&self.envelopes).map(|(number, envelope)| (engine_key(SET.view, number), envelope.clone()));
        tokio::task::block_in_place(|| self.engine.write(items)).map_err(|e| e.to_string())
    }
}

/// Some streams, a chunk to each in turn.
struct Streams {
    ours: Vec<Bulk>,
    turn: AtomicU64,
    pid: u32,
}

impl Call for Streams {
    async fn call(&self) -> Result<(), String> {
        let turn = self.turn.fetch_add(1, Relaxed) as usize;
        self.ours[turn % self.ours.len()].call().await
    }

    fn pid(&self) -> u32 {
        self.pid
    }
}
