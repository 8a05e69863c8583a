//! L1 in this process.
