//! An online feature store: L1 (Redis, or a cache in this process) in front of L2 (MongoDB, or an
//! embedded store on disk), behind gRPC.
//!
//! `docs/architecture.md` explains how the parts work together, and why.
//!
//! The modules in reading order. Each imports only from those above it, and from `config` and
//! `telemetry`; `tests/it/architecture.rs` checks this.
//!
//! - [`metrics`], [`trace`]: counters, histograms and their text form; the spans of calls and of
//!   what they ask of backends.
//! - [`in_flight`]: the calls and bytes that are in flight, and their bounds.
//! - `peer`: asks a backend's address which protocol it speaks, after a connection failed.
//! - [`proto`]: the generated code, and messages written by hand.
//! - [`record`]: feature views, entity ids, records, revisions, and the stored bytes of a record.
//! - [`cache`]: the contract of L1, the entry state machine, L1 in process and in Redis.
//! - [`store`]: the contract of L2, L2 on disk and in MongoDB.
//! - [`tiered`]: the coherence protocol over a cache and a store.
//! - [`access`]: who calls, and what they may do.
//! - [`api`]: the gRPC service: requests in, rows and status codes out.
//! - [`server`]: from a listener to the service: connections, deadlines, health, reflection, drain.
//! - [`config`], [`telemetry`], [`app`]: settings; logs and traces; how a server is put together.
//!
//! Invariants:
//!
//! 1. `redis` is named only under `cache::redis`, `mongodb` and `bson` only under `store::mongodb`,
//!    `tonic` only in `api`, `server`, `proto` and the command.
//! 2. `tiered` does not know which engine is behind a trait.
//! 3. Absence is data, failure is an error, and no code turns one into the other.
//! 4. An L1 failure alone never fails a request.
//! 5. Every await on a backend is bounded in time, and every queue and batch in size.
//! 6. There are no mutable globals. Shutdown and clocks are passed in.
//! 7. A write is never stopped half way, and a future of the MongoDB driver is never dropped.

pub mod access;
pub mod api;
pub mod app;
pub mod cache;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod in_flight;
pub mod metrics;
#[cfg(any(feature = "redis", feature = "mongodb"))]
mod peer;
pub mod proto;
pub mod record;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tiered;
pub mod trace;
