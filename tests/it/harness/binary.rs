//! The real binary, as a user starts it: a process of its own with nothing of ours in its environment.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    client::Client,
    process::{Process, free_port, temp_dir},
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_featurestore");
pub const SERVICE: &str = "featurestore.v1.FeatureStoreService";
/// Ten times what a start may take.
pub const START: Duration = Duration::from_secs(10);

pub struct Binary {
    process: Process,
    pub port: u16,
    pub admin_port: u16,
    folder: TempDir,
    /// The command line.
    words: Vec<String>,
}

impl Binary {
    /// Serves on free ports, from a folder that is gone with it unless a setting names another.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_under(&[], settings)
    }

    /// The same, as the last arguments of a command that becomes the program.
    pub fn start_under(command: &[&str], settings: &[(&str, &str)]) -> Self {
        let (port, admin_port, folder) = (free_port(), free_port(), temp_dir());
        let mut environment = vec![
            ("FEATURESTORE_LISTEN", format!("127.0.0.1:{port}")),
            ("FEATURESTORE_ADMIN_LISTEN", format!("127.0.0.1:{admin_port}")),
            ("FEATURESTORE_DATA_DIR", folder.path().join("data").display().to_string()),
            ("FEATURESTORE_DRAIN_DELAY", "0s".to_owned()),
            ("FEATURESTORE_L1_TIMEOUT", "500ms".to_owned()),
            ("FEATURESTORE_L1_SLOW", "10s".to_owned()),
        ];
        environment.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        // The last one of a name wins.
        let environment = environment.iter().map(|(name, value)| format!("{name}={value}"));
        let program = ["env".to_owned(), "-i".to_owned()].into_iter().chain(environment);
        let program = program.chain([PROGRAM.to_owned(), "serve".to_owned()]);
        let words: Vec<String> = command.iter().map(|word| (*word).to_owned()).chain(program).collect();
        let process = Process::start(&words[0], &words[1..], &folder.path().join("log"));
        Self { process, port, admin_port, folder, words }
    }

    /// Starts one that has ended again: the same settings, ports and folder.
    pub fn start_again(&mut self) {
        assert!(!self.process.is_running(), "it runs");
        self.process = Process::start(&self.words[0], &self.words[1..], &self.folder.path().join("log"));
    }

    /// Starts one that has ended again with other settings beside those that it had.
    pub fn start_again_with(&mut self, settings: &[(&str, &str)]) {
        let program = self.words.iter().position(|word| word == PROGRAM).unwrap();
        // The last one of a name wins.
        let settings = settings.iter().map(|(name, value)| format!("{name}={value}"));
        self.words.splice(program..program, settings);
        self.start_again();
    }

    /// Waits until it is ready, and says how long that took.
    pub async fn until_serving(&self) -> Duration {
        let start = Instant::now();
        while self.health(SERVICE).await != Some(ServingStatus::Serving) {
            assert!(self.process.is_running(), "it ended: {}", self.log());
            assert!(start.elapsed() < START, "not serving after {START:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        start.elapsed()
    }

    /// What its health service says; None: it cannot be reached.
    pub async fn health(&self, service: &str) -> Option<ServingStatus> {
        Self::health_at(self.port, service).await
    }

    /// The same of the one on the admin port.
    pub async fn admin_health(&self, service: &str) -> Option<ServingStatus> {
        Self::health_at(self.admin_port, service).await
    }

    async fn health_at(port: u16, service: &str) -> Option<ServingStatus> {
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.ok()?;
        let mut client = HealthClient::new(channel);
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.ok()?;
        Some(answer.into_inner().status())
    }

    /// What it tells Prometheus.
    pub async fn metrics(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin_port)).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.url()).await.unwrap()
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills it at once, as `kill -9` would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Bytes of memory that it has now.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Waits for its end, and gives its exit code: 128 and the signal's number if that ended it.
    pub fn exit_code(&mut self, bound: Duration) -> i32 {
        self.process.exit_code(bound)
    }

    /// What it wrote to standard output and standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its folder, unless a setting named another.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// Runs a subcommand that ends by itself.
pub fn run(args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().envs(settings.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}
