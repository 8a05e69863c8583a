//! Our server, in a process of its own, over whatever tiers a row asks for.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    bulk,
    data::{Chunks, Set},
    harness::process::{Process, free_port},
    pb,
    tls::Tls,
    wire::{self, Wire},
};

/// The health name that says that calls are served.
const SERVICE: &str = "featurestore.v1.FeatureStoreService";
const SERVING_WITHIN: Duration = Duration::from_secs(60);
/// Records of a measured chunk.
pub(crate) const CHUNK: u64 = 1000;

pub(crate) type Client = pb::feature_store_service_client::FeatureStoreServiceClient<Channel>;

/// Names and values of its environment.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// A running server.
pub(crate) struct Server {
    process: Process,
    port: u16,
    admin: u16,
    data: PathBuf,
    log: PathBuf,
    settings: Settings,
    tls: Option<Tls>,
    /// How long it took from its start until it said SERVING.
    pub(crate) start: Duration,
    channel: Channel,
}

impl Server {
    /// Starts one whose embedded store, if it has one, is in `data`, and waits until it serves.
    pub(crate) async fn start(data: &Path, settings: Settings) -> Result<Self, String> {
        Self::start_over(data, settings, None).await
    }

    /// The same over TLS, which the settings ask for.
    pub(crate) async fn start_over(data: &Path, settings: Settings, tls: Option<Tls>) -> Result<Self, String> {
        let (port, admin) = (free_port(), free_port());
        let log = data.with_extension(format!("log-{port}"));
        let mut command = vec![
            // What the developer has set for a server of their own is no business of the bench.
            "-i".to_owned(),
            format!("FEATURESTORE_LISTEN=127.0.0.1:{port}"),
            format!("FEATURESTORE_ADMIN_LISTEN=127.0.0.1:{admin}"),
            format!("FEATURESTORE_DATA_DIR={}", data.display()),
        ];
        command.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
        command.push(env!("CARGO_BIN_EXE_featurestore").to_owned());
        let started = Instant::now();
        let process = Process::start("env", command, &log);
        wire::until_listening(port, || process.is_running(), &log).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{port}")).map_err(text)?;
        if let Some(tls) = &tls {
            let cert = Certificate::from_pem(std::fs::read(&tls.cert).map_err(text)?);
            let config = ClientTlsConfig::new().ca_certificate(cert).domain_name("localhost");
            endpoint = endpoint.tls_config(config).map_err(text)?;
        }
        let endpoint = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
        let channel = endpoint.connect().await.map_err(text)?;
        let mut health = HealthClient::new(channel.clone());
        loop {
            let answer = health.check(HealthCheckRequest { service: SERVICE.to_owned() }).await;
            if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
                break;
            }
            if started.elapsed() > SERVING_WITHIN {
                return Err(format!("it did not serve within {SERVING_WITHIN:?}: {}", tail(&log)));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self { process, port, admin, data: data.to_owned(), log, settings, tls, start: started.elapsed(), channel })
    }

    /// Ends it as `kill -9` would, and starts it again over the same data.
    pub(crate) async fn crash_and_restart(self) -> Result<Self, String> {
        let Self { process, data, settings, tls, .. } = self;
        drop(process);
        Self::start_over(&data, settings, tls).await
    }

    /// Ends it as `kill -9` would; its data stays.
    pub(crate) fn crash(self) -> PathBuf {
        self.data
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Of its metrics.
    pub(crate) fn admin_port(&self) -> u16 {
        self.admin
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        tail(&self.log)
    }

    /// Decoded calls.
    pub(crate) fn client(&self) -> Client {
        let client = Client::new(self.channel.clone());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    /// Raw calls, a request after the other.
    pub(crate) fn raw(&self) -> tonic::client::Grpc<Channel> {
        let client = tonic::client::Grpc::new(self.channel.clone());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    /// Measured calls of a method.
    pub(crate) async fn wire(&self, method: &str, connections: u32, requests: &[Bytes]) -> Result<Wire, String> {
        let path = format!("/{SERVICE}/{method}");
        Wire::connect((self.port, &path, self.pid()), connections as usize, requests, self.tls.clone()).await
    }

    /// What it says of itself.
    pub(crate) async fn info(&self) -> Result<pb::InfoResponse, String> {
        let info = self.client().info(pb::InfoRequest {}).await;
        info.map(tonic::Response::into_inner).map_err(|status| status.to_string())
    }

    /// Writes records of a set.
    pub(crate) async fn load(&self, set: &Set, numbers: std::ops::Range<u64>, warm: bool) -> Result<(), String> {
        let chunks = Chunks::of(set);
        let chunks = if warm { chunks.warm() } else { chunks };
        let at_once = set.chunk();
        let chunks = numbers.clone().step_by(at_once as usize).map(move |first| {
            let count = at_once.min(numbers.end - first);
            // As records come in life, in no useful order: a stride that is prime to the count visits every key once.
            let (start, all) = (numbers.start, numbers.end - numbers.start);
            chunks.chunk((first..first + count).map(move |i| start + (i - start) * 611_953 % all))
        });
        bulk::load(self.raw(), chunks).await.map_err(|error| format!("{error} {}", self.last_words()))?;
        Ok(())
    }

    /// Asks until a tier answers all of these entities: L1 of a new database is trusted after some seconds only, and
    /// what is read enters L1 on the way.
    pub(crate) async fn until_answered_by(&self, source: pb::Source, set: &Set) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let (start, mut client) = (Instant::now(), self.client());
        for first in (0..set.entities).step_by(500) {
            let entity_ids = (first..set.entities.min(first + 500)).map(crate::data::entity_id).collect();
            let request =
                pb::GetFeaturesRequest { feature_view: set.view.to_owned(), entity_ids, ..Default::default() };
            loop {
                let answer = client.get_features(request.clone()).await.map_err(|status| status.to_string())?;
                let answer = answer.into_inner();
                let found = answer.rows.iter().all(|row| row.status() == pb::RowStatus::Found);
                if found && answer.rows.iter().all(|row| row.source() == source) {
                    break;
                }
                if start.elapsed() > PATIENCE {
                    let row = answer.rows.iter().find(|row| row.source() != source).unwrap_or(&answer.rows[0]);
                    let (status, from) = (row.status().as_str_name(), row.source().as_str_name());
                    return Err(format!("{} was {status} from {from}, not {}", row.entity_id, source.as_str_name()));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
