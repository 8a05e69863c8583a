//! The real server, in this process, on a free port, over any pair of tiers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use featurestore::{
    app::App,
    config::{Config, Flags},
    record::Clock,
    server,
    tiered::{Tiered, trust::L1Use},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{client::Client, mongod::Mongod, process::temp_dir, redis::RedisServer};

/// Long enough for anything that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub address: SocketAddr,
    pub tiered: Arc<Tiered>,
    admin: SocketAddr,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<std::io::Result<()>>>,
    /// Of the embedded store.
    _folder: Option<TempDir>,
}

impl Server {
    /// Starts with these settings, by the names that the environment has for them, and waits until L1 is trusted.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let server = Self::start_at_once(settings).await;
        eventually("L1 to be trusted", async || matches!(server.tiered.trust().l1(), L1Use::Trusted(_))).await;
        server
    }

    /// The same without waiting.
    pub async fn start_at_once(settings: &[(&str, &str)]) -> Self {
        Self::start_with_clock(settings, Clock::system()).await
    }

    /// The same on a machine whose clock reads this.
    pub async fn start_with_clock(settings: &[(&str, &str)], clock: Clock) -> Self {
        let folder = settings.iter().all(|(name, _)| *name != "FEATURESTORE_DATA_DIR").then(temp_dir);
        let mut environment: Vec<(String, String)> = vec![
            ("FEATURESTORE_DRAIN_DELAY".to_owned(), "0s".to_owned()),
            // A busy test machine is not a lost Redis, nor a slow one.
            ("FEATURESTORE_L1_TIMEOUT".to_owned(), "500ms".to_owned()),
            ("FEATURESTORE_L1_SLOW".to_owned(), "10s".to_owned()),
        ];
        if let Some(folder) = &folder {
            environment.push(("FEATURESTORE_DATA_DIR".to_owned(), folder.path().display().to_string()));
        }
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let (config, _) = Config::load(&Flags::default(), environment).unwrap();
        let app = App::with_clock(&config, clock).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = admin_listener.local_addr().unwrap();
        let (address, tiered, shutdown) =
            (listener.local_addr().unwrap(), app.tiered.clone(), CancellationToken::new());
        let serving = tokio::spawn(server::run(app, listener, Some(admin_listener), shutdown.clone()));
        Self { address, tiered, admin, shutdown, serving: Some(serving), _folder: folder }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.url()).await.unwrap().max_decoding_message_size(64 << 20)
    }

    /// What it tells Prometheus.
    pub async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// One of its metrics, by its name and labels as `/metrics` has them.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Asks for the drain; does not wait.
    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Drains and stops.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        self.serving.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

/// A pair of tiers, with the real engines behind it.
pub struct Pair {
    pub redis: Option<RedisServer>,
    pub mongod: Option<&'static Mongod>,
    settings: Vec<(&'static str, String)>,
}

impl Pair {
    pub fn new(redis: bool, mongodb: bool) -> Self {
        let redis = redis.then(RedisServer::start);
        let mongod = mongodb.then(Mongod::shared_replica_set);
        let mut settings = Vec::new();
        if let Some(redis) = &redis {
            settings.push(("REDIS_URL", redis.url()));
        }
        if let Some(mongod) = mongod {
            settings.push(("MONGO_URI", mongod.uri()));
            settings.push(("MONGO_DB", mongod.settled_database()));
        }
        Self { redis, mongod, settings }
    }

    /// All four.
    pub fn all() -> impl Iterator<Item = Self> {
        [(false, false), (true, false), (false, true), (true, true)].into_iter().map(|(r, m)| Self::new(r, m))
    }

    /// Redis over MongoDB.
    pub fn real() -> Self {
        Self::new(true, true)
    }

    /// In process over embedded.
    pub fn embedded() -> Self {
        Self::new(false, false)
    }

    pub fn name(&self) -> String {
        let l1 = if self.redis.is_some() { "redis" } else { "memory" };
        let l2 = if self.mongod.is_some() { "mongodb" } else { "embedded" };
        format!("{l1} over {l2}")
    }

    /// The name of the MongoDB database.
    pub fn database(&self) -> &str {
        self.settings.iter().find(|(name, _)| *name == "MONGO_DB").map(|(_, name)| name.as_str()).unwrap()
    }

    /// What a server over it needs to be told.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// Its Redis.
    pub fn redis(&mut self) -> &mut RedisServer {
        self.redis.as_mut().unwrap()
    }

    /// Takes a record of the default view out of Redis, as `redis-cli DEL` would; nothing where L1 is in the process.
    pub fn evict(&self, entity_id: &str) {
        let Some(redis) = &self.redis else { return };
        for key in redis.cli(&["KEYS", &format!("*:default:{entity_id}")]).lines() {
            redis.cli(&["DEL", key]);
        }
    }

    /// Starts a server over it.
    pub async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    /// The same with more settings.
    pub async fn serve_with(&self, more: &[(&str, &str)]) -> Server {
        Server::start(&[&self.settings()[..], more].concat()).await
    }
}

/// Polls until `ready` says so; panics with `what` after a while.
pub async fn eventually(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let start = tokio::time::Instant::now();
    while !ready().await {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
