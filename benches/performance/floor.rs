//! The floor: a tonic server in a process of its own, which answers every call with bytes that were encoded beforehand
//! and touches no storage. What it costs is gRPC itself.
//!
//! Allocator, HTTP/2 windows and limits are those of `src/server/connections.rs`.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tonic::{
    Request, Response, Status,
    transport::{Identity, ServerTlsConfig},
};

use crate::{
    harness::process::{Process, free_port},
    tls::Tls,
    wire::{self, Wire},
};

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/featurestore.floor.FloorService.rs"));
}

const PATH: &str = "/featurestore.floor.FloorService/GetFeatures";
/// Answers that it holds: as many as tell one call's memory from the next one's.
const ANSWERS_BYTES: usize = 16 << 20;

/// A running floor.
pub(crate) struct Floor {
    process: Process,
    port: u16,
}

impl Floor {
    /// Starts one that gives these answers in turn.
    pub(crate) async fn start(answers: &[Bytes], folder: &Path) -> Result<Self, String> {
        Self::start_over(answers, folder, None).await
    }

    /// The same over TLS.
    pub(crate) async fn start_over(answers: &[Bytes], folder: &Path, tls: Option<&Tls>) -> Result<Self, String> {
        let port = free_port();
        let (file, log) = (folder.join(format!("floor-{port}")), folder.join(format!("floor-{port}.log")));
        let (mut bytes, mut held) = (Vec::new(), 0);
        for answer in answers.iter().take_while(|answer| {
            held += answer.len();
            held == answer.len() || held <= ANSWERS_BYTES
        }) {
            bytes.extend_from_slice(&(answer.len() as u64).to_le_bytes());
            bytes.extend_from_slice(answer);
        }
        std::fs::write(&file, bytes).map_err(|e| format!("cannot write the floor's answers: {e}"))?;
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut args = vec!["floor".to_owned(), port.to_string(), file.display().to_string()];
        args.extend(tls.iter().flat_map(|tls| [&tls.cert, &tls.key]).map(|file| file.display().to_string()));
        let process = Process::start(this, args, &log);
        wire::until_listening(port, || process.is_running(), &log).await?;
        Ok(Self { process, port })
    }

    /// The same load as `ours` has, for this server.
    pub(crate) async fn under_the_load_of(&self, ours: &Wire) -> Result<Wire, String> {
        ours.redirected(self.port, PATH, self.process.pid()).await
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn path() -> &'static str {
        PATH
    }
}

struct Answers {
    answers: Vec<Bytes>,
    next: AtomicUsize,
}

#[tonic::async_trait]
impl generated::floor_service_server::FloorService for Answers {
    async fn get_features(&self, _: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let next = self.next.fetch_add(1, Relaxed);
        Ok(Response::new(self.answers[next % self.answers.len()].clone()))
    }
}

/// The process: serves until it is killed.
pub(crate) async fn serve(port: u16, file: &Path, tls: &[PathBuf]) -> Result<(), String> {
    let mut bytes = Bytes::from(std::fs::read(file).map_err(|e| e.to_string())?);
    let mut answers = Vec::new();
    while let Some(length) = bytes.first_chunk().copied().map(u64::from_le_bytes) {
        let _ = bytes.split_to(8);
        answers.push(bytes.split_to(length as usize));
    }
    let answers = Answers { answers, next: AtomicUsize::new(0) };
    let service = generated::floor_service_server::FloorServiceServer::new(answers)
        .max_encoding_message_size(64 << 20)
        .max_decoding_message_size(64 << 20);
    let mut server = tonic::transport::Server::builder();
    if let [cert, key] = tls {
        let read = |file: &PathBuf| std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()));
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(read(cert)?, read(key)?));
        server = server.tls_config(tls).map_err(|e| e.to_string())?;
    }
    server
        .tcp_nodelay(true)
        .max_concurrent_streams(256)
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(service)
        .serve(([127, 0, 0, 1], port).into())
        .await
        .map_err(|e| e.to_string())
}
