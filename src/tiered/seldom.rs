//! Words of the log that a dead backend would repeat with every call, or that many clients could cause: one a while is
//! enough, and it says how many there were meanwhile.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Lets one word a while through.
#[derive(Debug)]
pub(crate) struct Seldom {
    interval: Duration,
    born: Instant,
    /// In ms since `born`; nothing before was said.
    next: AtomicU64,
    unsaid: AtomicU64,
}

impl Seldom {
    /// With so long between two words.
    pub(crate) fn every(interval: Duration) -> Self {
        Self { interval, born: Instant::now(), next: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }

    /// Whether to say it now, and how many were left unsaid since the last time.
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
    async fn one_word_a_second_tells_of_those_left_unsaid() {
        const INTERVAL: Duration = Duration::from_secs(1);
        let seldom = Seldom::every(INTERVAL);
        assert_eq!(seldom.now(), Some(0));
        assert_eq!((seldom.now(), seldom.now()), (None, None));
        tokio::time::advance(INTERVAL).await;
        assert_eq!((seldom.now(), seldom.now()), (Some(2), None));
    }
}
