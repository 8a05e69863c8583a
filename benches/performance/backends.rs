//! Redis and MongoDB of our own, as the tests start them; None where a machine lacks one.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mongodb::{Client, bson::doc, options::ClientOptions};

use crate::{
    harness::process::{Process, free_port},
    wire,
};

/// A running redis-server, which persists nothing.
pub(crate) struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// With more options, as redis-server takes them.
    pub(crate) async fn start(folder: &Path, options: &[&str]) -> Result<Option<Self>, String> {
        let Some(program) = in_path("redis-server") else { return Ok(None) };
        let port = free_port();
        let log = folder.join(format!("redis-{port}.log"));
        let (port_text, dir) = (port.to_string(), folder.display().to_string());
        let mut args = vec!["--port", &port_text, "--bind", "127.0.0.1", "--dir", &dir, "--save", ""];
        args.extend(["--appendonly", "no"]);
        args.extend(options);
        let process = Process::start(program, args, &log);
        wire::until_listening(port, || process.is_running(), &log).await?;
        Ok(Some(Self { process, port }))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// A running mongod: a replica set of one node.
pub(crate) struct Mongod {
    _process: Process,
    port: u16,
}

impl Mongod {
    pub(crate) async fn start(folder: &Path) -> Result<Option<Self>, String> {
        let given = env::var_os("MONGOD_BIN").filter(|given| !given.is_empty()).map(PathBuf::from);
        let Some(program) = given.or_else(|| in_path("mongod")) else { return Ok(None) };
        let port = free_port();
        let (log, data) = (folder.join(format!("mongod-{port}.log")), folder.join(format!("mongod-{port}")));
        std::fs::create_dir_all(&data).map_err(|e| e.to_string())?;
        let (port_text, data) = (port.to_string(), data.display().to_string());
        let mut args = vec!["--port", &port_text, "--bind_ip", "127.0.0.1", "--dbpath", &data, "--replSet", "rs0"];
        args.extend(["--wiredTigerCacheSizeGB", "0.25", "--unixSocketPrefix", &data]);
        let process = Process::start(program, args, &log);
        wire::until_listening(port, || process.is_running(), &log).await?;
        let mongod = Self { _process: process, port };
        mongod.initiate().await?;
        Ok(Some(mongod))
    }

    async fn initiate(&self) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let address = format!("127.0.0.1:{}", self.port);
        let options = ClientOptions::parse(format!("mongodb://{address}/?directConnection=true")).await;
        let admin = Client::with_options(options.map_err(text)?).map_err(text)?.database("admin");
        let config = doc! { "_id": "rs0", "members": [{ "_id": 0, "host": address }] };
        admin.run_command(doc! { "replSetInitiate": config }).await.map_err(text)?;
        let start = Instant::now();
        loop {
            let hello = admin.run_command(doc! { "hello": 1 }).await;
            if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("mongod did not become primary within {PATIENCE:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?replicaSet=rs0", self.port)
    }

    /// The bare driver, with as many connections as our server has by default.
    pub(crate) async fn driver(&self) -> Result<Client, String> {
        let mut options = ClientOptions::parse(self.uri()).await.map_err(text)?;
        options.max_pool_size = Some(64);
        options.max_connecting = Some(8);
        options.retry_writes = Some(false);
        Client::with_options(options).map_err(text)
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
