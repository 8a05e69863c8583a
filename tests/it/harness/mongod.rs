//! A real mongod: from `MONGOD_BIN`, else from PATH. One-node replica sets and standalone servers.
//!
//! Tests that need only a database of their own share one server of each sort; those that stop or kill it start one.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mongodb::{
    Client,
    bson::{Document, doc},
    options::{ClientOptions, Credential, TlsOptions},
};
use tempfile::TempDir;

use super::process::{Process, free_port, wait_until};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The name of every replica set here.
pub(super) const SET: &str = "rs0";

pub struct Mongod {
    process: Process,
    port: u16,
    replica_set: bool,
    dir: TempDir,
    access: Access,
}

/// What a server asks of its clients.
#[derive(Clone, Default)]
pub struct Access {
    /// More options, as `mongod` takes them.
    pub options: Vec<String>,
    /// The file of who signed its certificate; None: no TLS.
    pub ca_file: Option<PathBuf>,
    /// A user that may do everything.
    pub login: Option<(&'static str, &'static str)>,
}

impl Mongod {
    /// A replica set of one node that asks something of its clients. With a login that user is made.
    pub fn replica_set_with(access: Access) -> Self {
        let (dir, port) = (data_dir(), free_port());
        let login = access.login;
        let process = spawn(port, true, &dir, &access.options);
        let mut mongod = Self { process, port, replica_set: true, dir, access: Access { login: None, ..access } };
        mongod.initiate();
        if let Some((user, password)) = login {
            // The first user may be made by anybody on this machine.
            mongod.block_on(|admin| async move {
                let user = doc! { "createUser": user, "pwd": password, "roles": ["root"] };
                admin.run_command(user).await.unwrap();
            });
            mongod.access.login = login;
        }
        mongod
    }

    /// A replica set of one node, which is its primary.
    pub fn replica_set() -> Self {
        let mongod = Self::start(true);
        mongod.initiate();
        mongod
    }

    /// A member of a replica set that nobody has initiated.
    pub fn not_initiated() -> Self {
        Self::start(true)
    }

    fn initiate(&self) {
        let member = format!("127.0.0.1:{}", self.port);
        self.block_on(|admin| async move {
            let config = doc! { "_id": SET, "members": [{ "_id": 0, "host": member }] };
            admin.run_command(doc! { "replSetInitiate": config }).await.unwrap();
        });
        self.wait_until_writable();
    }

    /// A server without a replica set.
    pub fn standalone() -> Self {
        let mongod = Self::start(false);
        mongod.wait_until_writable();
        mongod
    }

