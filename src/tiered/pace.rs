//! Whether L1 is too slow for reads: for a second more than one in a hundred of its commands took longer than `l1.slow`.
//! Then reads leave it alone, until for some seconds no more than that were. Writes go on as ever, as they must tell it.
//!
//! But only while L2 was measured to be faster: where the share of its reads beyond the limit is no smaller, the whole machine
//! or network is slow, and all reads at L2 would keep it so, also when what began it is long over (a metastable failure,
//! Bronson et al., HotOS 2021). An L2 that is hardly asked, as L1 has nearly everything, is probed first.
//!
//! Not here: what a command was asked to do, its keys and bytes, which is taken off before it is judged (`patience`); an L1 that
//! does not answer, which is the breaker's; and commands that may wait for replicas, whose pace is not L1's (`patience`).

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{Tiered, meter::Operation, patience::Load};
use crate::{
    cache::CacheKey,
    record::{EntityId, FeatureView, RecordKey},
    store::ReadConcern,
};

/// Commands are judged by the half second.
const SLICE: Duration = Duration::from_millis(500);
/// Fewer commands tell nothing of a slice.
const FEWEST: u32 = 50;
/// So many slow slices in a row make it slow: one hiccup, however many commands it holds up, is none.
const SLOW_SLICES: u32 = 2;
/// So many fast slices in a row make it fast again: longer, so that it does not flap.
const FAST_SLICES: u32 = 6;
/// Commands of our own a slice while no reads come. Of L2 at least so many reads must have been seen to say that it is faster.
const PROBES: u32 = 5;
/// How long a probe of L2 may take.
const L2_PROBE: Duration = Duration::from_secs(1);

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

    /// A command took this long, apart from what its many keys and bytes took.
    pub(super) fn took(&self, duration: Duration) {
        self.commands.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_commands.fetch_add(1, Relaxed);
        }
    }

    /// Commands of this slice, and how many of them were slow.
    #[cfg(test)]
    pub(super) fn seen(&self) -> (u32, u32) {
        (self.commands.load(Relaxed), self.slow_commands.load(Relaxed))
    }

    /// A read of L2 took this long, apart from what its bytes took.
    pub(super) fn l2_took(&self, duration: Duration) {
        self.l2_reads.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_l2_reads.fetch_add(1, Relaxed);
        }
    }

    /// Whether this slice may end with a change, and L2 was asked too seldom to be compared with.
    fn needs_l2(&self) -> bool {
        let (commands, slow) = (self.commands.load(Relaxed), self.slow_commands.load(Relaxed));
        let is_in_question = self.is_slow() || (commands >= FEWEST && is_slow_share(slow, commands));
        is_in_question && self.l2_reads.load(Relaxed) < PROBES
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
        let is_l2_faster =
            l2_reads >= PROBES && u64::from(slow_l2) * u64::from(commands) < u64::from(slow) * u64::from(l2_reads);
        let is_slow_slice = is_slow_share(slow, commands) && is_l2_faster;
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

/// More than one in a hundred, so the 99 % rank is beyond the limit. By the same measure it is fast again: of many commands a
/// few are slow at any time.
fn is_slow_share(slow: u32, commands: u32) -> bool {
    u64::from(slow) * 100 > u64::from(commands)
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
                self.probe_l1_pace().await;
            }
            if self.pace.needs_l2() {
                self.probe_l2_pace().await;
            }
            self.pace.end_slice(lag);
        }
    }

    /// Looks up a few keys that need not be there.
    async fn probe_l1_pace(&self) {
        let Some(state) = self.trust.epoch() else { return };
        let mut patience = self.l1_patience();
        for key in (0..PROBES).filter_map(probe_key) {
            let keys = [CacheKey::new(state.epoch, &key)];
            patience.step(Operation::Get, Load::of(1), |by| self.cache.get(&keys, by)).await;
        }
    }

    /// Reads a few keys from L2 that need not be there, where it is asked at all. What fails is no fast answer.
    async fn probe_l2_pace(&self) {
        if !self.l2_breaker.is_healthy() {
            return;
        }
        for key in (0..PROBES).filter_map(probe_key) {
            // Readers come first.
            let Some(_place) = self.l2_reads.try_enter() else { return };
            let began = Instant::now();
            let states = self.store.read(&[key], ReadConcern::Majority, began + L2_PROBE).await;
            if states.iter().any(Result::is_err) {
                (0..PROBES).for_each(|_| self.pace.l2_took(Duration::MAX));
                return;
            }
            self.pace.l2_took(began.elapsed());
        }
    }
}

fn probe_key(number: u32) -> Option<RecordKey> {
    let (view, entity_id) = (FeatureView::parse("").ok()?, EntityId::parse(&format!("pace {number}")).ok()?);
    Some(RecordKey { view, entity_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    /// A slice in which L2 was seen to be fast, if it was not seen otherwise.
    fn slice(pace: &Pace, fast: u32, slow: u32) -> bool {
        let seen = pace.l2_reads.load(Relaxed);
        (seen..PROBES).for_each(|_| pace.l2_took(LIMIT));
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
    fn an_l2_that_was_hardly_asked_is_not_taken_for_faster() {
        let pace = Pace::new(LIMIT);
        let unmeasured = |slow: u32| {
            (0..100).for_each(|_| pace.took(LIMIT * 2));
            (1..PROBES).for_each(|_| pace.l2_took(LIMIT));
            assert!(pace.needs_l2());
            (0..slow).for_each(|_| pace.l2_took(LIMIT * 2));
            pace.end_slice(Duration::ZERO);
            pace.is_slow()
        };
        assert!((0..10).all(|_| !unmeasured(0)));
        assert!(!unmeasured(1));
        assert!(unmeasured(1), "most of its reads were faster");
        assert!((1..FAST_SLICES).all(|_| unmeasured(0)));
        assert!(!unmeasured(0), "it is no longer known to be");
        assert!(!slice(&pace, 100, 0) && !pace.needs_l2(), "there is no question");
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
            (0..PROBES).for_each(|_| pace.l2_took(LIMIT));
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
