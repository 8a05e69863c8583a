//! The embedded store under the service, with L1 practically off and many records, against the engine's own point reads
//! of the same keys in the same files. And a start after kill -9 over these, and the memory.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    bench::Bench,
    compare::{Plan, Spread},
    data::{self, Ask, Set, Shape},
    engine::{Engine, engine_key},
    load::Call,
    pb::Source,
    report::{Outcome, Row},
    server::Server,
    usage::resident_mib,
};

const VIEW: &str = "many";
const CALLS: usize = 5_000;
/// So small that nothing stays in it.
pub(crate) const L1_OFF: (&str, &str) = ("FEATURESTORE_L1_MEMORY", "64KiB");
/// A row tells three times, whose length varies with their digits; a fraction of a second that is zero is not sent.
pub(crate) const ROW_SLACK: usize = 20;

pub(crate) fn names() -> Vec<String> {
    ["load", "start after kill -9", "read 100", "read 1", "read 100, against gRPC", "memory"]
        .map(|name| format!("embedded {name}"))
        .into()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let data = bench.folder()?.join("data");
    let settings = vec![(L1_OFF.0, L1_OFF.1.to_owned())];
    let records = bench.args.records;
    let set = Set { view: VIEW, shape: Shape::Doubles(20), entities: records };
    let facts = json!({ "records": records });
    let row = |name: &str| Row::new(format!("embedded {name}")).facts(facts.clone());

    let mut server = Server::start(&data, settings).await?;
    let start = Instant::now();
    server.load(&set, 0..records, false).await?;
    let seconds = start.elapsed().as_secs_f64();
    bench
        .row(row("load"), async {
            Ok(Outcome::Told(vec![
                ("records".to_owned(), records as f64, ""),
                ("rate".to_owned(), records as f64 / seconds, "/s"),
                ("resident after it".to_owned(), resident_mib(server.pid())?, "MiB"),
            ]))
        })
        .await;

    let (mut starts, mut firsts) = (Vec::new(), Vec::new());
    for _ in 0..bench.args.rounds {
        server = server.crash_and_restart().await?;
        starts.push(server.start.as_secs_f64() * 1e3);
        let first = Instant::now();
        server.until_answered_by(Source::L2, &Set { entities: 1, ..set }).await?;
        firsts.push(first.elapsed().as_secs_f64() * 1e3);
    }
    let (starts, firsts) = (Spread::of(starts), Spread::of(firsts));
    bench
        .row(row("start after kill -9").target("SERVING < 1000 ms, first call < 10 ms"), async {
            Ok(Outcome::Told(vec![
                ("until SERVING".to_owned(), starts.median, "ms"),
                ("at most".to_owned(), starts.max, "ms"),
                ("first call".to_owned(), firsts.median, "ms"),
                ("at most".to_owned(), firsts.max, "ms"),
            ]))
        })
        .await;

    // The engine alone reads a copy of the same files.
    let data = server.crash();
    let copy = bench.folder()?;
    copy_folder(&data.join("fjall"), &copy.join("fjall")).map_err(|e| format!("copying the store: {e}"))?;
    let engine = Arc::new(Engine::open(&copy).map_err(|e| format!("opening the copy: {e}"))?);
    engine.flush().map_err(|e| format!("flushing the copy: {e}"))?;
    let server = Server::start(&data, vec![(L1_OFF.0, L1_OFF.1.to_owned())]).await?;
    // Until the server has been idle for long enough to do the same.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for (name, entities, in_flight, target) in [("read 100", 100, 32, ">= 0.70"), ("read 1", 1, 128, "")] {
        let row = row(name).against("the engine's point reads, a thread on each core").target(target);
        bench
            .row(row, async {
                let keys = data::keys(CALLS, entities, records);
                let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(entities).request(VIEW, keys)).collect();
                let (mut ours, few) = (
                    server.wire("GetFeatures", bench.args.connections, &requests).await?,
                    Set { entities: 500, ..set },
                );
                server.until_answered_by(Source::L2, &few).await?;
                ours.learn(ROW_SLACK * entities).await?;
                let keys = keys.iter().map(|keys| keys.iter().map(|key| engine_key(VIEW, *key)).collect()).collect();
                let reads = PointReads { engine: engine.clone(), keys, next: AtomicUsize::new(0) };
                let plan = Plan { in_flight: [cores, in_flight], ..Plan::in_flight(in_flight).closed() };
                Ok(Outcome::Compared(bench.against(plan, reads, ours).await?))
            })
            .await;
    }
    bench
        .row(row("read 100, against gRPC"), async {
            let keys = data::keys(CALLS, 100, records);
            let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(100).request(VIEW, keys)).collect();
            let ours = server.wire("GetFeatures", bench.args.connections, &requests).await?;
            bench.against_floor(Plan::in_flight(32), ours, ROW_SLACK * 100).await
        })
        .await;
    bench
        .row(row("memory").target("<= l2.cache (256 MiB) + 100 MB"), async {
            Ok(Outcome::Told(vec![("resident after the reads".to_owned(), resident_mib(server.pid())?, "MiB")]))
        })
        .await;
    Ok(())
}

struct PointReads {
    engine: Arc<Engine>,
    keys: Vec<Vec<Vec<u8>>>,
    next: AtomicUsize,
}

impl Call for PointReads {
    async fn call(&self) -> Result<(), String> {
        for key in &self.keys[self.next.fetch_add(1, Relaxed) % self.keys.len()] {
            let found = std::hint::black_box(self.engine.records.get(key).map_err(|e| e.to_string())?);
            if found.is_none() {
                return Err("a record is not in the copy".to_owned());
            }
        }
        Ok(())
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
