//! Whether L1 is too slow for reads: for a second more than one in a hundred of its commands took longer than `l1.slow`.
//! Then reads leave it alone, until for some seconds no more than that were. Writes go on as ever, as they must tell it.
//!
//! But only while L2 is faster: where the share of its reads beyond the limit is no smaller, the whole machine or network is
//! slow, and all reads at L2 would keep it so, also when what began it is long over (a metastable failure, Bronson et al.,
//! HotOS 2021).
//!
//! Not here: an L1 that does not answer, which is the breaker's; and commands that may wait for replicas, whose pace is not
//! L1's (`patience`).

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{Tiered, meter::Operation};
use crate::{
    cache::CacheKey,
    record::{EntityId, FeatureView, RecordKey},
};

/// Commands are judged by the half second.
const SLICE: Duration = Duration::from_millis(500);
/// Fewer commands tell nothing of a slice.
const FEWEST: u32 = 50;
/// So many slow slices in a row make it slow: one hiccup, however many commands it holds up, is none.
const SLOW_SLICES: u32 = 2;
/// So many fast slices in a row make it fast again: longer, so that it does not flap.
const FAST_SLICES: u32 = 6;
/// Commands of our own a slice while no reads come.
const PROBES: usize = 5;

/// How fast L1 is.
#[derive(Debug)]
pub struct Pace {
    limit: Duration,
    commands: AtomicU32,
    slow_commands: AtomicU32,
    /// Of L2, by the same limit.
    l2_reads: AtomicU32,
    slow_l2_reads: AtomicU32,
    is_slow: AtomicBool,
    /// Slices in a row that speak for a change.
    streak: AtomicU32,
}

impl Pace {
    pub(super) fn new(limit: Duration) -> Self {
        let [commands, slow_commands, l2_reads, slow_l2_reads, streak] = Default::default();
        let is_slow = AtomicBool::new(false);
        Self { limit, commands, slow_commands, l2_reads, slow_l2_reads, is_slow, streak }
    }

    /// Whether reads leave L1 alone.
    pub fn is_slow(&self) -> bool {
        self.is_slow.load(Relaxed)
    }

    /// A command took this long, apart from what its many keys took.
    pub(super) fn took(&self, duration: Duration) {
        self.commands.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_commands.fetch_add(1, Relaxed);
        }
    }

    /// A read of L2 took this long.
    pub(super) fn l2_took(&self, duration: Duration) {
        self.l2_reads.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_l2_reads.fetch_add(1, Relaxed);
        }
    }

    /// Ends a slice. `lag`: how much later than asked for this process woke, as its own slowness is not L1's.
    fn end_slice(&self, lag: Duration) {
        let (commands, slow) = (self.commands.swap(0, Relaxed), self.slow_commands.swap(0, Relaxed));
        let (l2_reads, slow_l2) = (self.l2_reads.swap(0, Relaxed), self.slow_l2_reads.swap(0, Relaxed));
        if lag > self.limit / 2 {
            // It speaks neither for a change nor against one.
            return;
        }
        let is_slow = self.is_slow();
        // More than one in a hundred, so the 99 % rank is beyond the limit. By the same measure it is fast again: of many
        // commands a few are slow at any time.
        let is_slow_slice = u64::from(slow) * 100 > u64::from(commands);
        let is_l2_faster =
            l2_reads < FEWEST || u64::from(slow_l2) * u64::from(commands) < u64::from(slow) * u64::from(l2_reads);
        let is_slow_slice = is_slow_slice && is_l2_faster;
        let for_a_change = match is_slow {
            false => commands >= FEWEST && is_slow_slice,
            true => commands > 0 && !is_slow_slice,
        };
        let streak = if for_a_change { self.streak.load(Relaxed) + 1 } else { 0 };
        let enough = if is_slow { FAST_SLICES } else { SLOW_SLICES };
        self.streak.store(streak % enough, Relaxed);
        if streak == enough {
            self.is_slow.store(!is_slow, Relaxed);
            match is_slow {
                false => tracing::warn!(slow, commands, limit = ?self.limit, "L1 is slow: reads leave it alone"),
                true => tracing::info!(
                    slow,
                    commands,
                    slow_l2,
                    l2_reads,
                    "L1 is fast again, or L2 no faster: reads ask it again"
                ),
            }
        }
    }
}

