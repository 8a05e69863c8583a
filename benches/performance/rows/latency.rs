//! One call in flight: how much longer a hit in Redis takes than the floor, in round trips to Redis.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
};

use super::hits::{F20, L1};
use crate::{
    backends::Redis,
    bench::Bench,
    compare::Spread,
    data::{self, Ask},
    floor::Floor,
    load::{self, Call},
    report::{Outcome, Row},
    server::Server,
};

pub(crate) const NAME: &str = "hit 1, one call in flight";
const RECORD_BYTES: usize = 650;

pub(crate) async fn run(bench: &Bench, l1: L1, server: &Server, redis: &Redis) {
    let target = "floor + <= 1.3 round trips";
    bench.row(Row::new(format!("{} {NAME}", l1.name())).target(target), measure(bench, server, redis)).await;
}

async fn measure(bench: &Bench, server: &Server, redis: &Redis) -> Result<Outcome, String> {
    let requests: Vec<_> =
        data::keys(256, 1, F20.entities).iter().map(|keys| Ask::rows(1).request(F20.view, keys)).collect();
    let mut ours = server.wire("GetFeatures", 1, &requests).await?;
    let answers = ours.learn(0).await?;
    let floor = Floor::start(&answers, &bench.folder()?).await?;
    let floor_load = Arc::new(floor.under_the_load_of(&ours).await?);
    let (ours, redis) = (Arc::new(ours), Arc::new(RoundTrip::prepare(redis).await?));
    let mut rounds = Vec::new();
    for _ in 0..bench.args.rounds {
        let span = bench.args.span();
        let floor = load::closed(&floor_load, 1, span).await?.latencies;
        let ours = load::closed(&ours, 1, span).await?.latencies;
        let redis = load::closed(&redis, 1, span).await?.latencies;
        rounds.push([&floor, &ours, &redis].map(|latencies| latencies.quantile(0.5)));
    }
    let median = |side: usize| Spread::of(rounds.iter().map(|round| round[side])).median;
    let trips = Spread::of(rounds.iter().map(|[floor, ours, redis]| (ours - floor) / redis));
    Ok(Outcome::Told(vec![
        ("floor p50".to_owned(), median(0), "us"),
        ("ours p50".to_owned(), median(1), "us"),
        ("a Redis round trip p50".to_owned(), median(2), "us"),
        ("ours beyond the floor".to_owned(), trips.median, "round trips"),
        ("from".to_owned(), trips.min, ""),
        ("to".to_owned(), trips.max, ""),
    ]))
}

/// A bare MGET of one value as large as a record.
struct RoundTrip(Mutex<TcpStream>, u32);

impl RoundTrip {
    async fn prepare(redis: &Redis) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", redis.port())).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let this = Self(Mutex::new(stream), redis.pid());
        let value = "x".repeat(RECORD_BYTES);
        let set = format!("*3\r\n$3\r\nSET\r\n$8\r\nbench:rt\r\n${}\r\n{value}\r\n", value.len());
        this.exchange(set.as_bytes(), "+OK\r\n".len()).await?;
        Ok(this)
    }

    async fn exchange(&self, command: &[u8], answer: usize) -> Result<(), String> {
        let mut stream = self.0.lock().await;
        stream.write_all(command).await.map_err(|e| e.to_string())?;
        let mut bytes = [0; 2 * RECORD_BYTES];
        stream.read_exact(&mut bytes[..answer]).await.map_err(|e| e.to_string())?;
        if bytes[0] == b'-' { Err(String::from_utf8_lossy(&bytes[..answer]).into_owned()) } else { Ok(()) }
    }
}

impl Call for RoundTrip {
    async fn call(&self) -> Result<(), String> {
        const HEAD: usize = "*1\r\n$650\r\n".len();
        self.exchange(b"*2\r\n$4\r\nMGET\r\n$8\r\nbench:rt\r\n", HEAD + RECORD_BYTES + 2).await
    }

    fn pid(&self) -> u32 {
        self.1
    }
}
