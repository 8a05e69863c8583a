//! Shards of a count, so that threads on different cores rarely write to the same cache line.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Shards of everything that is counted on the hot path.
pub(super) const SHARDS: usize = 16;

thread_local! {
    /// By the hash of the thread's id, which needs no shared counter. Two threads on one shard are
    /// slower, but nothing is lost.
    static SHARD: usize = {
        let mut hasher = DefaultHasher::new();
        std::thread::current().id().hash(&mut hasher);
        hasher.finish() as usize % SHARDS
    };
}

pub(super) fn mine() -> usize {
    // A thread that is ending has no thread-local variables any more.
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

/// In cache lines of its own; two, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);
