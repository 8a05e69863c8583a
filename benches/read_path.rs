//! What a read that L1 answers costs the server, against the floor: `cargo bench --bench read_path`.
//!
//! The floor is a tonic server that answers the same request with the same bytes, encoded beforehand, and touches no
//! storage. Each server is a process of its own, so its CPU time (user + system, by the kernel's accounting) is told
//! apart from the load's. CPU per call is far steadier than throughput on a small machine; the ratios are what counts.
//!
//! Printed, for the L1 in process and for Redis (where redis-server is in PATH): calls per second and CPU per call for
//! 1 and for 100 entities of 20 features, their ratios to the floor, and how the CPU of one call for 100 compares with
//! that of 100 calls for one.

use std::{
    env,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Response, Status, client::Grpc, transport::Channel};

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod floor {
    include!(concat!(env!("OUT_DIR"), "/featurestore.floor.FloorService.rs"));
}

mod codec {
    //! Messages as the bytes that they are on the wire.

    use bytes::{Buf, BufMut, Bytes};
    use tonic::{
        Status,
        codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    };

    #[derive(Debug, Default)]
    pub(crate) struct RawCodec;

    impl Codec for RawCodec {
        type Encode = Bytes;
        type Decode = Bytes;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            Self
        }

        fn decoder(&mut self) -> Self {
            Self
        }
    }

    impl Encoder for RawCodec {
        type Item = Bytes;
        type Error = Status;

        fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
            buf.put(item);
            Ok(())
        }
    }

    impl Decoder for RawCodec {
        type Item = Bytes;
        type Error = Status;

        fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
            Ok(Some(buf.copy_to_bytes(buf.remaining())))
        }
    }
}

const FEATURES: usize = 20;
const BATCH: usize = 100;
/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(4);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = env::args().collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let [_, mode, port, path] = &args[..]
        && mode == "floor"
    {
        return runtime.block_on(serve_floor(port.parse().unwrap(), std::fs::read(path).unwrap()));
    }
    runtime.block_on(compare());
}

