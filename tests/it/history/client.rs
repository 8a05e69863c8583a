//! One client of the storm: it calls, by its seed, whatever the API offers, on few keys, and writes down what it is
//! answered. A write of which it was not told what became of it is mostly sent again with its request id.

mod calls;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::transport::Endpoint;

use super::event::{Call, Event, Kind, Nanos};
use crate::harness::client::{Bearer, Caller, caller};

/// What all clients of a run share.
pub struct Shared {
    pub start: Instant,
    pub stop: AtomicBool,
    /// Nobody begins a call.
    pub hold: AtomicBool,
    /// Numbers the writes.
    pub writes: AtomicU64,
    /// How many calls have ended, and how many of them failed.
    pub ended: AtomicU64,
    pub failed: AtomicU64,
    /// How many clients dropped before they were answered.
    pub dropped: AtomicU64,
    /// Where the servers are, and what they are shown.
    pub servers: Vec<Endpoint>,
    pub bearer: Bearer,
}

impl Shared {
    pub fn new(servers: Vec<Endpoint>, bearer: Bearer) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            hold: AtomicBool::new(false),
            writes: AtomicU64::new(1),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            servers,
            bearer,
        })
    }

    pub fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

/// What a client does.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Keys that all clients write; each has one more of its own, which all read.
    pub shared_keys: u16,
    pub clients: u16,
    /// Between two calls, in milliseconds.
    pub pause: Range<u64>,
    /// Before a write is sent again, in milliseconds.
    pub retry_pause: Range<u64>,
    /// Of 100 calls, how many are dropped at a random moment.
    pub cancels: u32,
    /// How long it waits for an answer.
    pub patience: Duration,
    /// Reads and upserts only, of which none is dropped.
    pub plain: bool,
    /// Calls server `client % servers` alone, else any.
    pub faithful: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            shared_keys: 6,
            clients: 14,
            pause: 0..6,
            retry_pause: 50..250,
            cancels: 4,
            patience: Duration::from_secs(4),
            plain: false,
            faithful: false,
        }
    }
}

impl Habits {
    pub fn keys(&self) -> u16 {
        self.shared_keys + self.clients
    }
}

/// The entity id of a key.
pub fn entity_id(key: u16) -> String {
    format!("key{key}")
}

/// One call as a whole.
#[derive(Clone, Debug)]
pub struct CallRecord {
    pub what: &'static str,
    pub invoked: Nanos,
    pub returned: Nanos,
    /// "ok", or how it failed.
    pub outcome: String,
}

impl CallRecord {
    /// Whether the server did not do what it was asked; a client that gave up and a condition that did not hold are no
    /// failures.
    pub fn has_failed(&self) -> bool {
        !matches!(self.outcome.as_str(), "ok" | "dropped" | "mismatch")
    }
}

/// What a client brings home.
#[derive(Default)]
pub struct Log {
    pub events: Vec<Event>,
    pub calls: Vec<CallRecord>,
}

impl Log {
    pub fn append(&mut self, other: Self) {
        self.events.extend(other.events);
        self.calls.extend(other.calls);
    }
}

pub struct Worker {
    shared: Arc<Shared>,
    habits: Habits,
    me: u16,
    dice: StdRng,
    servers: Vec<Caller>,
    /// The newest revision of each key that it was told of.
    known: BTreeMap<u16, i64>,
    log: Log,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, habits: Habits, me: u16, seed: u64) -> Self {
        let servers = shared.servers.iter().map(|server| caller(server, &shared.bearer)).collect();
        let dice = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(me)));
        Self { shared, habits, me, dice, servers, known: BTreeMap::new(), log: Log::default() }
    }

    /// Calls until it is stopped.
    pub async fn run(mut self) -> Log {
        while !self.shared.stop.load(SeqCst) {
            let pause = self.dice.random_range(self.habits.pause.clone());
            if pause > 0 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            if self.shared.hold.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            self.call_once().await;
        }
        self.log
    }

    /// Reads every key from every server. A STRONG read takes out of L1 what is older, so those come last.
    pub async fn read_all(mut self, strong: bool) -> Log {
        for server in 0..self.servers.len() {
            self.read(server, (0..self.habits.keys()).collect(), strong, false).await;
        }
        self.log
    }

    async fn call_once(&mut self) {
        let server = self.server();
        match self.dice.random_range(0..100) {
            0..45 => {
                let keys = self.some_keys();
                self.read(server, keys, false, false).await;
            }
            n if self.habits.plain && n < 80 => {
                let key = self.key_to_write();
                self.read(server, vec![key], false, false).await;
            }
            45..50 => {
                let keys = self.some_keys();
                self.read(server, keys, true, false).await;
            }
            50..58 => {
                let keys = self.some_keys();
                let strong = self.dice.random_ratio(1, 10);
                self.read(server, keys, strong, true).await;
            }
            58..72 => self.upsert(server, Kind::Replace, false).await,
            72..80 => self.upsert(server, Kind::Merge, false).await,
            _ if self.habits.plain => self.upsert(server, Kind::Replace, false).await,
            80..86 => self.upsert(server, Kind::Replace, true).await,
            86..92 => self.delete(server).await,
            _ => self.bulk(server).await,
        }
    }

    fn server(&mut self) -> usize {
        let all = self.servers.len();
        let home = usize::from(self.me) % all;
        if self.habits.faithful || self.dice.random_ratio(3, 4) { home } else { self.dice.random_range(0..all) }
    }

    /// Mostly one that all fight for, sometimes its own.
    fn key_to_write(&mut self) -> u16 {
        match self.dice.random_ratio(1, 6) {
            true => self.habits.shared_keys + self.me % self.habits.clients,
            false => self.dice.random_range(0..self.habits.shared_keys),
        }
    }

    fn some_keys(&mut self) -> Vec<u16> {
        let count = if self.dice.random_ratio(1, 3) { self.dice.random_range(2..6) } else { 1 };
        let mut keys = Vec::new();
        for _ in 0..count {
            let all = if self.dice.random() { self.habits.shared_keys } else { self.habits.keys() };
            keys.push(self.dice.random_range(0..all));
        }
        keys
    }

    /// How long it waits for this call.
    fn patience(&mut self) -> Duration {
        let drops = !self.habits.plain && self.dice.random_ratio(self.habits.cancels.min(100), 100);
        if drops { Duration::from_micros(self.dice.random_range(0..10_000)) } else { self.habits.patience }
    }

    fn next_write(&self) -> u64 {
        self.shared.writes.fetch_add(1, SeqCst)
    }

    fn learn(&mut self, key: u16, revision: i64) {
        let known = self.known.entry(key).or_default();
        *known = (*known).max(revision);
    }

    /// Notes a whole call.
    fn ended(&mut self, what: &'static str, invoked: Nanos, outcome: String) {
        self.shared.ended.fetch_add(1, SeqCst);
        let record = CallRecord { what, invoked, returned: self.shared.now(), outcome };
        self.shared.failed.fetch_add(record.has_failed().into(), SeqCst);
        self.shared.dropped.fetch_add((record.outcome == "dropped").into(), SeqCst);
        self.log.calls.push(record);
    }

    fn event(&self, server: usize, key: u16, invoked: Nanos, call: Call, answer: super::event::Answer) -> Event {
        Event { client: self.me, server: server as u8, key, invoked, returned: self.shared.now(), call, answer }
    }
}
