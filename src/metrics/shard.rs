//! Which of several copies a thread counts into, so that threads on different cores rarely meet in one cache line.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Copies of everything that is counted on the hot path.
pub(super) const SHARDS: usize = 16;

thread_local! {
    /// By the thread's id, hashed: no counter of threads is shared. Two threads on one copy are slower, never wrong.
    static SHARD: usize = {
        let mut hasher = DefaultHasher::new();
        std::thread::current().id().hash(&mut hasher);
        hasher.finish() as usize % SHARDS
    };
}

/// This thread's copy.
pub(super) fn mine() -> usize {
    // A thread that is ending has no number any more.
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

/// In cache lines of its own; two, as processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);
