//! Limits log lines that a tier which is gone would repeat with every call, or that many clients
//! could cause: one line in a while is logged, with the number of those that were not (`unsaid`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Allows one log line in each interval.
#[derive(Debug)]
pub(crate) struct Seldom {
    interval: Duration,
    born: Instant,
    /// When the next line may be logged, in ms since `born`.
    next: AtomicU64,
    unsaid: AtomicU64,
}

impl Seldom {
    /// Allows a line each `interval`.
    pub(crate) fn every(interval: Duration) -> Self {
        Self { interval, born: Instant::now(), next: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }

    /// Some: log the line now, with the number of lines that were not logged since the last one.
    pub(crate) fn now(&self) -> Option<u64> {
        let (now, next) = (self.born.elapsed().as_millis() as u64, self.next.load(Relaxed));
        let after = now + self.interval.as_millis() as u64;
        if now >= next && self.next.compare_exchange(next, after, Relaxed, Relaxed).is_ok() {
            return Some(self.unsaid.swap(0, Relaxed));
        }
        self.unsaid.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_in_a_second_has_the_number_of_those_that_were_not_logged() {
        const INTERVAL: Duration = Duration::from_secs(1);
        let seldom = Seldom::every(INTERVAL);
        assert_eq!(seldom.now(), Some(0));
        assert_eq!((seldom.now(), seldom.now()), (None, None));
        tokio::time::advance(INTERVAL).await;
        assert_eq!((seldom.now(), seldom.now()), (Some(2), None));
    }
}