impl Tiered {
    /// How fast L1 is.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Judges L1's pace, slice by slice; never ends.
    pub(super) async fn keep_pace(&self) {
        loop {
            let asleep = Instant::now();
            tokio::time::sleep(SLICE).await;
            let lag = asleep.elapsed().saturating_sub(SLICE);
            if self.pace.is_slow() {
                self.probe_pace().await;
            }
            self.pace.end_slice(lag);
        }
    }

    /// Looks up a few keys that need not be there.
    async fn probe_pace(&self) {
        let (Some(state), Ok(view)) = (self.trust.epoch(), FeatureView::parse("")) else { return };
        let mut patience = self.l1_patience();
        for i in 0..PROBES {
            let Ok(entity_id) = EntityId::parse(&format!("pace {i}")) else { return };
            let keys = [CacheKey::new(state.epoch, &RecordKey { view: view.clone(), entity_id })];
            patience.step(Operation::Get, 1, |by| self.cache.get(&keys, by)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    fn slice(pace: &Pace, fast: u32, slow: u32) -> bool {
        (0..fast).for_each(|_| pace.took(LIMIT));
        (0..slow).for_each(|_| pace.took(LIMIT * 2));
        pace.end_slice(Duration::ZERO);
        pace.is_slow()
    }

    #[test]
    fn it_is_slow_when_more_than_one_in_a_hundred_is_for_two_slices() {
        let pace = Pace::new(LIMIT);
        assert!(!slice(&pace, 99, 1) && !slice(&pace, 99, 1) && !slice(&pace, 99, 1));
        assert!(!slice(&pace, 98, 2));
        assert!(!slice(&pace, 99, 1), "one hiccup");
        assert!(!slice(&pace, 0, 1000));
        assert!(slice(&pace, 98, 2));
    }

    #[test]
    fn where_l2_is_no_faster_l1_is_not_left_alone() {
        let pace = Pace::new(LIMIT);
        let l2 = |fast: u32, slow: u32| {
            (0..fast).for_each(|_| pace.l2_took(LIMIT));
            (0..slow).for_each(|_| pace.l2_took(LIMIT * 2));
        };
        for _ in 0..10 {
            l2(50, 50);
            assert!(!slice(&pace, 100, 100));
        }
        l2(60, 40);
        assert!(!slice(&pace, 100, 100));
        l2(60, 40);
        assert!(slice(&pace, 100, 100), "it is faster");
        for _ in 1..FAST_SLICES {
            l2(0, 100);
            assert!(slice(&pace, 1, 99));
        }
        l2(0, 100);
        assert!(!slice(&pace, 1, 99), "with all reads it is not");
    }

    #[test]
    fn few_commands_tell_nothing() {
        let pace = Pace::new(LIMIT);
        assert!((0..10).all(|_| !slice(&pace, 0, FEWEST - 1)));
    }

    #[test]
    fn a_process_that_is_slow_itself_does_not_blame_l1() {
        let pace = Pace::new(LIMIT);
        for _ in 0..10 {
            (0..100).for_each(|_| pace.took(LIMIT * 2));
            pace.end_slice(LIMIT);
            assert!(!pace.is_slow());
        }
    }

    #[test]
    fn a_slice_of_a_slow_process_breaks_no_streak() {
        let pace = Pace::new(LIMIT);
        let lagging = |fast: u32, slow: u32| {
            (0..fast).for_each(|_| pace.took(LIMIT));
            (0..slow).for_each(|_| pace.took(LIMIT * 2));
            pace.end_slice(LIMIT);
        };
        assert!(!slice(&pace, 0, 100));
        lagging(100, 0);
        assert!(slice(&pace, 0, 100), "the second one in a row");
        for _ in 1..FAST_SLICES {
            assert!(slice(&pace, 100, 0));
            lagging(0, 100);
        }
        (0..10).for_each(|_| lagging(100, 0));
        assert!(pace.is_slow(), "they do not speak for a change either");
        assert!(!slice(&pace, 100, 0));
    }

    #[test]
    fn it_is_fast_again_when_no_more_than_one_in_a_hundred_is_slow_for_a_while() {
        let pace = Pace::new(LIMIT);
        slice(&pace, 0, 100);
        assert!(slice(&pace, 0, 100));
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 5, 0)));
        assert!(slice(&pace, 98, 2), "slow once more");
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 5, 0)));
        assert!(slice(&pace, 4, 1), "one of few is more than that");
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 5, 0)));
        assert!(slice(&pace, 0, 0), "nothing is known");
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 99, 1)), "a write now and then");
        assert!(!slice(&pace, 99, 1));
    }
}
