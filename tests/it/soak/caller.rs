//! One caller: the mix of its calls, the one retry on the other server, and what it saw.

use std::{
    collections::BTreeMap,
    error::Error as _,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use hdrhistogram::Histogram;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::load::{CALLERS, Floor, Load, RECORDS, id};
use crate::{
    harness::client::{self as api, RowStatus, WriteOutcome},
    history::event::Nanos,
};

/// Of a read of many, and of a bulk chunk.
const BATCH: usize = 100;
const CHUNK: usize = 50;
/// As the service config of docs/api.md begins.
const BACKOFF: Duration = Duration::from_millis(50);
/// More than the servers' deadlines.
const PATIENCE: Duration = Duration::from_secs(15);
pub const NO_CONNECTION: &str = "no connection";

/// A sending that was not answered well.
#[derive(Clone, Debug)]
pub struct Failed {
    pub what: &'static str,
    pub reason: String,
    pub invoked: Nanos,
    pub returned: Nanos,
    /// It was not sent again: the call failed.
    pub last: bool,
}

/// What callers bring home.
#[derive(Default)]
pub struct Seen {
    /// Microseconds of each sort of call, retries included.
    pub took: BTreeMap<&'static str, Histogram<u64>>,
    pub failed: Vec<Failed>,
}

impl Seen {
    fn took(&mut self, what: &'static str) -> &mut Histogram<u64> {
        self.took.entry(what).or_insert_with(|| Histogram::new(2).unwrap())
    }

    pub fn append(&mut self, other: Self) {
        for (what, took) in other.took {
            self.took(what).add(took).unwrap();
        }
        self.failed.extend(other.failed);
    }
}

pub struct Caller {
    load: Arc<Load>,
    me: usize,
    dice: StdRng,
    servers: Vec<api::Caller>,
    /// Which server is next.
    next: usize,
    /// For each call.
    pub connects_anew: bool,
    pub seen: Seen,
}

impl Caller {
    pub fn new(load: Arc<Load>, me: usize, seed: u64) -> Self {
        let servers = load.shared.servers.iter().map(|server| api::caller(server, &load.shared.bearer)).collect();
        let dice = StdRng::seed_from_u64(seed.wrapping_mul(7919).wrapping_add(me as u64));
        Self { load, me, dice, servers, next: me, connects_anew: false, seen: Seen::default() }
    }

    /// Writes all records that it alone writes.
    pub async fn fill(&mut self) {
        let keys: Vec<usize> = (self.me..RECORDS).step_by(CALLERS).collect();
        for chunk in keys.chunks(CHUNK) {
            self.bulk(chunk.to_vec(), true).await;
        }
        assert!(self.seen.failed.is_empty(), "{:?}", self.seen.failed);
    }

    pub async fn call(&mut self) {
        match self.dice.random_range(0..100) {
            // It has no records of its own.
            _ if self.connects_anew => self.read("read 1", 1).await,
            0..55 => self.read("read 1", 1).await,
            55..90 => self.read("read 100", BATCH).await,
            90..98 => self.write().await,
            _ => {
                let first = self.dice.random_range(0..RECORDS / CALLERS - CHUNK);
                let keys = (first..first + CHUNK).map(|place| place * CALLERS + self.me).collect();
                let warm = self.dice.random();
                self.bulk(keys, warm).await;
            }
        }
    }

    async fn read(&mut self, what: &'static str, count: usize) {
        let keys: Vec<usize> = (0..count).map(|_| self.dice.random_range(0..RECORDS)).collect();
        let request = api::get(keys.iter().map(|key| id(*key)));
        self.send(what, keys, Request::Read(request)).await;
    }

    async fn write(&mut self) {
        let key = self.dice.random_range(0..RECORDS / CALLERS) * CALLERS + self.me;
        let (write, record) = self.load.next(key);
        let request = api::UpsertFeaturesRequest { request_id: format!("{key}-{write}"), ..api::upsert(record) };
        self.send("write 1", vec![key], Request::Write(request)).await;
    }

    async fn bulk(&mut self, keys: Vec<usize>, warm_cache: bool) {
        let records: Vec<_> = keys.iter().map(|key| self.load.next(*key).1).collect();
        let chunk = api::BulkUpsertRequest { warm_cache, all_results: true, ..api::chunk(1, records) };
        self.send("bulk 50", keys, Request::Bulk(chunk)).await;
    }

    /// Sends a call to one server and, where docs/operations.md says that it is worth it, once more to the other.
    async fn send(&mut self, what: &'static str, keys: Vec<usize>, request: Request) {
        let begun = self.load.shared.now();
        let before = keys.iter().map(|key| self.load.floor(*key)).collect();
        let asked = Asked { begun, keys, before, request };
        self.next += 1;
        for sending in 0..2 {
            let server = (self.next + sending) % self.servers.len();
            let client = match self.connects_anew {
                true => api::caller(&self.load.shared.servers[server], &self.load.shared.bearer),
                false => self.servers[server].clone(),
            };
            let invoked = self.load.shared.now();
            let answered = timeout(PATIENCE, asked.answer(client, &self.load))
                .await
                .unwrap_or_else(|_| Err("no answer".to_owned()));
            let returned = self.load.shared.now();
            let Err(reason) = answered else {
                self.load.answered();
                self.seen.took(what).record((returned - begun) / 1000).unwrap();
                return;
            };
            let last = sending == 1 || !is_worth_a_retry(&reason);
            self.seen.failed.push(Failed { what, reason, invoked, returned, last });
            if last {
                break;
            }
            sleep(BACKOFF).await;
        }
        self.load.done.fetch_add(1, SeqCst);
        self.load.failed.fetch_add(1, SeqCst);
    }
}

enum Request {
    Read(api::GetFeaturesRequest),
    Write(api::UpsertFeaturesRequest),
    Bulk(api::BulkUpsertRequest),
}

/// A call, and what was known before it.
struct Asked {
    begun: Nanos,
    keys: Vec<usize>,
    before: Vec<Floor>,
    request: Request,
}

impl Asked {
    /// Sends it, and holds what it is answered to what was known; an error is why there is no whole answer.
    async fn answer(&self, mut client: api::Caller, load: &Load) -> Result<(), String> {
        match &self.request {
            Request::Read(request) => {
                let answer = client.get_features(request.clone()).await.map_err(reason)?.into_inner();
                let mut outcome = whole(answer.rows.len(), self.keys.len());
                for ((key, before), row) in self.keys.iter().zip(&self.before).zip(&answer.rows) {
                    match row.status() {
                        RowStatus::Error => outcome = Err(row.error.clone().unwrap_or_default().reason),
                        _ => load.hold(*key, *before, self.begun, row, answer.degraded),
                    }
                }
                outcome
            }
            Request::Write(request) => {
                let answer = client.upsert_features(request.clone()).await.map_err(reason)?.into_inner();
                load.hold_write(self.keys[0], self.before[0], answer.revision, answer.cached);
                match answer.outcome() {
                    WriteOutcome::Written => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
            Request::Bulk(chunk) => {
                let stream = client.bulk_upsert(tokio_stream::iter([chunk.clone()])).await.map_err(reason)?;
                let answer = stream.into_inner().message().await.map_err(reason)?.ok_or("an empty stream")?;
                let mut outcome = whole(answer.results.len(), self.keys.len());
                for ((key, before), result) in self.keys.iter().zip(&self.before).zip(&answer.results) {
                    match result.outcome() {
                        WriteOutcome::Written => load.hold_write(*key, *before, result.revision, result.cached),
                        _ => outcome = Err(result.error.clone().unwrap_or_default().reason),
                    }
                }
                outcome
            }
        }
    }
}

fn whole(answered: usize, asked: usize) -> Result<(), String> {
    if answered == asked { Ok(()) } else { Err(format!("{answered} answers to {asked}")) }
}

/// The reasons of UNAVAILABLE and of RESOURCE_EXHAUSTED TOO_BUSY.
fn is_worth_a_retry(reason: &str) -> bool {
    const WORTH: [&str; 6] =
        [NO_CONNECTION, "L2_UNAVAILABLE", "L2_TIMEOUT", "OUTCOME_UNKNOWN", "TOO_BUSY", "Unavailable"];
    WORTH.contains(&reason)
}

/// Why a call failed, in a word.
fn reason(status: Status) -> String {
    // Its client made it, as the connection was not to be had, or went away: other gRPC clients say UNAVAILABLE.
    if status.source().is_some() {
        return NO_CONNECTION.to_owned();
    }
    let told = status.get_error_details().error_info().map(|info| info.reason.clone());
    told.unwrap_or_else(|| match status.code() {
        Code::Unavailable => "Unavailable".to_owned(),
        code => format!("{code:?}: {}", status.message()),
    })
}
