//! What a bulk stream does to memory, and who waits for whom: a client that is faster than the server, and one that does
//! not read its answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio_stream::StreamExt as _;
use tonic::{client::Grpc, transport::Endpoint};

use super::mongodb::NO_MONGOD;
use crate::{
    backends::Mongod,
    bench::Bench,
    bulk,
    data::{Ask, Chunks, Set, Shape},
    load::Call as _,
    report::{Outcome, Row},
    server::{CHUNK, Server},
    usage::resident_mib,
};

const SET: Set = Set { view: "stream", shape: Shape::Doubles(20), entities: 1_000_000 };
/// A load of a slow store ends early.
const LOAD_PATIENCE: Duration = Duration::from_secs(200);
/// How long the slow consumer reads nothing.
const ASLEEP: Duration = Duration::from_secs(4);

const EMBEDDED: &str = "bulk memory, embedded";
const MONGODB: &str = "bulk memory, mongodb";
const AHEAD: &str = "bulk, how far the client gets ahead";
const SLOW: &str = "bulk, a consumer that sleeps";

pub(crate) fn names() -> Vec<String> {
    [EMBEDDED, MONGODB, AHEAD, SLOW].map(str::to_owned).into()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let row = |name: &str| Row::new(name).target("flat");
    bench
        .row(row(EMBEDDED), async {
            let server = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
            memory(&server, bench.args.records).await
        })
        .await;
    bench
        .row(row(MONGODB), async {
            let Some(mongod) = Mongod::start(&bench.folder()?).await? else {
                return Ok(Outcome::LeftOut(NO_MONGOD.to_owned()));
            };
            let settings = vec![("MONGO_URI", mongod.uri())];
            let server = Server::start(&bench.folder()?.join("data"), settings).await?;
            memory(&server, bench.args.records).await
        })
        .await;
    if !bench.args.wants(AHEAD) && !bench.args.wants(SLOW) {
        return Ok(());
    }
    let server = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
    bench.row(Row::new(AHEAD).target("a few chunks"), ahead(&bench, &server)).await;
    bench.row(Row::new(SLOW).target("memory flat, all answered"), asleep(&server)).await;
    Ok(())
}

async fn memory(server: &Server, records: u64) -> Result<Outcome, String> {
    let mut told = vec![("idle".to_owned(), resident_mib(server.pid())?, "MiB")];
    let (start, mut written, set) = (Instant::now(), 0, Set { entities: u64::MAX, ..SET });
    for step in [10_000, 100_000, records] {
        while written < step && start.elapsed() < LOAD_PATIENCE {
            let next = step.min(written + 20_000);
            server.load(&set, written..next, false).await?;
            written = next;
        }
        told.push((format!("after {written}"), resident_mib(server.pid())?, "MiB"));
    }
    Ok(Outcome::Told(told))
}

async fn ahead(bench: &Bench, server: &Server) -> Result<Outcome, String> {
    let sent = Arc::new(AtomicU64::new(0));
    let (chunks, end, count) = (Chunks::of(&SET), Instant::now() + bench.args.span() * bench.args.rounds, sent.clone());
    let chunk_bytes = chunks.chunk(0..CHUNK).len();
    let stream = std::iter::from_fn(move || {
        // The transport asks for the next one as soon as it may send it.
        let number = (Instant::now() < end).then(|| count.fetch_add(1, Relaxed))?;
        Some(chunks.chunk(number * CHUNK..(number + 1) * CHUNK))
    });
    let mut answers = bulk::open(server.raw(), tokio_stream::iter(stream)).await?;
    let (mut answered, mut most) = (0, 0);
    while let Some(answer) = answers.next().await {
        bulk::written(answer.map_err(|status| status.to_string())?)?;
        most = most.max(sent.load(Relaxed) - answered);
        answered += 1;
    }
    Ok(Outcome::Told(vec![
        ("chunks".to_owned(), answered as f64, ""),
        ("ahead at most".to_owned(), most as f64, "chunks"),
        ("that is".to_owned(), most as f64 * chunk_bytes as f64 / f64::from(1 << 20), "MiB"),
        ("resident".to_owned(), resident_mib(server.pid())?, "MiB"),
    ]))
}

async fn asleep(server: &Server) -> Result<Outcome, String> {
    const CHUNKS: u64 = 200;
    let sent = Arc::new(AtomicU64::new(0));
    let (chunks, count) = (Chunks::of(&SET).all_results(), sent.clone());
    let stream = (0..CHUNKS).map(move |number| {
        count.fetch_add(1, Relaxed);
        chunks.chunk(number * CHUNK..(number + 1) * CHUNK)
    });
    // Room for less than two answers of a stream, but for others on the same connection.
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port())).map_err(|e| e.to_string())?;
    let endpoint = endpoint.initial_stream_window_size(64 << 10).initial_connection_window_size(4 << 20);
    let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
    let mut answers = bulk::open(Grpc::new(channel.clone()), tokio_stream::iter(stream)).await?;
    let before = resident_mib(server.pid())?;
    tokio::time::sleep(ASLEEP / 2).await;
    let half = sent.load(Relaxed);
    tokio::time::sleep(ASLEEP / 2).await;
    let (stalled_at, while_asleep) = (sent.load(Relaxed), resident_mib(server.pid())?);
    let start = Instant::now();
    let mut client = crate::server::Client::new(channel);
    client.info(crate::pb::InfoRequest {}).await.map_err(|status| format!("beside it: {status}"))?;
    let beside = start.elapsed();
    server.wire("GetFeatures", 1, &[Ask::rows(1).request(SET.view, &[0])]).await?.call().await?;
    let mut written = 0;
    while let Some(answer) = answers.next().await {
        written += bulk::written(answer.map_err(|status| format!("after it woke up: {status}"))?)?;
    }
    if written != CHUNKS * CHUNK {
        return Err(format!("{written} of {} records were written", CHUNKS * CHUNK));
    }
    Ok(Outcome::Told(vec![
        ("sent in 2 s".to_owned(), half as f64, "chunks"),
        ("in 4 s".to_owned(), stalled_at as f64, "chunks"),
        ("resident before".to_owned(), before, "MiB"),
        ("while asleep".to_owned(), while_asleep, "MiB"),
        ("another call on the connection".to_owned(), beside.as_secs_f64() * 1e3, "ms"),
        ("written in the end".to_owned(), written as f64, "records"),
    ]))
}
