//! The load: records of 20 features that callers read and write, first as fast as they can, then at a pace; and what is
//! known of each record, to hold every answer to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, sleep},
};

use super::caller::{Caller, Seen};
use crate::{
    harness::client::{self as api, FeatureRecord, FeatureRow, RowStatus, value::Kind},
    history::{
        client::Shared,
        event::{Class, Nanos, Window},
    },
};

pub const RECORDS: usize = 20_000;
/// A dozen clients of four calls at once.
pub const CALLERS: usize = 48;
/// Features beside `entity` and `write`.
const NUMBERS: usize = 18;
/// How often somebody connects anew.
const FRESH: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_secs(3);
/// How many wrong answers are kept to be told.
const TOLD: usize = 20;

/// The newest of a record that any answer promised to every later one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    pub revision: i64,
    /// Whose it is; 0: not known.
    write: u32,
}

pub struct Load {
    pub shared: Arc<Shared>,
    seed: u64,
    floors: Vec<Mutex<Floor>>,
    /// How many writes of each record were begun.
    writes: Vec<AtomicU32>,
    windows: Mutex<Vec<Window>>,
    pub done: AtomicU64,
    pub failed: AtomicU64,
    /// Rows and write results that were held to what is known.
    pub checked: AtomicU64,
    pub wrong: AtomicU64,
    told: Mutex<Vec<String>>,
    /// Older than promised, and said so, or while MongoDB elected.
    pub older: AtomicU64,
    /// Whether MongoDB elects, and how many calls were answered meanwhile.
    electing: AtomicBool,
    pub answered_electing: AtomicU64,
}

/// Callers at work.
pub struct Paced {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Seen>,
}

