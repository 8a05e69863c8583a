//! A real Redis master with a replica, and three sentinels that watch them.

use std::time::Duration;

use super::{
    process::{Process, free_port, temp_dir, wait_until},
    redis::RedisServer,
};

/// Long enough for an election on a busy machine.
const SETTLING: Duration = Duration::from_secs(30);
/// How the sentinels call the master.
const NAME: &str = "main";

pub struct Sentinels {
    /// The first one is the master at first.
    pub servers: Vec<RedisServer>,
    ports: Vec<u16>,
    processes: Vec<Process>,
    _folder: tempfile::TempDir,
}

impl Sentinels {
    /// A master and a replica that is up to date, and sentinels that know both and each other.
    pub fn start() -> Self {
        let quick = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let master = RedisServer::start_with(&quick);
        let of = format!("127.0.0.1 {}", master.port());
        let replica = RedisServer::start_with(&[&quick[..], &["--replicaof", &of]].concat());
        wait_until("the replica to follow", SETTLING, || master.has_replicas(1));
        let folder = temp_dir();
        let (mut ports, mut processes) = (Vec::new(), Vec::new());
        for at in 0..3 {
            let port = free_port();
            let file = folder.path().join(format!("sentinel-{at}.conf"));
            let settings = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {NAME} {of} 2\n\
                 sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 3000\n",
                folder.path().display()
            );
            std::fs::write(&file, settings).unwrap();
            let args = [file.to_str().unwrap(), "--sentinel"];
            processes.push(Process::start(
                super::redis::program(),
                args,
                &folder.path().join(format!("sentinel-{at}.log")),
            ));
            ports.push(port);
        }
        let sentinels = Self { servers: vec![master, replica], ports, processes, _folder: folder };
        wait_until("the sentinels to know all", SETTLING, || {
            sentinels.ports.iter().all(|port| {
                let about = super::redis::try_cli(*port, &["SENTINEL", "MASTER", NAME]).unwrap_or_default();
                let words: Vec<&str> = about.lines().collect();
                let says = |name, value| words.windows(2).any(|pair| pair == [name, value]);
                says("num-slaves", "1") && says("num-other-sentinels", "2") && says("flags", "master")
            })
        });
        sentinels
    }

    pub fn url(&self) -> String {
        let list: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis-sentinel://{}/{NAME}", list.join(","))
    }

    /// Stops some of the sentinels: they stay connected and answer nothing.
    pub fn freeze(&self, sentinels: std::ops::Range<usize>) {
        self.processes[sentinels].iter().for_each(|sentinel| sentinel.signal("STOP"));
    }

    pub fn thaw(&self, sentinels: std::ops::Range<usize>) {
        self.processes[sentinels].iter().for_each(|sentinel| sentinel.signal("CONT"));
    }

    /// Asks for a failover, as an operator would, and waits until the other server is the master.
    pub fn fail_over(&self, to: usize) {
        super::redis::try_cli(self.ports[0], &["SENTINEL", "FAILOVER", NAME]).unwrap();
        self.until_promoted(to);
    }

    /// Waits until a server is the master by every sentinel's word.
    pub fn until_promoted(&self, at: usize) {
        let port = self.servers[at].port().to_string();
        wait_until("the sentinels to name the new master", SETTLING, || {
            self.ports.iter().all(|sentinel| {
                let told = super::redis::try_cli(*sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
                told.is_some_and(|told| told.lines().last() == Some(port.as_str()))
            })
        });
    }
}
