//! How long one call waits for L1 over all its steps: `l1.timeout` once, and a little more for each key of each step. So an
//! L1 that stalls costs a call that timeout once, at whichever step it meets it.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use super::{
    meter::{Meter, Operation},
    pace::Pace,
};

/// What each key may add to a step.
const PER_KEY: Duration = Duration::from_micros(50);
/// The clock's grain: less is nothing.
const GRAIN: Duration = Duration::from_millis(1);

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

    /// Does a step of so many keys, which is told its deadline. None: nothing was left, and it was not begun.
    pub(super) async fn step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        keys: usize,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        let (answer, took) = self.timed(operation, keys, step).await?;
        self.pace.took(took);
        Some(answer)
    }

    /// A `step` that may wait for replicas (`l1.wait_replicas`: MARK, a SETTLE that fills nothing, a removal), which shows
    /// their pace rather than L1's.
    pub(super) async fn waiting_step<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        keys: usize,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<T> {
        Some(self.timed(operation, keys, step).await?.0)
    }

    /// Does a step, and takes what it took from what is left.
    async fn timed<T, F: Future<Output = T>>(
        &mut self,
        operation: Operation,
        keys: usize,
        step: impl FnOnce(Instant) -> F,
    ) -> Option<(T, Duration)> {
        if self.left().is_zero() {
            return None;
        }
        let (began, extra) = (Instant::now(), for_keys(keys));
        let answer = step(began + self.left + extra).await;
        let elapsed = began.elapsed();
        self.meter.took(operation, elapsed);
        let took = elapsed.saturating_sub(extra);
        self.left = self.left.saturating_sub(took);
        Some((answer, took))
    }
}

/// What so many keys may add to a step.
pub(super) fn for_keys(keys: usize) -> Duration {
    PER_KEY.saturating_mul(u32::try_from(keys).unwrap_or(u32::MAX))
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
        assert!(patience.step(Operation::Get, 1, |_| sleep(Duration::from_millis(20))).await.is_some());
        assert!(patience.step(Operation::Get, 1, sleep_until).await.is_some());
        assert!(patience.step(Operation::Get, 1, sleep_until).await.is_none());
        assert!(start.elapsed() <= whole + 2 * for_keys(1) + 2 * GRAIN, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_have_time_of_their_own() {
        let (pace, meter) = (Pace::new(Duration::from_millis(20)), Meter::new(Operation::L1));
        let mut patience = L1Patience::new(Duration::from_millis(50), &pace, &meter);
        assert!(patience.step(Operation::Get, 1000, |_| sleep(Duration::from_millis(50))).await.is_some());
        assert_eq!(patience.left(), Duration::from_millis(50));
    }
}
