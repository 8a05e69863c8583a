//! The repairer: follows L2's changes and removes from L1 what they made old, so that nothing stays hidden for long: not a
//! write of a server that crashed before it told L1, not one that L1 was not told of, not an edit of L2 by hand.
//!
//! It only removes, which is always safe. Where several servers share L1 one of them repairs for all (`term`), the one who
//! holds the lease in L2. An L1 in this process over a store that others write too is kept true by its own server
//! (`private`). Both make changes good as `mend` says. Where L2 cannot tell of changes there is no repairer.

mod mend;
mod passes;
mod private;
mod term;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Tiered;
use crate::{record::Millis, store::changes::Leadership};

/// How old a stored position may be for the repairer to be relied on: three leases, as one leader follows another.
const COVERED: Duration = Duration::from_secs(15);

/// How the repairer works.
#[derive(Clone, Debug)]
pub struct RepairSettings {
    /// How long after the first time every change is made good once more: for a failover of L1 that lost what it was told.
    pub second_pass: Duration,
}

impl Default for RepairSettings {
    fn default() -> Self {
        Self { second_pass: Duration::from_secs(30) }
    }
}

/// What this server's repairer did since start.
#[derive(Debug, Default)]
pub struct Repairs {
    /// Until when a leader is known to store positions: whatever L1 was not told of will be made good, whoever crashes.
    covered: Mutex<Option<Instant>>,
    leading: AtomicBool,
    lag_ms: AtomicI64,
    written: AtomicU64,
    edited: AtomicU64,
    dropped: AtomicU64,
    epochs: AtomicU64,
}

/// The same as it stood at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReading {
    /// It repairs now: for all servers, or where L1 is in this process for itself.
    pub leading: bool,
    /// From a change to the moment when it was made good in L1, of the last ones; zero while there are none.
    pub lag: Duration,
    /// Writes of servers that were made good.
    pub written: u64,
    /// Edits by others.
    pub edited: u64,
    /// Entries that were older than a write, and removed.
    pub dropped: u64,
    /// New epochs, or clearings of an L1 in this process, because changes could not be told one by one.
    pub epochs: u64,
}

impl Repairs {
    /// What it shows now.
    pub fn reading(&self) -> RepairReading {
        RepairReading {
            leading: self.leading.load(Relaxed),
            lag: Duration::from_millis(self.lag_ms.load(Relaxed).unsigned_abs()),
            written: self.written.load(Relaxed),
            edited: self.edited.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            epochs: self.epochs.load(Relaxed),
        }
    }

    /// What was said of the stored position, asked at `asked`.
    fn covers(&self, leadership: &Leadership, asked: Instant) {
        let stored = leadership.position.as_ref().and(leadership.stored);
        let until = stored.and_then(|age| Some(asked + COVERED.checked_sub(age)?));
        *self.covered.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// A change of this time is made good now, or still is not.
    fn lags(&self, at: Millis, now: Millis) {
        self.lag_ms.store(now.0.saturating_sub(at.0).max(0), Relaxed);
    }

    /// There is no change that is not made good.
    fn keeps_up(&self) {
        self.lag_ms.store(0, Relaxed);
    }
}

impl Tiered {
    /// What the repairer did.
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// Repairs L1, or stands by for it, until `shutdown`. Returns at once where there is nothing to repair.
    pub async fn repair(self: Arc<Self>, shutdown: CancellationToken) {
        if self.store.info().exclusive {
            return;
        }
        let mut reach = self.reach();
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Only a store that was reached tells whether it can be followed.
            ready = reach.wait_for(|reach| reach.ready) => if ready.is_err() { return },
        }
        match (self.store.info().silent, self.cache.info().shared) {
            (true, true) => {}
            // What it holds ends with its ttl.
            (true, false) => self.trust.follows_nobody(),
            (false, true) => self.stand_by(&shutdown).await,
            (false, false) => tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.follow_alone() => {}
            },
        }
    }

    /// Whether the repairer makes good what L1 is not told of, even if this server crashes.
    pub(super) fn is_repaired(&self) -> bool {
        let covered = self.repairs.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.is_some_and(|until| Instant::now() < until)
    }
}
