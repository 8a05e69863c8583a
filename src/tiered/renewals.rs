//! How often this server may make a new epoch. Some at once are allowed, because faults come in
//! groups. But if something makes every new epoch useless, the next one would not help either, and
//! each of them empties the cache of all servers.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::seldom::Seldom;

/// How many new epochs may be made at once.
const AT_ONCE: u32 = 10;
/// After those, one may be made in each interval.
const INTERVAL: Duration = Duration::from_secs(10);
/// The least time from one explanation in the log to the next.
const EXPLANATIONS: Duration = Duration::from_secs(60);

/// When the latest new epochs were made.
#[derive(Debug)]
pub(super) struct Renewals {
    /// When the epochs so far would have been made at the rate of one in an `INTERVAL`.
    worked_off: Mutex<Option<Instant>>,
    explanations: Seldom,
}

impl Default for Renewals {
    fn default() -> Self {
        Self { worked_off: Mutex::default(), explanations: Seldom::every(EXPLANATIONS) }
    }
}

impl Renewals {
    /// Whether another one may be made now. The error is the time to wait.
    pub(super) fn next(&self) -> Result<(), Duration> {
        let Some(worked_off) = *self.lock() else { return Ok(()) };
        let left = worked_off.saturating_duration_since(Instant::now());
        let most = INTERVAL * (AT_ONCE - 1);
        if left <= most { Ok(()) } else { Err(left - most) }
    }

    pub(super) fn made(&self) {
        let mut worked_off = self.lock();
        let now = Instant::now();
        *worked_off = Some(worked_off.map_or(now, |at| at.max(now)) + INTERVAL);
    }

    /// Whether to log now that there were too many.
    pub(super) fn is_to_be_logged(&self) -> bool {
        self.explanations.now().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.worked_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_of_new_epochs_is_made_at_once_and_then_one_in_ten_seconds() {
        let renewals = Renewals::default();
        let mut made = 0;
        for _ in 0..599 {
            if renewals.next().is_ok() {
                renewals.made();
                made += 1;
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(made, AT_ONCE + 5, "in just less than a minute");
        assert_eq!(renewals.next(), Err(Duration::from_millis(100)));
        tokio::time::advance(INTERVAL * AT_ONCE).await;
        for _ in 0..AT_ONCE {
            assert_eq!(renewals.next(), Ok(()));
            renewals.made();
        }
        assert_eq!(renewals.next(), Err(INTERVAL));
    }
}