async fn compare() {
    println!("{FEATURES} features a row; load, server and Redis share this machine; {SPAN:?} a figure\n");
    println!("{:<24} {:>10} {:>14} {:>12} {:>12}", "", "calls/s", "CPU us/call", "x floor/s", "x floor CPU");
    let folder = tempfile::tempdir().unwrap();
    let ours = Server::featurestore(&[], folder.path());
    let rows = Rows::write(&ours).await;
    let ours = [ours.measure(&rows.one, 64).await, ours.measure(&rows.batch, 16).await];
    let mut floors = Vec::new();
    for (request, response, flight) in [(&rows.one, &rows.one_answer, 64), (&rows.batch, &rows.batch_answer, 16)] {
        let floor = Server::floor(response, folder.path());
        floors.push(floor.measure(request, flight).await);
    }
    show("floor", &floors, &floors);
    show("L1 in process", &ours, &floors);

    let redis_port = free_port();
    let redis = Command::new("redis-server")
        .args(["--port", &redis_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn();
    match redis {
        Ok(redis) => {
            let _redis = Server { child: redis, port: redis_port, path: "" };
            let folder = tempfile::tempdir().unwrap();
            let url = format!("redis://127.0.0.1:{redis_port}");
            let ours = Server::featurestore(&[("REDIS_URL", &url)], folder.path());
            let rows = Rows::write(&ours).await;
            let ours = [ours.measure(&rows.one, 64).await, ours.measure(&rows.batch, 16).await];
            show("L1 in Redis", &ours, &floors);
        }
        Err(error) => println!("L1 in Redis: left out, redis-server cannot be started: {error}"),
    }
}

fn show(name: &str, figures: &[Figure], floors: &[Figure]) {
    for ((figure, floor), entities) in figures.iter().zip(floors).zip([1, BATCH]) {
        println!(
            "{:<24} {:>10.0} {:>14.1} {:>12.2} {:>12.2}",
            format!("{name}, {entities}"),
            figure.rate,
            figure.cpu_micros,
            figure.rate / floor.rate,
            figure.cpu_micros / floor.cpu_micros,
        );
    }
    let share = figures[1].cpu_micros / (figures[0].cpu_micros * BATCH as f64);
    println!("{:<24} one call for {BATCH} costs {:.3} of the CPU of {BATCH} calls for one\n", "", share);
}

/// The requests, and the answers that the floor gives.
struct Rows {
    one: Bytes,
    one_answer: Bytes,
    batch: Bytes,
    batch_answer: Bytes,
}

impl Rows {
    async fn write(server: &Server) -> Self {
        let mut client = pb::feature_store_service_client::FeatureStoreServiceClient::new(server.channel().await);
        let records = (0..BATCH).map(|i| pb::FeatureRecord {
            entity_id: format!("CUST{i:05}"),
            features: (0..FEATURES)
                .map(|f| {
                    let number = i as f64 + f as f64 / 10.0;
                    (format!("feature_{f:02}"), pb::Value { kind: Some(pb::value::Kind::DoubleVal(number)) })
                })
                .collect(),
            model_version: "v1.0.0".to_owned(),
            ..pb::FeatureRecord::default()
        });
        let chunk = pb::BulkUpsertRequest { records: records.collect(), warm_cache: true, ..Default::default() };
        let mut answers = client.bulk_upsert(tokio_stream::once(chunk)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().written, BATCH as u64);

        let request = |count: usize| pb::GetFeaturesRequest {
            entity_ids: (0..count).map(|i| format!("CUST{i:05}")).collect(),
            ..pb::GetFeaturesRequest::default()
        };
        let mut answers = Vec::new();
        for count in [1, BATCH] {
            // Once more, as the first read may have filled L1.
            client.get_features(request(count)).await.unwrap();
            let answer = client.get_features(request(count)).await.unwrap().into_inner();
            assert!(answer.rows.iter().all(|row| row.source() == pb::Source::L1), "not a hit");
            answers.push(Bytes::from(answer.encode_to_vec()));
        }
        let [one_answer, batch_answer] = answers.try_into().unwrap();
        let encode = |count| Bytes::from(request(count).encode_to_vec());
        Self { one: encode(1), one_answer, batch: encode(BATCH), batch_answer }
    }
}

/// A server in a process of its own.
struct Server {
    child: Child,
    port: u16,
    path: &'static str,
}

/// One measurement.
struct Figure {
    /// Calls per second.
    rate: f64,
    /// CPU time of the server per call.
    cpu_micros: f64,
}

impl Server {
    fn featurestore(settings: &[(&str, &str)], folder: &std::path::Path) -> Self {
        let (port, admin) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_featurestore"))
            .env("FEATURESTORE_LISTEN", format!("127.0.0.1:{port}"))
            .env("FEATURESTORE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .env("FEATURESTORE_DATA_DIR", folder.join("data"))
            .env("RUST_LOG", "warn")
            .envs(settings.iter().copied())
            .spawn()
            .unwrap();
        Self { child, port, path: "/featurestore.v1.FeatureStoreService/GetFeatures" }
    }

    fn floor(response: &Bytes, folder: &std::path::Path) -> Self {
        let (port, file) = (free_port(), folder.join("response"));
        std::fs::write(&file, response).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["floor", &port.to_string(), file.to_str().unwrap()])
            .spawn()
            .unwrap();
        Self { child, port, path: "/featurestore.floor.FloorService/GetFeatures" }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", self.port)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
        for _ in 0..500 {
            if let Ok(channel) = endpoint.connect().await {
                return channel;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server on port {} does not answer", self.port);
    }

    /// Closed loop over four connections with so many calls in flight.
    async fn measure(&self, request: &Bytes, in_flight: usize) -> Figure {
        self.run(request, in_flight, SPAN / 4).await;
        let (cpu, started) = (self.cpu(), Instant::now());
        let calls = self.run(request, in_flight, SPAN).await;
        let cpu = self.cpu() - cpu;
        Figure {
            rate: calls as f64 / started.elapsed().as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / calls as f64,
        }
    }

    async fn run(&self, request: &Bytes, in_flight: usize, span: Duration) -> usize {
        let calls = Arc::new(AtomicUsize::new(0));
        let mut channels = Vec::new();
        for _ in 0..4 {
            channels.push(self.channel().await);
        }
        let end = Instant::now() + span;
        let work = (0..in_flight).map(|i| {
            let (channel, request, calls) = (channels[i % channels.len()].clone(), request.clone(), calls.clone());
            let path = http::uri::PathAndQuery::from_static(self.path);
            tokio::spawn(async move {
                let mut client = Grpc::new(channel).max_decoding_message_size(64 << 20);
                while Instant::now() < end {
                    client.ready().await.unwrap();
                    let call = client.unary(Request::new(request.clone()), path.clone(), codec::RawCodec);
                    let answer: Response<Bytes> = call.await.unwrap();
                    assert!(!answer.into_inner().is_empty());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        for task in work.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        calls.load(Ordering::Relaxed)
    }

    /// User and system time of the process so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // Fields 14 and 15 of proc(5), in ticks; a tick is 10 ms on every Linux there is.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Floor(Bytes);

#[tonic::async_trait]
impl floor::floor_service_server::FloorService for Floor {
    async fn get_features(&self, _: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}

async fn serve_floor(port: u16, response: Vec<u8>) {
    let service = floor::floor_service_server::FloorServiceServer::new(Floor(response.into()));
    tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(service)
        .serve(([127, 0, 0, 1], port).into())
        .await
        .unwrap();
}
