//! What metrics are made of: counters and histograms that threads count into without meeting, and the text that Prometheus
//! reads.
//!
//! Not here: what is counted. Each module counts what it does (`tiered::meter`, `server::calls`, ...), and
//! `server::metrics` writes all of it down.

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
