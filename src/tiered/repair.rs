//! The repairer. It follows the changes of L2 and removes from L1 what they made old, so that
//! nothing stays stale for long: not a write of a server that crashed before L1 confirmed it, not a
//! write that L1 did not confirm, not an edit of L2 by hand.
//!
//! It only removes, which is always safe. Where several servers share L1, the one that holds the
//! lease in L2 repairs for all (`term`). An L1 in this process, over a store that others write to,
//! is repaired by its own server (`private`). Both apply changes as `mend` does. Where L2 has no
//! change stream there is no repairer.

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

/// How old a stored position may be so that a repairer is known to be at work: three leases, as one
/// leader follows another.
const COVERED: Duration = Duration::from_secs(15);

/// How the repairer works.
#[derive(Clone, Debug)]
pub struct RepairSettings {
    /// How long after the first pass each change is applied again, for a failover of L1 that lost
    /// the first pass.
    pub second_pass: Duration,
}

impl Default for RepairSettings {
    fn default() -> Self {
        Self { second_pass: Duration::from_secs(30) }
    }
}

/// What the repairer of this server has done since start.
#[derive(Debug, Default)]
pub struct Repairs {
    /// Until when a leader is known to store positions: what L1 did not confirm is repaired,
    /// whichever server crashes.
    covered: Mutex<Option<Instant>>,
    leading: AtomicBool,
    lag_ms: AtomicI64,
    written: AtomicU64,
    edited: AtomicU64,
    dropped: AtomicU64,
    epochs: AtomicU64,
}

/// A copy of the counts, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReading {
    /// It repairs now: for all servers, or for its own L1 if that is in this process.
    pub leading: bool,
    /// The time from the last changes until they were applied to L1; zero while there are none.
    pub lag: Duration,
    /// Writes of servers that were applied to L1.
    pub written: u64,
    /// Edits by others that were applied to L1.
    pub edited: u64,
    /// Entries that were older than a write and were removed.
    pub dropped: u64,
    /// New epochs, or clearings of an L1 in this process: changes were not known one by one.
    pub epochs: u64,
}

impl Repairs {
    /// The counts now.
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

    /// Takes the age of the stored position, from the reply to a request sent at `asked`.
    fn covers(&self, leadership: &Leadership, asked: Instant) {
        let stored = leadership.position.as_ref().and(leadership.stored);
        let until = stored.and_then(|age| Some(asked + COVERED.checked_sub(age)?));
        *self.covered.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// A change of this time has been applied now, or is being applied.
    fn lags(&self, at: Millis, now: Millis) {
        self.lag_ms.store(now.0.saturating_sub(at.0).max(0), Relaxed);
    }

    /// All changes have been applied.
    fn keeps_up(&self) {
        self.lag_ms.store(0, Relaxed);
    }
}

impl Tiered {
    /// The counts of the repairer.
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// Repairs L1, or waits to do so, until `shutdown`. Returns if there is nothing to repair.
    pub async fn repair(self: Arc<Self>, shutdown: CancellationToken) {
        if self.store.info().exclusive {
            return;
        }
        let mut reach = self.reach();
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Whether a store has a change stream is known only after it was reached.
            ready = reach.wait_for(|reach| reach.ready) => if ready.is_err() { return },
        }
        match (self.store.info().silent, self.cache.info().shared) {
            (true, true) => {}
            // Its entries end with their TTL.
            (true, false) => self.trust.follows_nobody(),
            (false, true) => self.stand_by(&shutdown).await,
            (false, false) => tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.follow_alone() => {}
            },
        }
    }

    /// Whether a repairer will remove what L1 did not confirm, even if this server crashes.
    pub(super) fn is_repaired(&self) -> bool {
        let covered = self.repairs.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.is_some_and(|until| Instant::now() < until)
    }
}
