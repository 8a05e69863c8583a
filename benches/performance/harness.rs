//! What the bench shares with the tests: a child process that never outlives it, however it ends; a collector of traces.

#![allow(unreachable_pub, dead_code, reason = "the tests' own, who need more of it")]

#[path = "../../tests/it/harness/collector.rs"]
pub(crate) mod collector;
#[path = "../../tests/it/harness/process.rs"]
pub(crate) mod process;
