//! Which server repairs an L1 that several servers share: the one that holds the lease in L2, for
//! one term. A leader that cannot reach L1, or cannot apply changes for long, gives up the lease,
//! so that another server may try. Two at once do no harm.

use std::{
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    super::{Tiered, watch::PATIENCE},
    passes::{Pass, Progress},
};
use crate::store::{
    StoreError,
    changes::{Changes, FollowError, Position},
};

/// How long the others wait for a leader that does not answer.
const LEASE: Duration = Duration::from_secs(5);
/// How often the leader renews the lease, and how often the others ask for it.
const INTERVAL: Duration = Duration::from_secs(1);
pub(super) const OPENING: Duration = Duration::from_secs(3);
/// An epoch of this age, by L2's clock, has not been used by any server, because all pause longer
/// after a change. Less than the pause, as the request took some time.
const UNUSED_AGE: Duration = Duration::from_millis(2500);

/// Why a term ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Shutdown,
    /// Another server leads.
    Succeeded,
    /// L2 did not renew the lease.
    LeaseLost,
    /// L1 cannot be reached from this server, or does not confirm.
    L1Lost,
    ChangesLost,
    /// L2 no longer has the changes since the stored position.
    HistoryLost,
}

/// The time of one leader.
pub(super) struct Term {
    /// A random name of this server in this term.
    me: String,
    /// The second pass has applied everything before it.
    done: Mutex<Position>,
    /// How far the first pass has come.
    pub(super) progress: Progress,
}

impl Term {
    pub(super) fn new(me: &str, first: &Pass, second_pass: Duration) -> Self {
        let (done, progress) = (Mutex::new(first.position().clone()), Progress::new(second_pass));
        Self { me: me.to_owned(), done, progress }
    }

    pub(super) fn is_done(&self, position: Position) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = position;
    }

    fn done(&self) -> Position {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Tiered {
    /// Leads whenever it can, until `shutdown`.
    pub(super) async fn stand_by(&self, shutdown: &CancellationToken) {
        let mut trouble = String::new();
        // The stored position is too old, so the next term must not use it.
        let mut afresh = false;
        while !shutdown.is_cancelled() {
            // Each term has its own name, so that a late request of an earlier term has no effect.
            let me = format!("{:016x}", rand::random::<u64>());
            let mut pause = if self.can_repair() { INTERVAL } else { INTERVAL / 5 };
            match self.serve_a_term(&me, afresh, shutdown).await {
                Ok(None) => {
                    trouble.clear();
                    afresh = false;
                }
                Ok(Some(end)) => {
                    tracing::info!(me, ?end, "this server no longer repairs L1; another server may take over");
                    afresh = end == End::HistoryLost;
                    match end {
                        End::HistoryLost => pause = Duration::ZERO,
                        // Another server should try first.
                        End::L1Lost | End::ChangesLost => pause = LEASE,
                        End::Shutdown | End::Succeeded | End::LeaseLost => {}
                    }
                    trouble.clear();
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != trouble {
                        tracing::warn!(
                            error = text,
                            "L2 did not say which server repairs L1, so this one does not; it keeps asking"
                        );
                        trouble = text;
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Leads until something ends the term. None: it was not this server's turn.
    async fn serve_a_term(
        &self,
        me: &str,
        afresh: bool,
        shutdown: &CancellationToken,
    ) -> Result<Option<End>, StoreError> {
        // A server that cannot repair asks for no lease, only whether another one repairs.
        let (asked, can_repair) = (Instant::now(), self.can_repair());
        let lease = if can_repair { LEASE } else { Duration::ZERO };
        let leadership = self.store.lead(me, lease, None, asked + PATIENCE).await?;
        self.repairs.covers(&leadership, asked);
        if !leadership.held || !can_repair {
            return Ok(None);
        }
        tracing::info!(me, resumes = leadership.position.is_some(), "this server repairs L1 from now on");
        self.repairs.leading.store(true, Relaxed);
        let position = leadership.position.filter(|_| !afresh);
        let end = tokio::select! {
            () = shutdown.cancelled() => End::Shutdown,
            end = self.lead(me, position) => end,
        };
        self.repairs.leading.store(false, Relaxed);
        if let Err(error) = self.store.resign(me, Instant::now() + PATIENCE).await {
            tracing::warn!(%error, "the lease of the repairer could not be given up; it ends by itself after 5 s");
        }
        Ok(Some(end))
    }

    fn can_repair(&self) -> bool {
        self.trust.breaker.is_healthy() && self.reach.borrow().l1 && self.trust.fresh_epoch().is_some()
    }

    async fn lead(&self, me: &str, position: Option<Position>) -> End {
        let (first, second) = match self.open(position).await {
            Ok(passes) => passes,
            Err(FollowError::HistoryLost(reason)) => {
                tracing::warn!(%reason, "L2 no longer has the changes since the stored position of the repairer");
                return End::HistoryLost;
            }
            Err(FollowError::Store(error)) => {
                tracing::warn!(%error, "the changes of L2 cannot be followed");
                return End::ChangesLost;
            }
        };
        let term = Term::new(me, &first, self.settings.repair.second_pass);
        tokio::select! {
            end = self.keep_the_lease(&term) => end,
            end = self.first_pass(&term, first) => end,
            end = self.second_pass(&term, second) => end,
        }
    }

    /// Opens both passes at the stored position; without one, at the present, in a new epoch.
    async fn open(&self, position: Option<Position>) -> Result<(Pass, Pass), FollowError> {
        let resumed = position.is_some();
        // The changes first: what is filled in the new epoch is younger than where they begin.
        let first = Pass::new(self.open_changes(position).await?);
        let second = Pass::at(first.position().clone());
        if !resumed && !self.is_unused_epoch().await && !self.start_cold("changes of L2 may have been missed").await {
            return Err(StoreError::Unavailable("it made no new epoch".into()).into());
        }
        Ok((first, second))
    }

    pub(super) async fn open_changes(&self, after: Option<Position>) -> Result<Box<dyn Changes>, FollowError> {
        let changes = self.store.changes(after, Instant::now() + OPENING).await?;
        changes.ok_or_else(|| StoreError::Unavailable("it has no change stream".into()).into())
    }

    /// Whether the epoch is so young that no server has filled L1 in it.
    async fn is_unused_epoch(&self) -> bool {
        let state = self.store.epoch(Instant::now() + PATIENCE).await;
        state.is_ok_and(|state| state.age < UNUSED_AGE)
    }

    async fn keep_the_lease(&self, term: &Term) -> End {
        let mut held_at = Instant::now();
        loop {
            if !self.trust.breaker.is_healthy() {
                return End::L1Lost;
            }
            let asked = Instant::now();
            match self.store.lead(&term.me, LEASE, Some(term.done()), asked + PATIENCE).await {
                Ok(leadership) if leadership.held => {
                    held_at = asked;
                    self.repairs.covers(&leadership, asked);
                }
                Ok(_) => return End::Succeeded,
                Err(_) if held_at.elapsed() > LEASE => return End::LeaseLost,
                Err(_) => {} // the watcher of L2 logs it
            }
            // More often than the lease is renewed: without L1 a server should not keep it.
            for _ in 0..5 {
                tokio::time::sleep(INTERVAL / 5).await;
                if !self.trust.breaker.is_healthy() {
                    return End::L1Lost;
                }
            }
        }
    }
}
