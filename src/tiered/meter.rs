//! Counts and times of a tier since start, for Info and the metrics. No locks.

use std::time::Duration;

use crate::metrics::{Counter, Distribution, Histogram};

/// The kinds of batches that are sent to a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// L1: look entries up (MGET).
    Get,
    /// L1: ask for leases (ACQUIRE).
    Acquire,
    /// L1: apply what L2 holds (SETTLE).
    Settle,
    /// L1: announce writes (MARK).
    Mark,
    /// L1: end writes (PUT).
    Put,
    /// L1: return permits of failed writes (UNMARK).
    Unmark,
    /// L1: remove entries (DEL).
    Remove,
    /// L2: read records.
    Read,
    /// L2: write one record.
    Write,
    /// L2: write several records.
    WriteBatch,
}

impl Operation {
    /// The operations of L1.
    pub const L1: &[Self] =
        &[Self::Get, Self::Acquire, Self::Settle, Self::Mark, Self::Put, Self::Unmark, Self::Remove];
    /// The operations of L2.
    pub const L2: &[Self] = &[Self::Read, Self::Write, Self::WriteBatch];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Acquire => "acquire",
            Self::Settle => "settle",
            Self::Mark => "mark",
            Self::Put => "put",
            Self::Unmark => "unmark",
            Self::Remove => "remove",
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteBatch => "write_batch",
        }
    }
}

/// Counts and times of one tier.
#[derive(Debug)]
pub struct Meter {
    hits: Counter,
    negative_hits: Counter,
    misses: Counter,
    errors: Counter,
    operations: &'static [Operation],
    /// How long batches took, in the order of `operations`.
    took: Box<[Histogram]>,
}

/// A copy of the counts, for Info.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Entities that the tier answered.
    pub hits: u64,
    /// Those of them that it knew to be absent.
    pub negative_hits: u64,
    /// Entities that it did not have.
    pub misses: u64,
    /// Commands that failed.
    pub errors: u64,
    /// The median of the time of a batch: of `Get` in L1, of all operations in L2.
    pub p50: Duration,
    /// The 99th percentile of the same.
    pub p99: Duration,
}

impl Reading {
    /// hits / (hits + misses); 0 before the first.
    pub fn hit_ratio(&self) -> f64 {
        let asked = self.hits + self.misses;
        if asked == 0 { 0.0 } else { self.hits as f64 / asked as f64 }
    }
}

impl Meter {
    /// A meter for a tier with these operations, which must be in the order of the enum.
    pub(super) fn new(operations: &'static [Operation]) -> Self {
        let (hits, negative_hits, misses, errors) = Default::default();
        let took = operations.iter().map(|_| Histogram::default()).collect();
        Self { hits, negative_hits, misses, errors, operations, took }
    }

    /// Counts the entities of a batch that was read: `hits` (of them `negative_hits` absent) and
    /// `misses`. Returns the hits before it, as far as this thread has counted them.
    pub fn read(&self, hits: usize, negative_hits: usize, misses: usize) -> u64 {
        // Adding zero would cost as much as adding.
        if negative_hits > 0 {
            self.negative_hits.add(negative_hits);
        }
        if misses > 0 {
            self.misses.add(misses);
        }
        self.hits.add(hits)
    }

    /// Counts a command that failed.
    pub fn failed(&self) {
        self.errors.add(1);
    }

    /// Counts a batch that took this long.
    pub fn took(&self, operation: Operation, duration: Duration) {
        let place = operation as usize - self.operations[0] as usize;
        debug_assert_eq!(self.operations[place], operation);
        self.took[place].note(duration);
    }

    /// The times of batches, by operation.
    pub fn durations(&self) -> impl Iterator<Item = (Operation, Distribution)> {
        self.operations.iter().zip(&self.took).map(|(operation, took)| (*operation, took.distribution()))
    }

    /// The counts now.
    pub fn reading(&self) -> Reading {
        // What users wait for: in L1 the lookup of each read, in L2 all operations.
        let shown = self.durations().filter(|(operation, _)| !Operation::L1[1..].contains(operation));
        let took = shown.fold(Distribution::default(), |all, (_, took)| all.and(&took));
        Reading {
            hits: self.hits.get(),
            negative_hits: self.negative_hits.get(),
            misses: self.misses.get(),
            errors: self.errors.get(),
            p50: took.quantile(0.5),
            p99: took.quantile(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hit_ratio_is_zero_before_the_first_read() {
        let meter = Meter::new(Operation::L1);
        assert_eq!(meter.reading().hit_ratio(), 0.0);
        meter.read(3, 1, 1);
        assert_eq!(meter.reading().hit_ratio(), 0.75);
        assert_eq!(meter.reading().negative_hits, 1);
    }

    #[test]
    fn each_operation_is_timed_apart_and_the_quantiles_are_of_what_users_wait_for() {
        let meter = Meter::new(Operation::L1);
        meter.took(Operation::Get, Duration::from_micros(100));
        meter.took(Operation::Remove, Duration::from_secs(1));
        let counts: Vec<u64> = meter.durations().map(|(_, took)| took.count()).collect();
        assert_eq!(counts, [1, 0, 0, 0, 0, 0, 1]);
        assert!(meter.reading().p99 <= Duration::from_micros(125), "{:?}", meter.reading());
        let meter = Meter::new(Operation::L2);
        meter.took(Operation::WriteBatch, Duration::from_millis(1));
        assert!(meter.reading().p50 >= Duration::from_millis(1));
    }
}
