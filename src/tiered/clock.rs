//! L2's clock as this server knows it. L2 gives records their times, so they expire by its clock.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::trouble::Trouble;
use crate::{
    record::{Clock, Millis},
    store::TimeSeen,
};

/// A skew beyond this is logged.
const NOTABLE: Duration = Duration::from_secs(1);

/// This machine's clock, corrected by the difference to L2's.
pub(super) struct L2Clock {
    local: Clock,
    /// By how many ms L2's clock is ahead of this machine's.
    ahead: AtomicI64,
    logged: Mutex<Trouble>,
}

impl L2Clock {
    pub(super) fn new(local: Clock) -> Self {
        Self { local, ahead: AtomicI64::new(0), logged: Mutex::default() }
    }

    /// The time by L2's clock, as far as it is known.
    pub(super) fn now(&self) -> Millis {
        Millis(self.local.now().0.saturating_add(self.ahead.load(Relaxed)))
    }

    /// By how many seconds this machine's clock is ahead of L2's.
    pub(super) fn skew(&self) -> f64 {
        -(self.ahead.load(Relaxed) as f64) / 1000.0
    }

    /// Takes the time that L2 returned. A difference that the round trip alone explains counts as
    /// none.
    pub(super) fn see(&self, seen: Option<TimeSeen>) {
        let Some(TimeSeen { time, after, before }) = seen else { return };
        let (local, now) = (self.local.now(), Instant::now());
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let round_trip = millis(before - after);
        // This machine's clock in the middle of the round trip.
        let then = local.0.saturating_sub(millis(now - before)).saturating_sub(round_trip / 2);
        let ahead = time.0.saturating_sub(then);
        let is_known = ahead.abs() > round_trip / 2 + 2; // both clocks are cut off to milliseconds
        let ahead = if is_known { ahead } else { 0 };
        self.ahead.store(ahead, Relaxed);
        self.log(ahead);
    }

    fn log(&self, ahead: i64) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if u128::from(ahead.unsigned_abs()) <= NOTABLE.as_millis() {
            logged.is_over();
        } else if logged.is_news("skew") {
            let (skew, direction) = (ahead.unsigned_abs(), if ahead < 0 { "ahead of" } else { "behind" });
            tracing::warn!(
                "this server's clock is {skew} ms {direction} L2's. Records expire by L2's clock, so answers are \
                 right, but logs of the two machines do not match: check that NTP runs on both"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_difference_beyond_the_round_trip_sets_the_clock() {
        let clock = L2Clock::new(Clock::new(|| Millis(100_000)));
        let seen = |time: i64, round_trip: u64| {
            let before = Instant::now();
            clock.see(Some(TimeSeen { time: Millis(time), after: before - Duration::from_millis(round_trip), before }));
            (clock.now().0, clock.skew())
        };
        assert_eq!(seen(160_000, 0), (160_000, -60.0));
        assert_eq!(seen(40_000, 20), (40_010, 59.99), "L2 read its clock before its reply came back");
        assert_eq!(seen(99_960, 100), (100_000, 0.0), "the round trip may be all of the difference");
        clock.see(None);
        assert_eq!(clock.now().0, 100_000);
    }

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_difference_of_more_than_a_second_is_logged_when_it_begins() {
        let (log, clock) = (Log::default(), L2Clock::new(Clock::new(|| Millis(100_000))));
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let dispatch = tracing::Dispatch::new(subscriber);
        let logged = |time: i64| {
            let now = Instant::now();
            let seen = TimeSeen { time: Millis(time), after: now, before: now };
            tracing::dispatcher::with_default(&dispatch, || clock.see(Some(seen)));
            String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap()
        };
        assert_eq!(logged(101_000), "", "a second is none");
        let behind = logged(101_001);
        assert!(behind.contains("WARN") && behind.contains("this server's clock is 1001 ms behind L2's"), "{behind}");
        assert_eq!(logged(101_001), "", "not again so soon");
        assert_eq!(logged(100_000), "", "it is over");
        let ahead = logged(90_000);
        assert!(ahead.contains("this server's clock is 10000 ms ahead of L2's"), "{ahead}");
    }
}
