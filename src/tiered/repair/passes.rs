//! The two passes over the changes. The first applies them as they come; the second applies them
//! again some time later, from a stream of its own, so that nothing needs to be kept in between.
//! The position of the second pass is the one that is stored.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::Tiered,
    term::{End, Term},
};
use crate::store::changes::{Batch, Changes, Event, FollowError, Position};

/// How long the change stream may be silent; it sends something at quiet times too.
const SILENCE: Duration = Duration::from_secs(5);
/// How long to wait before a retry.
const AGAIN: Duration = Duration::from_millis(100);
/// How long something may fail before the leader gives up the lease.
const TROUBLE: Duration = Duration::from_secs(10);
/// A change that is older when it is applied belongs to a backlog. The clocks differ by less.
const BACKLOG: Duration = Duration::from_secs(10);
const MILESTONES: usize = 4096;

/// One stream of changes, which is opened again when it breaks.
pub(super) struct Pass {
    changes: Option<Box<dyn Changes>>,
    position: Position,
}

impl Pass {
    pub(super) fn new(changes: Box<dyn Changes>) -> Self {
        Self { position: changes.position().clone(), changes: Some(changes) }
    }

    /// A pass from this position on, not opened yet.
    pub(super) fn at(position: Position) -> Self {
        Self { changes: None, position }
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    async fn next(&mut self, tiered: &Tiered) -> Result<Batch, FollowError> {
        let changes = match &mut self.changes {
            Some(changes) => changes,
            none => none.insert(tiered.open_changes(Some(self.position.clone())).await?),
        };
        let next = changes.next(Instant::now() + SILENCE).await;
        match &next {
            Ok(batch) => self.position = batch.position.clone(),
            Err(_) => self.changes = None,
        }
        next
    }

    /// The next batch. A stream that breaks is opened again, for `TROUBLE` at most.
    async fn next_or_end(&mut self, tiered: &Tiered) -> Result<Batch, End> {
        let since = Instant::now();
        loop {
            match self.next(tiered).await {
                Ok(batch) => return Ok(batch),
                Err(FollowError::HistoryLost(reason)) => {
                    tracing::warn!(%reason, "L2 no longer has the history of its changes that L1 is repaired from");
                    return Err(End::HistoryLost);
                }
                Err(FollowError::Store(error)) if since.elapsed() > TROUBLE => {
                    tracing::warn!(%error, "the changes of L2 cannot be followed");
                    return Err(End::ChangesLost);
                }
                Err(FollowError::Store(error)) => {
                    tracing::debug!(%error, "the change stream of L2 broke and is opened again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// How far the first pass had come at which time.
pub(super) struct Progress {
    delay: Duration,
    milestones: Mutex<VecDeque<(Instant, u64)>>,
}

impl Progress {
    pub(super) fn new(delay: Duration) -> Self {
        Self { delay, milestones: Mutex::default() }
    }

    /// The first pass has applied all changes up to this one.
    fn passed(&self, order: u64) {
        let mut milestones = self.milestones.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Of the milestones whose delay is over, the last one is enough.
        while milestones.get(1).is_some_and(|(at, _)| *at + self.delay <= now) {
            milestones.pop_front();
        }
        if milestones.len() >= MILESTONES {
            milestones.pop_back(); // its changes wait a little longer
        }
        milestones.push_back((now, order));
    }

    /// When the second pass may apply this change; None: the first pass has not applied it yet.
    fn due(&self, order: u64) -> Option<Instant> {
        let milestones = self.milestones.lock().unwrap_or_else(PoisonError::into_inner);
        milestones.iter().find(|(_, passed)| *passed >= order).map(|(at, _)| *at + self.delay)
    }
}

impl Tiered {
    pub(super) async fn first_pass(&self, term: &Term, mut pass: Pass) -> End {
        loop {
            let batch = match pass.next_or_end(self).await {
                Ok(batch) => batch,
                Err(end) => return end,
            };
            let Some(last) = batch.changes.last() else {
                self.repairs.keeps_up();
                self.trust.heard();
                continue;
            };
            if let Err(end) = self.mend_or_end(&batch, true).await {
                return end;
            }
            // A server that was suspended first meets changes that are long past; they are no news.
            if self.clock.now().0.saturating_sub(last.at.0) < BACKLOG.as_millis() as i64 {
                self.trust.heard();
            }
            term.progress.passed(last.order);
            if let Event::Written { key, .. } | Event::Edited { key } = &last.event {
                self.audit.changed(key);
            }
        }
    }

    pub(super) async fn second_pass(&self, term: &Term, mut pass: Pass) -> End {
        loop {
            let batch = match pass.next_or_end(self).await {
                Ok(batch) => batch,
                Err(end) => return end,
            };
            if let Some(last) = batch.changes.last() {
                loop {
                    match term.progress.due(last.order) {
                        Some(due) if due <= Instant::now() => break,
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => tokio::time::sleep(AGAIN).await,
                    }
                }
                if let Err(end) = self.mend_or_end(&batch, false).await {
                    return end;
                }
            }
            term.is_done(batch.position);
        }
    }

    /// Applies a batch, with retries for `TROUBLE` at most.
    async fn mend_or_end(&self, batch: &Batch, first: bool) -> Result<(), End> {
        let since = Instant::now();
        let oldest = batch.changes.first().map(|change| change.at);
        let lags = || {
            if let (true, Some(at)) = (first, oldest) {
                self.repairs.lags(at, self.clock.now());
            }
        };
        loop {
            // Also before the first attempt, which may take long.
            lags();
            let done = if first { self.mend(&batch.changes).await } else { self.mend_each(&batch.changes).await };
            lags();
            if done {
                return Ok(());
            }
            if since.elapsed() > TROUBLE {
                return Err(End::L1Lost);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
