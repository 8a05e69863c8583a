//! What a tier did since start: counts, and how long its batches took. No locks; Info and metrics read it.

use std::time::Duration;

use crate::metrics::{Counter, Distribution, Histogram};

/// What a tier is asked to do, a batch at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// L1: look.
    Get,
    /// L1: ask for leases.
    Acquire,
    /// L1: tell what L2 was seen to hold.
    Settle,
    /// L1: announce writes.
    Mark,
    /// L1: end writes.
    Put,
    /// L1: take writes back.
    Unmark,
    /// L1: remove entries.
    Remove,
    /// L2: read records.
    Read,
    /// L2: write one.
    Write,
    /// L2: write many.
    WriteBatch,
}

impl Operation {
    /// Those of L1.
    pub const L1: &[Self] =
        &[Self::Get, Self::Acquire, Self::Settle, Self::Mark, Self::Put, Self::Unmark, Self::Remove];
    /// Those of L2.
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

/// Counts of one tier.
#[derive(Debug)]
pub struct Meter {
    hits: Counter,
    negative_hits: Counter,
    misses: Counter,
    errors: Counter,
    operations: &'static [Operation],
    /// By operation.
    took: Box<[Histogram]>,
}

/// A meter as it stood at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Entities answered.
    pub hits: u64,
    /// Of those the ones that the tier knew to be absent.
    pub negative_hits: u64,
    /// Entities not answered.
    pub misses: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Half of the batches were faster: in L1 of the looks, in L2 of all.
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

impl Meter {
    /// That of a tier which does these.
    pub(super) fn new(operations: &'static [Operation]) -> Self {
        let (hits, negative_hits, misses, errors) = Default::default();
        let took = operations.iter().map(|_| Histogram::default()).collect();
        Self { hits, negative_hits, misses, errors, operations, took }
    }

    /// A batch was read: so many entities answered (so many of them as absent), so many not. Answers how many hits there
    /// were before, as far as this thread has counted.
    pub fn read(&self, hits: usize, negative_hits: usize, misses: usize) -> u64 {
        // Adding nothing would cost as much.
        if negative_hits > 0 {
            self.negative_hits.add(negative_hits);
        }
        if misses > 0 {
            self.misses.add(misses);
        }
        self.hits.add(hits)
    }

    /// A command failed.
    pub fn failed(&self) {
        self.errors.add(1);
    }

    /// A batch took this long.
    pub fn took(&self, operation: Operation, duration: Duration) {
        let place = operation as usize - self.operations[0] as usize;
        debug_assert_eq!(self.operations[place], operation);
        self.took[place].note(duration);
    }

    /// How long batches took, by operation.
    pub fn durations(&self) -> impl Iterator<Item = (Operation, Distribution)> {
        self.operations.iter().zip(&self.took).map(|(operation, took)| (*operation, took.distribution()))
    }

    /// What it shows now.
    pub fn reading(&self) -> Reading {
        // What users wait for: of L1 each read's look, of L2 whatever it is asked.
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
