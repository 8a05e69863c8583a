//! What a tier did since start: counts, and how long its batches took. No locks; Info and metrics read it.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets of latency: four to each doubling, from 1 us up to more than an hour.
const BUCKETS: usize = 4 * 32;

/// Counts of one tier.
#[derive(Debug)]
pub struct Meter {
    hits: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

/// A meter as it stood at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Entities answered.
    pub hits: u64,
    /// Entities not answered.
    pub misses: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Half of the batches were faster.
    pub p50: Duration,
    /// 99 % of the batches were faster.
    pub p99: Duration,
}

impl Reading {
    /// hits / (hits + misses); 0 before the first.
    pub fn hit_ratio(&self) -> f64 {
        let asked = self.hits + self.misses;
        if asked == 0 { 0.0 } else { self.hits as f64 / asked as f64 }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Meter {
    /// A batch was read: so many entities answered, so many not. Answers how many hits there were before.
    pub fn read(&self, hits: usize, misses: usize) -> u64 {
        self.misses.fetch_add(misses as u64, Relaxed);
        self.hits.fetch_add(hits as u64, Relaxed)
    }

    /// A command failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// A batch took this long.
    pub fn took(&self, duration: Duration) {
        self.latency[bucket(duration)].fetch_add(1, Relaxed);
    }

    /// What it shows now.
    pub fn reading(&self) -> Reading {
        let counts: [u64; BUCKETS] = array::from_fn(|i| self.latency[i].load(Relaxed));
        Reading {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            errors: self.errors.load(Relaxed),
            p50: quantile(&counts, 0.5),
            p99: quantile(&counts, 0.99),
        }
    }
}

fn bucket(duration: Duration) -> usize {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2() as usize;
    let quarter = if doubling >= 2 { (micros >> (doubling - 2)) as usize & 3 } else { 0 };
    (doubling * 4 + quarter).min(BUCKETS - 1)
}

/// The upper edge of the bucket that holds the quantile; at most a quarter too high.
fn quantile(counts: &[u64; BUCKETS], share: f64) -> Duration {
    let total: u64 = counts.iter().sum();
    let rank = (total as f64 * share).ceil() as u64;
    let mut seen = 0;
    for (i, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank && total > 0 {
            let (doubling, quarter) = (i / 4, i as u64 % 4);
            return Duration::from_micros(((5 + quarter) << doubling) / 4);
        }
    }
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_a_quarter_too_high() {
        let meter = Meter::default();
        for micros in 1..=1000 {
            meter.took(Duration::from_micros(micros));
        }
        let reading = meter.reading();
        assert!((500..=625).contains(&(reading.p50.as_micros() as u64)), "{reading:?}");
        assert!((990..=1250).contains(&(reading.p99.as_micros() as u64)), "{reading:?}");
        assert_eq!(Meter::default().reading().p99, Duration::ZERO);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_hit_ratio_is_zero_before_the_first_read() {
        let meter = Meter::default();
        assert_eq!(meter.reading().hit_ratio(), 0.0);
        meter.read(3, 1);
        assert_eq!(meter.reading().hit_ratio(), 0.75);
    }
}
