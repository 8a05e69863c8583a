//! L1 in Redis.
