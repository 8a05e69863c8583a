//! The parts of metrics: counters and histograms for many threads, and the text that Prometheus
//! reads.
//!
//! Elsewhere: what is counted. Each module counts what it does (`tiered::meter`, `server::calls`,
//! ...), and `server::metrics` writes all of it.

mod counter;
mod histogram;
mod lost_lines;
mod pool;
mod shard;
mod text;

pub use counter::Counter;
pub use histogram::{Distribution, Histogram};
pub use lost_lines::{Log, LostLines};
pub use pool::PoolReading;
pub use text::{Format, Kind, Text};
