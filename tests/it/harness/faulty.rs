//! A cache and a store that do as told, but for what a test tells them: operations that stop half way, get lost, or are
//! answered too late.
//!
//! The store's calls run as blocking tasks, during which tokio's paused clock stands still. So a test with
//! `start_paused = true` has real fsyncs and no real waiting, and time moves only when nothing else can happen.

mod cache;
mod changes;
mod store;

use std::{collections::HashMap, future::Future, sync::Mutex, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

pub use self::{
    cache::{FaultyCache, shared},
    changes::ChangeLog,
    store::{FaultyStore, SharedStore, blocking},
};

use featurestore::record::Clock;

use super::server::PATIENCE;

/// A wall clock that goes with tokio's.
pub fn clock() -> Clock {
    let (start, at) = (Instant::now(), Clock::system().now());
    Clock::new(move || at.after(start.elapsed()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Get,
    Acquire,
    Settle,
    Mark,
    Put,
    Unmark,
    Remove,
    Probe,
    Read,
    Write,
    WriteBatch,
    Epoch,
    RenewEpoch,
    NameL1,
    MarkDirty,
    Changes,
    Lead,
}

#[derive(Clone)]
pub enum Fault {
    /// Stops before it is done, and again before it is answered.
    Hold(Held),
    /// Not done, and answered so at once: L1 timed out, L2 is unavailable.
    Lose,
    /// The same at the deadline.
    Silent,
    /// Done after a while.
    Slow(Duration),
    /// Done, but the answer is lost.
    LoseReply,
    /// Answered as lost, and done when it is let go.
    Late(Held),
}

/// An operation under way, stopped where a test wants it.
#[derive(Clone)]
pub struct Held {
    reached: watch::Sender<u8>,
    allowed: watch::Sender<u8>,
}

const HALF_WAY: u8 = 1;
const THROUGH: u8 = 2;

impl Held {
    fn new() -> Self {
        Self { reached: watch::Sender::new(0), allowed: watch::Sender::new(0) }
    }

    /// Waits until the operation is asked for.
    pub async fn arrived(&self) {
        reach(&self.reached, HALF_WAY).await;
    }

    /// Waits until it is asked for, does it, and keeps the answer back.
    pub async fn done(&self) {
        self.arrived().await;
        self.allowed.send_replace(HALF_WAY);
        reach(&self.reached, THROUGH).await;
    }

    /// Lets it go on to its end.
    pub fn let_go(&self) {
        self.allowed.send_replace(THROUGH);
    }

    async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        self.reached.send_replace(HALF_WAY);
        let _ = self.allowed.subscribe().wait_for(|allowed| *allowed >= HALF_WAY).await;
        let answer = work.await;
        self.reached.send_replace(THROUGH);
        let _ = self.allowed.subscribe().wait_for(|allowed| *allowed >= THROUGH).await;
        answer
    }
}

async fn reach(stage: &watch::Sender<u8>, wanted: u8) {
    let mut stage = stage.subscribe();
    let reached = timeout(PATIENCE, stage.wait_for(|reached| *reached >= wanted)).await;
    assert!(reached.is_ok(), "the held operation never got so far");
}

/// What a test tells the tiers of one server to do.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<(Op, Fault, bool)>>,
    counts: Mutex<HashMap<Op, usize>>,
}

impl Faults {
    /// Holds the next one.
    pub fn hold(&self, op: Op) -> Held {
        let held = Held::new();
        self.once(op, Fault::Hold(held.clone()));
        held
    }

    /// The next one is answered as lost, and done when it is let go.
    pub fn late(&self, op: Op) -> Held {
        let held = Held::new();
        self.once(op, Fault::Late(held.clone()));
        held
    }

    pub fn once(&self, op: Op, fault: Fault) {
        self.rules.lock().unwrap().push((op, fault, false));
    }

    pub fn always(&self, op: Op, fault: Fault) {
        self.rules.lock().unwrap().push((op, fault, true));
    }

    pub fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// How often it was asked for.
    pub fn count(&self, op: Op) -> usize {
        self.counts.lock().unwrap().get(&op).copied().unwrap_or_default()
    }

    fn next(&self, op: Op) -> Option<Fault> {
        *self.counts.lock().unwrap().entry(op).or_default() += 1;
        let mut rules = self.rules.lock().unwrap();
        let place = rules.iter().position(|(of, ..)| *of == op)?;
        let (_, fault, always) = rules[place].clone();
        if !always {
            rules.remove(place);
        }
        Some(fault)
    }

    /// Does `work` as the rules say; `lost` is the answer where there is none, told whether it was done.
    async fn call<T: Send + 'static>(
        &self,
        op: Op,
        deadline: Instant,
        work: impl Future<Output = T> + Send + 'static,
        lost: impl FnOnce(bool) -> T + Send,
    ) -> T {
        match self.next(op) {
            None => work.await,
            Some(Fault::Hold(held)) => held.around(work).await,
            Some(Fault::Lose) => lost(false),
            Some(Fault::Silent) => {
                sleep_until(deadline).await;
                lost(false)
            }
            Some(Fault::Slow(by)) => {
                sleep(by).await;
                work.await
            }
            Some(Fault::LoseReply) => {
                work.await;
                lost(true)
            }
            Some(Fault::Late(held)) => {
                tokio::spawn(async move { held.around(work).await });
                lost(true)
            }
        }
    }
}
