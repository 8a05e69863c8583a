//! Whether L1 is too slow for reads: for a second, more than one in a hundred commands took longer
//! than `l1.slow`. Then reads bypass it, until for three seconds no more than one in a hundred did.
//! Writes go on, as L1 must learn of them.
//!
//! Reads bypass it only while L2 was measured to be faster. If the share of slow reads is no
//! smaller in L2, the whole machine or network is slow, and sending all reads to L2 would keep it
//! slow after the cause is over (a metastable failure, Bronson et al., HotOS 2021). If L2 gets few
//! reads, because L1 has nearly everything, it is probed first.
//!
//! Not here: the time for the keys and bytes of a command, which `patience` subtracts; an L1 that
//! does not answer (`breaker`); and commands that may wait for replicas, which do not show how fast
//! L1 is (`patience`).

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

/// The commands of each half second are judged together.
const SLICE: Duration = Duration::from_millis(500);
/// With fewer commands in a slice, L1 is not found to be slow.
const FEWEST: u32 = 50;
/// This many slow slices in a row make L1 slow, so that one delay does not, however many commands
/// it holds up.
const SLOW_SLICES: u32 = 2;
/// This many fast slices in a row make L1 fast again; more, so that the mode does not change to and
/// fro.
const FAST_SLICES: u32 = 6;
/// Probes in a slice while L1 is slow and gets no reads; also the fewest reads of L2 that show
/// whether it is faster.
const PROBES: u32 = 5;
/// How long a probe of L2 may take.
const L2_PROBE: Duration = Duration::from_secs(1);

/// How fast L1 answers, compared with L2.
#[derive(Debug)]
pub struct Pace {
    limit: Duration,
    commands: AtomicU32,
    slow_commands: AtomicU32,
    /// Reads of L2, judged by the same limit.
    l2_reads: AtomicU32,
    slow_l2_reads: AtomicU32,
    is_slow: AtomicBool,
    /// The slices in a row that would change the mode.
    streak: AtomicU32,
}

impl Pace {
    pub(super) fn new(limit: Duration) -> Self {
        let [commands, slow_commands, l2_reads, slow_l2_reads, streak] = Default::default();
        let is_slow = AtomicBool::new(false);
        Self { limit, commands, slow_commands, l2_reads, slow_l2_reads, is_slow, streak }
    }

    /// Whether reads bypass L1.
    pub fn is_slow(&self) -> bool {
        self.is_slow.load(Relaxed)
    }

    /// Counts a command that took this long, without the time for its keys and bytes.
    pub(super) fn took(&self, duration: Duration) {
        self.commands.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_commands.fetch_add(1, Relaxed);
        }
    }

    /// The commands of this slice, and how many of them were slow.
    #[cfg(test)]
    pub(super) fn seen(&self) -> (u32, u32) {
        (self.commands.load(Relaxed), self.slow_commands.load(Relaxed))
    }

    /// Counts a read of L2 that took this long, without the time for its bytes.
    pub(super) fn l2_took(&self, duration: Duration) {
        self.l2_reads.fetch_add(1, Relaxed);
        if duration > self.limit {
            self.slow_l2_reads.fetch_add(1, Relaxed);
        }
    }

    /// Whether this slice may change the mode, and there were too few reads of L2 to compare with.
    fn needs_l2(&self) -> bool {
        let (commands, slow) = (self.commands.load(Relaxed), self.slow_commands.load(Relaxed));
        let is_in_question = self.is_slow() || (commands >= FEWEST && is_slow_share(slow, commands));
        is_in_question && self.l2_reads.load(Relaxed) < PROBES
    }

    /// Ends a slice. `lag` is by how much this process woke too late: then it was slow itself, and
    /// the slice is ignored.
    fn end_slice(&self, lag: Duration) {
        let (commands, slow) = (self.commands.swap(0, Relaxed), self.slow_commands.swap(0, Relaxed));
        let (l2_reads, slow_l2) = (self.l2_reads.swap(0, Relaxed), self.slow_l2_reads.swap(0, Relaxed));
        if lag > self.limit / 2 {
            // It counts neither for a change nor against one.
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
                false => tracing::warn!(
                    slow,
                    commands,
                    limit = ?self.limit,
                    "L1 is slow: reads bypass it and go to L2 until it is fast again"
                ),
                true => tracing::info!(
                    slow,
                    commands,
                    slow_l2,
                    l2_reads,
                    "L1 is fast again, or L2 is no faster: reads use L1 again"
                ),
            }
        }
    }
}

/// More than one in a hundred, so the 99th percentile is beyond the limit. The same share makes L1
/// fast again, as of many commands a few are always slow.
fn is_slow_share(slow: u32, commands: u32) -> bool {
    u64::from(slow) * 100 > u64::from(commands)
}

impl Tiered {
    /// Whether L1 is too slow for reads.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Judges L1 after each slice; never ends.
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

    /// Looks up a few keys in L1, which need not exist.
    async fn probe_l1_pace(&self) {
        let Some(state) = self.trust.epoch() else { return };
        let mut patience = self.l1_patience();
        for key in (0..PROBES).filter_map(probe_key) {
            let keys = [CacheKey::new(state.epoch, &key)];
            patience.step(Operation::Get, Load::of(1), |by| self.cache.get(&keys, by)).await;
        }
    }

    /// Reads a few keys from L2, which need not exist, if its breaker is closed. A failure counts
    /// as slow.
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

    /// A slice in which L2 was fast, unless the test has already counted reads of L2.
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
        assert!(!slice(&pace, 99, 1), "one slow slice is not enough");
        assert!(!slice(&pace, 0, 1000));
        assert!(slice(&pace, 98, 2));
    }

    #[test]
    fn reads_bypass_l1_only_if_l2_is_faster() {
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
        assert!(slice(&pace, 100, 100), "now L2 is faster");
        for _ in 1..FAST_SLICES {
            l2(0, 100);
            assert!(slice(&pace, 1, 99));
        }
        l2(0, 100);
        assert!(!slice(&pace, 1, 99), "under all reads L2 is not faster");
    }

    #[test]
    fn an_l2_with_few_reads_does_not_count_as_faster() {
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
        assert!(unmeasured(1), "most of the reads of L2 were faster");
        assert!((1..FAST_SLICES).all(|_| unmeasured(0)));
        assert!(!unmeasured(0), "L2 is no longer known to be faster");
        assert!(!slice(&pace, 100, 0) && !pace.needs_l2(), "L1 is fast, so L2 need not be compared");
    }

    #[test]
    fn few_commands_do_not_make_it_slow() {
        let pace = Pace::new(LIMIT);
        assert!((0..10).all(|_| !slice(&pace, 0, FEWEST - 1)));
    }

    #[test]
    fn a_slow_process_does_not_make_l1_slow() {
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
        assert!(pace.is_slow(), "such slices do not make it fast either");
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
        assert!(slice(&pace, 4, 1), "one of five is more than one in a hundred");
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 5, 0)));
        assert!(slice(&pace, 0, 0), "nothing is known");
        assert!((1..FAST_SLICES).all(|_| slice(&pace, 99, 1)), "one slow write in a hundred commands");
        assert!(!slice(&pace, 99, 1));
    }
}
