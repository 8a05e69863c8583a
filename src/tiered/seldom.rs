//! Words of the log that a dead backend would repeat with every call: one each second is enough, and it says how many there
//! were meanwhile.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Between two words.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one word a second through.
#[derive(Debug)]
pub(super) struct Seldom {
    born: Instant,
    /// In ms since `born`; nothing before was said.
    next: AtomicU64,
    unsaid: AtomicU64,
}

impl Default for Seldom {
    fn default() -> Self {
        Self { born: Instant::now(), next: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }
}

impl Seldom {
    /// Whether to say it now, and how many were left unsaid since the last time.
    pub(super) fn now(&self) -> Option<u64> {
        let (now, next) = (self.born.elapsed().as_millis() as u64, self.next.load(Relaxed));
        let after = now + INTERVAL.as_millis() as u64;
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
        let seldom = Seldom::default();
        assert_eq!(seldom.now(), Some(0));
        assert_eq!((seldom.now(), seldom.now()), (None, None));
        tokio::time::advance(INTERVAL).await;
        assert_eq!((seldom.now(), seldom.now()), (Some(2), None));
    }
}
