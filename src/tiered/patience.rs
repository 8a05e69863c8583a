//! How long one call waits for L1 over all its steps: `l1.timeout` once, and a little more for what each step is asked to do
//! (`Load`). So an L1 that stalls costs a call that timeout once, at whichever step it meets it.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use super::{
    meter::{Meter, Operation},
    pace::Pace,
};
use crate::cache::{CacheError, CacheValue};

/// What each key may add to a step.
const PER_KEY: Duration = Duration::from_micros(50);
/// The clock's grain: less is nothing.
const GRAIN: Duration = Duration::from_millis(1);

/// How much a step is asked to do. It may take so much longer: 50 us a key, or what moving its bytes takes if that is more.
/// So records below 5 KB count by their number, and larger ones by their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    keys: usize,
    bytes: usize,
}

impl Load {
    /// Of so many keys.
    pub(super) fn of(keys: usize) -> Self {
        Self { keys, bytes: 0 }
    }

    /// Of so many bytes too, sent or brought.
    pub(super) fn with_bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Of those bytes.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// What it may add to a step.
    pub(super) fn time(self) -> Duration {
        let of_keys = PER_KEY.saturating_mul(u32::try_from(self.keys).unwrap_or(u32::MAX));
        of_keys.max(crate::cache::time_to_move(self.bytes))
    }
}

/// The bytes of a value.
pub(super) fn value_bytes(value: &CacheValue) -> usize {
    match value {
        CacheValue::Record(record) => record.as_bytes().len(),
        CacheValue::Absent(_) => 0,
    }
}

/// What a step brought, as far as it says something of L1's pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// So many bytes.
    Bytes(usize),
    /// Nothing, as it waited behind somebody else's large answer.
    StoodBehind,
}

impl Brought {
    /// Of the answers to a step, by the bytes of each.
    pub(super) fn by<T>(answers: &[Result<T, CacheError>], bytes: impl Fn(&T) -> usize) -> Self {
        match answers.first() {
            Some(Err(CacheError::Behind)) => Self::StoodBehind,
            _ => Self::Bytes(answers.iter().flatten().map(bytes).sum()),
        }
    }
}

/// What is left of a call's time for L1.
#[derive(Debug)]
pub(super) struct L1Patience<'a> {
    left: Duration,
    pace: &'a Pace,
    meter: &'a Meter,
}

impl<'a> L1Patience<'a> {
    /// That of a call which may still wait so long; its steps show L1's pace, and are timed.
    pub(super) fn new(left: Duration, pace: &'a Pace, meter: &'a Meter) -> Self {
        Self { left, pace, meter }
    }

    /// What is left; zero where no step is begun any more.
    pub(super) fn left(&self) -> Duration {
        if self.left < GRAIN { Duration::ZERO } else { self.left }
    }

    /// Others have waited on its behalf, and left no more than this.
    pub(super) fn at_most(&mut self, left: Duration) {
        self.left = self.left.min(left);
    }

    /// Does a step of this load, which is told its deadline. None: nothing was left, and it was not begun.
    pub(super) async fn step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        self.step_bringing(operation, load, |_| Brought::Bytes(0), step).await
    }

    /// A `step` that may bring more bytes than expected, as `brought` says. It is asked only about a step that took long.
    pub(super) async fn step_bringing<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        brought: impl FnOnce(&T) -> Brought,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        let mut stood_behind = false;
        let weigh = |answer: &T| match brought(answer) {
            Brought::Bytes(bytes) => bytes,
            Brought::StoodBehind => {
                stood_behind = true;
                0
            }
        };
        let (answer, took) = self.timed(operation, load, weigh, step).await?;
        if !stood_behind {
            self.pace.took(took);
        }
        Some(answer)
    }

    /// A `step` that may wait for replicas (`l1.wait_replicas`: MARK, a SETTLE that fills nothing, a removal), which shows
    /// their pace rather than L1's.
    pub(super) async fn waiting_step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        Some(self.timed(operation, load, |_| 0, step).await?.0)
    }

    /// Does a step, and takes what it took from what is left.
    async fn timed<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        brought: impl FnOnce(&T) -> usize,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<(T, Duration)> {
        if self.left().is_zero() {
            return None;
        }
        let (began, mut extra) = (Instant::now(), load.time());
        let answer = step(began + self.left + extra).await;
        let elapsed = began.elapsed();
        self.meter.took(operation, elapsed);
        if elapsed > extra {
            extra = extra.max(load.with_bytes(brought(&answer)).time());
        }
        let took = elapsed.saturating_sub(extra);
        self.left = self.left.saturating_sub(took);
        Some((answer, took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{sleep, sleep_until};

    #[tokio::test(start_paused = true)]
    async fn the_steps_of_a_call_share_one_timeout() {
        let (start, whole) = (Instant::now(), Duration::from_millis(50));
        let (pace, meter) = (Pace::new(whole), Meter::new(Operation::L1));
        let mut patience = L1Patience::new(whole, &pace, &meter);
        assert!(patience.step(Operation::Get, Load::of(1), |_| sleep(Duration::from_millis(20))).await.is_some());
        assert!(patience.step(Operation::Get, Load::of(1), sleep_until).await.is_some());
        assert!(patience.step(Operation::Get, Load::of(1), sleep_until).await.is_none());
        assert!(start.elapsed() <= whole + 2 * Load::of(1).time() + 2 * GRAIN, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_have_time_of_their_own() {
        let (pace, meter) = (Pace::new(Duration::from_millis(20)), Meter::new(Operation::L1));
        let mut patience = L1Patience::new(Duration::from_millis(50), &pace, &meter);
        assert!(patience.step(Operation::Get, Load::of(1000), |_| sleep(Duration::from_millis(50))).await.is_some());
        assert_eq!(patience.left(), Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_have_time_of_their_own_whether_they_were_expected_or_not() {
        const LIMIT: Duration = Duration::from_millis(20);
        const MIB: usize = 1 << 20;
        let meter = Meter::new(Operation::L1);
        let slow = async |load: Load, brought: Brought| {
            let pace = Pace::new(LIMIT);
            let mut patience = L1Patience::new(Duration::from_millis(50), &pace, &meter);
            let step = |_| sleep(Duration::from_millis(45));
            assert!(patience.step_bringing(Operation::Get, load, |()| brought, step).await.is_some());
            (patience.left() < Duration::from_millis(50), pace.seen())
        };
        assert_eq!(slow(Load::of(4), Brought::Bytes(4 << 10)).await, (true, (1, 1)), "of small records it is slow");
        assert_eq!(slow(Load::of(4), Brought::Bytes(5 * MIB)).await, (false, (1, 0)));
        assert_eq!(slow(Load::of(4).with_bytes(5 * MIB), Brought::Bytes(0)).await, (false, (1, 0)));
        assert_eq!(slow(Load::of(4), Brought::StoodBehind).await, (true, (0, 0)), "it says nothing of L1's pace");
    }
}