    /// The replica set that tests share; use a database of your own (`database_name`).
    pub fn shared_replica_set() -> &'static Self {
        static SHARED: OnceLock<Mongod> = OnceLock::new();
        SHARED.get_or_init(|| on_a_thread(Self::replica_set))
    }

    /// The standalone server that tests share; use a database of your own (`database_name`).
    pub fn shared_standalone() -> &'static Self {
        static SHARED: OnceLock<Mongod> = OnceLock::new();
        SHARED.get_or_init(|| on_a_thread(Self::standalone))
    }

    /// A name that no other test uses.
    pub fn database_name() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A new database whose epoch has stood for long, as that of a deployment does, and whose changes were followed: a
    /// server that starts over it trusts L1 without waiting for others to notice.
    pub fn settled_database(&self) -> String {
        let epoch: u64 = rand::random();
        let name = Self::database_name();
        let in_it = name.clone();
        let epoch = format!("{epoch:016x}");
        self.block_on(|admin| async move {
            let since = bson::DateTime::from_millis(1_000_000_000_000);
            let meta = doc! { "_id": "epoch", "epoch": epoch, "dirty": false, "since": since };
            let database = admin.client().database(&in_it);
            database.collection("meta").insert_one(meta).await.unwrap();
            if self.replica_set {
                let changes = database.collection::<Document>("features").watch().await.unwrap();
                let position = bson::serialize_to_bson(&changes.resume_token().unwrap()).unwrap();
                let long_ago = bson::DateTime::from_millis(0);
                let lease = doc! { "_id": "repairer", "holder": "", "until": long_ago, "position": position };
                database.collection("meta").insert_one(lease).await.unwrap();
            }
        });
        name
    }

    pub fn uri(&self) -> String {
        let set = if self.replica_set { format!("?replicaSet={SET}") } else { String::new() };
        format!("mongodb://127.0.0.1:{}/{set}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills it, as `kill -9` would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on its port and files.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.port, self.replica_set, &self.dir, &self.access.options);
        self.wait_until_writable();
    }

    /// Starts a killed one on its port and files, and waits until it listens; a member of a larger set may be anything then.
    pub fn start_again(&mut self) {
        self.process.kill();
        self.process = spawn(self.port, self.replica_set, &self.dir, &self.access.options);
        self.wait_until_listening();
    }

    /// What it says of itself; None: it does not answer.
    pub(super) fn hello(&self) -> Option<Document> {
        if !self.process.is_running() {
            return None;
        }
        let mut options = self.options();
        let patience = Duration::from_secs(1);
        options.server_selection_timeout = Some(patience);
        options.connect_timeout = Some(patience);
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let hello = runtime.block_on(async {
                let client = Client::with_options(options).unwrap();
                let asked = tokio::spawn(async move {
                    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await;
                    client.shutdown().immediate(true).await;
                    hello.ok()
                });
                tokio::time::timeout(2 * patience, asked).await.ok()?.ok()?
            });
            runtime.shutdown_background();
            hello
        })
    }

    /// A database as people see it, on a client of the caller's runtime.
    pub async fn database(&self, name: &str) -> mongodb::Database {
        Client::with_options(self.options()).unwrap().database(name)
    }

    pub(super) fn start(replica_set: bool) -> Self {
        let (dir, port) = (data_dir(), free_port());
        let access = Access::default();
        Self { process: spawn(port, replica_set, &dir, &access.options), port, replica_set, dir, access }
    }

    fn wait_until_writable(&self) {
        self.block_on(|admin| async move {
            let start = Instant::now();
            loop {
                let hello: Result<Document, _> = admin.run_command(doc! { "hello": 1 }).await;
                if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
                    return;
                }
                assert!(start.elapsed() < START_TIMEOUT, "mongod did not become primary");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    pub(super) fn wait_until_listening(&self) {
        let log = self.dir.path().join("log");
        wait_until("mongod to listen", START_TIMEOUT, || {
            assert!(self.process.is_running(), "mongod ended: {}", std::fs::read_to_string(&log).unwrap_or_default());
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Runs something against the node itself, on a runtime of its own: the caller may be inside another.
    pub(super) fn block_on<F: Future<Output = ()> + Send>(&self, work: impl FnOnce(mongodb::Database) -> F + Send) {
        let options = self.options();
        self.wait_until_listening();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = Client::with_options(options).unwrap();
                    work(client.database("admin")).await;
                    client.shutdown().immediate(true).await;
                });
            });
            thread.join().unwrap();
        });
    }

    fn options(&self) -> ClientOptions {
        let mut options = ClientOptions::builder()
            .hosts(vec![mongodb::options::ServerAddress::Tcp { host: "127.0.0.1".to_owned(), port: Some(self.port) }])
            .direct_connection(true)
            .build();
        let tls = |ca_file: &PathBuf| TlsOptions::builder().ca_file_path(ca_file.clone()).build().into();
        options.tls = self.access.ca_file.as_ref().map(tls);
        options.credential = self.access.login.map(|(user, password)| {
            Credential::builder().username(user.to_owned()).password(password.to_owned()).build()
        });
        options
    }
}

fn spawn(port: u16, replica_set: bool, dir: &TempDir, more: &[String]) -> Process {
    let port = port.to_string();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let data = data.to_str().unwrap();
    let mut args = vec!["--port", &port, "--bind_ip", "127.0.0.1", "--dbpath", data];
    args.extend(["--wiredTigerCacheSizeGB", "0.25", "--setParameter", "ttlMonitorSleepSecs=1"]);
    args.extend(["--setParameter", "enableTestCommands=1"]); // fail points
    args.extend(["--journalCommitInterval", "5"]); // linearizable reads of a one-node set wait for it, 100 ms by default
    args.extend(["--unixSocketPrefix", dir.path().to_str().unwrap()]);
    if replica_set {
        args.extend(["--replSet", SET, "--oplogSize", "50"]);
    }
    args.extend(more.iter().map(String::as_str));
    Process::start(binary(), args, &dir.path().join("log"))
}

/// A temporary folder. The shared servers' are not dropped when the tests end, so each start removes those whose tests
/// are gone: the name holds the process id.
fn data_dir() -> TempDir {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in root.read_dir().unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("mongod-")?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path()); // another test binary may be doing the same
        }
    }
    tempfile::Builder::new().prefix(&format!("mongod-{}-", std::process::id())).tempdir_in(root).unwrap()
}

fn binary() -> PathBuf {
    if let Some(given) = env::var_os("MONGOD_BIN") {
        let given = PathBuf::from(given);
        assert!(given.is_file(), "MONGOD_BIN names {}, which is not a file", given.display());
        return given;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join("mongod")).find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("these tests need a mongod: put one on PATH, or name it in MONGOD_BIN (the test script fetches one)")
    })
}

/// A starter may be inside a runtime, where blocking waits are not allowed to nest.
fn on_a_thread<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(start).join().unwrap())
}
