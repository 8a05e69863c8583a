//! How long one call waits for L1 over all its steps: `l1.timeout` once, and a little more for the
//! load of each step (`Load`). So an L1 that stalls costs a call this timeout once.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use super::{
    meter::{Meter, Operation},
    pace::Pace,
};
use crate::cache::{CacheError, CacheValue};

/// How much longer a step may take for each key.
const PER_KEY: Duration = Duration::from_micros(50);
/// The resolution of the timers: less than this counts as nothing.
const GRAIN: Duration = Duration::from_millis(1);

/// The keys and bytes of a step. It may take longer for them: 50 us for each key or 10 ns for each
/// byte, whichever is more. So records below 5 KB count by number, and larger ones by bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    keys: usize,
    bytes: usize,
}

impl Load {
    pub(super) fn of(keys: usize) -> Self {
        Self { keys, bytes: 0 }
    }

    /// Adds the bytes that the step sends or receives.
    pub(super) fn with_bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// How much longer a step of this load may take.
    pub(super) fn time(self) -> Duration {
        let of_keys = PER_KEY.saturating_mul(u32::try_from(self.keys).unwrap_or(u32::MAX));
        of_keys.max(crate::cache::time_to_move(self.bytes))
    }
}

/// The size of the record in a value; 0 for an absent one.
pub(super) fn value_bytes(value: &CacheValue) -> usize {
    match value {
        CacheValue::Record(record) => record.as_bytes().len(),
        CacheValue::Absent(_) => 0,
    }
}

/// What a reply brought, to judge how fast L1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    Bytes(usize),
    /// It waited behind a large reply to another call, so its time does not show how fast L1 is.
    StoodBehind,
}

impl Brought {
    /// What these replies brought; `bytes` is the size of each.
    pub(super) fn by<T>(answers: &[Result<T, CacheError>], bytes: impl Fn(&T) -> usize) -> Self {
        match answers.first() {
            Some(Err(CacheError::Behind)) => Self::StoodBehind,
            _ => Self::Bytes(answers.iter().flatten().map(bytes).sum()),
        }
    }
}

/// The time that a call may still wait for L1.
#[derive(Debug)]
pub(super) struct L1Patience<'a> {
    left: Duration,
    pace: &'a Pace,
    meter: &'a Meter,
}

impl<'a> L1Patience<'a> {
    /// `left` is the whole time of the call. Its steps are counted in `pace` and `meter`.
    pub(super) fn new(left: Duration, pace: &'a Pace, meter: &'a Meter) -> Self {
        Self { left, pace, meter }
    }

    /// What is left. Zero: no step is begun any more.
    pub(super) fn left(&self) -> Duration {
        if self.left < GRAIN { Duration::ZERO } else { self.left }
    }

    /// A flight has waited for L1 on behalf of the call, and left this much.
    pub(super) fn at_most(&mut self, left: Duration) {
        self.left = self.left.min(left);
    }

    /// Runs a step of this load until its deadline, which `step` gets. None: no time was left, and
    /// it was not begun.
    pub(super) async fn step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        self.step_bringing(operation, load, |_| Brought::Bytes(0), step).await
    }

    /// A `step` whose reply may be larger than expected. `brought` is asked only about a step that
    /// took long.
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

    /// A `step` that may wait for replicas (`l1.wait_replicas`: MARK, a SETTLE that fills nothing,
    /// a removal). Its time does not count in `pace`, as it shows how fast the replicas are.
    pub(super) async fn waiting_step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        load: Load,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        Some(self.timed(operation, load, |_| 0, step).await?.0)
    }

    /// Runs a step, and subtracts its time from what is left.
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
        assert_eq!(slow(Load::of(4), Brought::Bytes(4 << 10)).await, (true, (1, 1)), "slow for small records");
        assert_eq!(slow(Load::of(4), Brought::Bytes(5 * MIB)).await, (false, (1, 0)));
        assert_eq!(slow(Load::of(4).with_bytes(5 * MIB), Brought::Bytes(0)).await, (false, (1, 0)));
        assert_eq!(slow(Load::of(4), Brought::StoodBehind).await, (true, (0, 0)), "it does not show how fast L1 is");
    }
}
