//! The circuit breaker of a tier. While it is closed (healthy), all calls go to the tier. While it
//! is open (tripped), none do, until the watcher of the tier has probed it successfully.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// Opens after some failures in a row.
#[derive(Debug)]
pub struct Breaker {
    mode: AtomicU8,
    failures: AtomicU32,
    threshold: u32,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is closed: calls go to the tier.
    Healthy,
    /// It is open: no calls go to the tier.
    Tripped,
    /// It is open, except for one probe that is in flight.
    Probing,
}

impl Breaker {
    /// A closed breaker, which opens after this many failures in a row.
    pub fn new(threshold: u32) -> Self {
        Self { mode: AtomicU8::new(0), failures: AtomicU32::new(0), threshold }
    }

    /// The state now.
    pub fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            0 => Mode::Healthy,
            1 => Mode::Tripped,
            _ => Mode::Probing,
        }
    }

    /// Whether it is closed, so that calls may go to the tier.
    pub fn is_healthy(&self) -> bool {
        self.mode() == Mode::Healthy
    }

    /// The tier has answered.
    pub fn succeeded(&self) {
        // Loaded first: a store on each hit would move the cache line between cores.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// The tier has not answered.
    pub fn failed(&self) {
        if self.failures.fetch_add(1, Relaxed) + 1 >= self.threshold {
            self.trip();
        }
    }

    /// Opens it.
    pub fn trip(&self) {
        let _ = self.mode.compare_exchange(0, 1, Relaxed, Relaxed);
    }

    /// A probe was sent.
    pub fn probing(&self) {
        let _ = self.mode.compare_exchange(1, 2, Relaxed, Relaxed);
    }

    /// The probe has ended. Only a successful probe closes the breaker.
    pub fn probed(&self, well: bool) {
        if well {
            self.failures.store(0, Relaxed);
            self.mode.store(0, Relaxed);
        } else {
            self.mode.store(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_after_failures_in_a_row_and_heals_only_by_a_probe() {
        let breaker = Breaker::new(3);
        breaker.failed();
        breaker.failed();
        breaker.succeeded();
        breaker.failed();
        breaker.failed();
        assert!(breaker.is_healthy());
        breaker.failed();
        assert_eq!(breaker.mode(), Mode::Tripped);
        breaker.succeeded();
        assert_eq!(breaker.mode(), Mode::Tripped);
        breaker.probing();
        assert!(!breaker.is_healthy());
        breaker.probed(false);
        assert_eq!(breaker.mode(), Mode::Tripped);
        breaker.probing();
        breaker.probed(true);
        assert!(breaker.is_healthy());
        breaker.failed();
        assert!(breaker.is_healthy());
    }
}