impl Load {
    pub fn new(shared: Arc<Shared>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            shared,
            seed,
            floors: (0..RECORDS).map(|_| Mutex::default()).collect(),
            writes: (0..RECORDS).map(|_| AtomicU32::new(0)).collect(),
            windows: Mutex::default(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            told: Mutex::default(),
            older: AtomicU64::new(0),
            electing: AtomicBool::new(false),
            answered_electing: AtomicU64::new(0),
        })
    }

    /// Writes every record once.
    pub async fn fill(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        for me in 0..CALLERS {
            let mut caller = Caller::new(self.clone(), me, self.seed);
            tasks.spawn(async move { caller.fill().await });
        }
        tasks.join_all().await;
    }

    /// Calls a second where each caller goes on as soon as it is answered.
    pub async fn measure(self: &Arc<Self>, length: Duration) -> f64 {
        let all = self.start(|mut caller, stop| async move {
            while !stop.load(SeqCst) {
                caller.call().await;
            }
            caller.seen
        });
        sleep(WARM_UP).await;
        let (before, from) = (self.done.load(SeqCst), self.shared.now());
        sleep(length).await;
        let (after, until) = (self.done.load(SeqCst), self.shared.now());
        let seen = all.stop().await;
        assert!(seen.failed.is_empty(), "nothing may fail before anything happens: {:?}", seen.failed[0]);
        (after - before) as f64 / Duration::from_nanos(until - from).as_secs_f64()
    }

    /// So many calls a second, and some more over a new connection each.
    pub fn at(self: &Arc<Self>, rate: f64) -> Paced {
        let every = Duration::from_secs_f64(CALLERS as f64 / rate);
        let mut all = self.start(|caller, stop| paced(caller, stop, every));
        let mut caller = Caller::new(self.clone(), CALLERS, self.seed);
        caller.connects_anew = true;
        all.tasks.spawn(paced(caller, all.stop.clone(), FRESH));
        all
    }

    fn start<F>(self: &Arc<Self>, work: impl Fn(Caller, Arc<AtomicBool>) -> F) -> Paced
    where
        F: Future<Output = Seen> + Send + 'static,
    {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for me in 0..CALLERS {
            tasks.spawn(work(Caller::new(self.clone(), me, self.seed), stop.clone()));
        }
        Paced { stop, tasks }
    }

    pub fn window_opens(&self, fault: &'static str, class: Class) {
        let window = Window { fault, class, from: self.shared.now(), until: Nanos::MAX };
        self.windows.lock().unwrap().push(window);
        self.electing.store(class == Class::Election, SeqCst);
    }

    pub fn window_closes(&self) {
        self.electing.store(false, SeqCst);
        self.windows.lock().unwrap().last_mut().unwrap().until = self.shared.now();
    }

    /// A call was answered.
    pub fn answered(&self) {
        self.done.fetch_add(1, SeqCst);
        if self.electing.load(SeqCst) {
            self.answered_electing.fetch_add(1, SeqCst);
        }
    }

    pub fn windows(&self) -> Vec<Window> {
        self.windows.lock().unwrap().clone()
    }

    /// The next write of a record.
    pub fn next(&self, key: usize) -> (u32, FeatureRecord) {
        let write = self.writes[key].fetch_add(1, SeqCst) + 1;
        let named = [("entity", key as i64), ("write", i64::from(write))];
        let mut record = api::record(&id(key), named.map(|(name, number)| (name, api::value(Kind::Int64Val(number)))));
        record.features.extend((0..NUMBERS).map(|i| (name(i), api::double(number(key, write, i)))));
        (write, record)
    }

    pub fn floor(&self, key: usize) -> Floor {
        *self.floors[key].lock().unwrap()
    }

    fn raise(&self, key: usize, to: Floor) {
        let mut floor = self.floors[key].lock().unwrap();
        if to.revision > floor.revision || (to.revision == floor.revision && floor.write == 0) {
            *floor = to;
        }
    }

    /// Holds a row to what was known when it was asked for.
    pub fn hold(&self, key: usize, before: Floor, invoked: Nanos, row: &FeatureRow, degraded: bool) {
        self.checked.fetch_add(1, SeqCst);
        let whole = |name: &str| match row.features.get(name)?.kind {
            Some(Kind::Int64Val(number)) => Some(number),
            _ => None,
        };
        if row.status() != RowStatus::Found || row.entity_id != id(key) {
            return self.tell(format!("record {key}, which nobody deletes: {row:?}"));
        }
        let write = whole("write").and_then(|write| u32::try_from(write).ok()).unwrap_or(0);
        let of_it = |i: usize| match row.features.get(&name(i)).and_then(|value| value.kind.as_ref()) {
            Some(Kind::DoubleVal(found)) => *found == number(key, write, i),
            _ => false,
        };
        let is_whole = whole("entity") == Some(key as i64) && row.features.len() == NUMBERS + 2;
        if !is_whole || !(0..NUMBERS).all(of_it) || write == 0 || write > self.writes[key].load(SeqCst) {
            return self.tell(format!("record {key}: nobody wrote that: {row:?}"));
        }
        if row.revision == before.revision && before.write != 0 && before.write != write {
            return self.tell(format!("record {key}: two values of one revision, {before:?} and {row:?}"));
        }
        if row.revision < before.revision {
            if degraded || self.elects(invoked) {
                self.older.fetch_add(1, SeqCst);
            } else {
                self.tell(format!("record {key}: older than {before:?}: {row:?}"));
            }
        } else if !degraded {
            self.raise(key, Floor { revision: row.revision, write });
        }
    }

    /// The same of a write's answer, which may be that of a later write of the same caller that came through first.
    pub fn hold_write(&self, key: usize, before: Floor, revision: i64, cached: bool) {
        self.checked.fetch_add(1, SeqCst);
        if revision <= before.revision {
            self.tell(format!("record {key}: a write was answered revision {revision} after {before:?}"));
        } else if cached {
            self.raise(key, Floor { revision, write: 0 });
        }
    }

    /// Whether MongoDB elected at some time since then.
    fn elects(&self, since: Nanos) -> bool {
        let windows = self.windows.lock().unwrap();
        windows.iter().any(|window| window.class == Class::Election && window.until >= since)
    }

    fn tell(&self, wrong: String) {
        self.wrong.fetch_add(1, SeqCst);
        let mut told = self.told.lock().unwrap();
        if told.len() < TOLD {
            println!("WRONG: {wrong}");
            told.push(wrong);
        }
    }

    pub fn first_wrong(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl Paced {
    pub async fn stop(self) -> Seen {
        self.stop.store(true, SeqCst);
        let mut all = Seen::default();
        self.tasks.join_all().await.into_iter().for_each(|seen| all.append(seen));
        all
    }
}

/// Calls at its times; of those that pass while it waits for an answer, none is made up for.
async fn paced(mut caller: Caller, stop: Arc<AtomicBool>, every: Duration) -> Seen {
    let first = every.mul_f64(rand::random::<f64>());
    let mut times = interval_at(tokio::time::Instant::now() + first, every);
    times.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(SeqCst) {
        times.tick().await;
        caller.call().await;
    }
    caller.seen
}

pub fn id(key: usize) -> String {
    format!("load{key}")
}

fn name(i: usize) -> String {
    format!("feature_{i:02}")
}

fn number(key: usize, write: u32, i: usize) -> f64 {
    (key * 131 + i) as f64 + f64::from(write) / 1024.0
}
