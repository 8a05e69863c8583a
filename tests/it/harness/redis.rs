//! A real redis-server, or what `TEST_REDIS_SERVER` names in its place: `test.sh` runs the suites of L1 a second time over
//! Valkey.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::process::{Process, free_port, temp_dir, wait_until};

/// Long enough for a start on a busy machine.
const START: Duration = Duration::from_secs(20);

/// One redis-server on a free port, in a folder of its own; ended when dropped.
pub struct RedisServer {
    port: u16,
    folder: TempDir,
    options: Vec<String>,
    process: Option<Process>,
}

impl RedisServer {
    /// An empty one that persists nothing.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more options, as `redis-server` takes them; the last one of a name wins.
    pub fn start_with(options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { port: free_port(), folder: temp_dir(), options, process: None };
        server.start_again();
        server
    }

    /// Starts a stopped one on the same port and in the same folder, and waits until it answers.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let port = self.port.to_string();
        let folder = self.folder.path().to_str().unwrap();
        let mut args =
            vec!["--port", &port, "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"];
        args.extend(self.options.iter().map(String::as_str));
        self.process = Some(Process::start(program(), args, &self.log()));
        let ready = || {
            let alive = self.process.as_ref().is_some_and(Process::is_running);
            assert!(alive, "redis-server ended: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
            self.try_cli(&["PING"]).as_deref() == Some("PONG")
        };
        wait_until("redis-server to answer", START, ready);
    }

    /// Kills it at once; nothing is saved.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it and starts it again on the same port: empty, unless it persists.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Stops it in mid-air: it takes connections and answers nothing.
    pub fn freeze(&self) {
        self.process().signal("STOP");
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) {
        self.process().signal("CONT");
    }

    /// Where it is, as a URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it is, as host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether this many replicas follow it and are up to date.
    pub fn has_replicas(&self, count: usize) -> bool {
        self.cli(&["INFO", "replication"]).matches("state=online").count() >= count
    }

    /// Waits until its run is so old.
    pub fn until_up_for_seconds(&self, seconds: u64) {
        let uptime = || {
            let info = self.cli(&["INFO", "server"]);
            let line = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
            line.and_then(|line| line.trim().parse::<u64>().ok())
        };
        wait_until("a server to have been up for a while", START, || uptime() >= Some(seconds));
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs a command and gives what `redis-cli` prints of the reply.
    pub fn cli(&self, command: &[&str]) -> String {
        self.try_cli(command).unwrap_or_else(|| panic!("redis-cli {command:?} failed"))
    }

    /// How often it ran a command, by its own count: `calls("mget")`.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    pub fn try_cli(&self, command: &[&str]) -> Option<String> {
        try_cli(self.port, command)
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("redis.log")
    }
}

/// The server to start.
pub fn program() -> String {
    std::env::var("TEST_REDIS_SERVER").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| "redis-server".to_owned())
}

/// Runs a command at a port of this machine; None: `redis-cli` failed.
pub fn try_cli(port: u16, command: &[&str]) -> Option<String> {
    let cli = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--raw"])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .expect("redis-cli is in PATH");
    cli.status.success().then(|| String::from_utf8_lossy(&cli.stdout).trim_end().to_owned())
}
