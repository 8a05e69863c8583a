//! A count that only grows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::shard::{self, Apart, SHARDS};

/// Counts events. Adding costs one atomic addition on a cache line that other threads rarely touch.
#[derive(Debug, Default)]
pub struct Counter([Apart<AtomicU64>; SHARDS]);

impl Counter {
    /// Adds to the count. Returns what this thread, and those that share its shard, had counted
    /// before.
    pub fn add(&self, count: usize) -> u64 {
        self.0[shard::mine()].0.fetch_add(count as u64, Relaxed)
    }

    /// The count since the start.
    pub fn get(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| (0..1000).for_each(|_| _ = counter.add(2)));
            }
        });
        assert_eq!(counter.get(), 64_000);
    }
}
