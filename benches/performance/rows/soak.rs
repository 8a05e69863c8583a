//! `--soak SECONDS`: reads, writes and a bulk stream together for long, over Redis if there is one. What counts is the
//! server's memory.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use super::hits::{F20, L1};
use crate::{
    backends::Redis,
    bench::Bench,
    bulk::Bulk,
    data::{self, Ask, Chunks, Set, Shape},
    load,
    pb::Source,
    report::{Outcome, Row},
    server::Server,
    usage::resident_mib,
};

const LOOKS: u32 = 10;
/// Overwritten again and again.
const BULK: Set = Set { view: "bulk", shape: Shape::Doubles(20), entities: 200_000 };

pub(crate) async fn run(bench: &Bench, seconds: u64) {
    let span = Duration::from_secs(seconds.max(1));
    let outcome = measure(bench, span).await.unwrap_or_else(Outcome::Failed);
    bench.report().add(&Row::new(format!("soak of {span:?}")).target("memory flat"), &outcome);
}

async fn measure(bench: &Bench, span: Duration) -> Result<Outcome, String> {
    let (redis, settings): (Option<Redis>, _) = L1::Redis.start(bench, &[]).await?.unwrap_or_default();
    println!("L1 in {}", if redis.is_some() { "Redis" } else { "the process" });
    let server = Server::start(&bench.folder()?.join("data"), settings).await?;
    server.load(&F20, 0..F20.entities, true).await?;
    server.until_answered_by(Source::L1, &F20).await?;
    let keys = data::keys(256, 100, F20.entities);
    let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(100).request(F20.view, keys)).collect();
    let reads = Arc::new(server.wire("GetFeatures", bench.args.connections, &requests).await?);
    let chunks = Chunks::of(&F20);
    let requests: Vec<_> = (0..F20.entities).map(|number| chunks.upsert(number)).collect();
    let writes = Arc::new(server.wire("UpsertFeatures", bench.args.connections, &requests).await?);
    let bulk = Arc::new(Bulk::open(&server, Chunks::of(&BULK), Arc::new(AtomicU64::new(0))).await?);
    let look = async {
        let (start, mut seen) = (Instant::now(), Vec::new());
        for step in 0..=LOOKS {
            tokio::time::sleep((span / LOOKS * step).saturating_sub(start.elapsed())).await;
            let resident = resident_mib(server.pid())?;
            println!("{:>6.0} s {resident:>8.1} MiB", start.elapsed().as_secs_f64());
            seen.push(resident);
        }
        Ok::<_, String>(seen)
    };
    let (reads, writes, bulk, seen) = tokio::try_join!(
        load::closed(&reads, 8, span),
        load::closed(&writes, 4, span),
        load::closed(&bulk, 2, span),
        look
    )?;
    Ok(Outcome::Told(vec![
        ("resident at the start".to_owned(), seen[0], "MiB"),
        ("after a tenth".to_owned(), seen[1], "MiB"),
        ("at the end".to_owned(), seen[LOOKS as usize], "MiB"),
        ("reads of 100".to_owned(), reads.per_second, "/s"),
        ("writes".to_owned(), writes.per_second, "/s"),
        ("chunks".to_owned(), bulk.per_second, "/s"),
    ]))
}
