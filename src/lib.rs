//! An online feature store: L1 (Redis or in process) in front of L2 (MongoDB or embedded on disk), behind gRPC.
//!
//! `docs/architecture.md` explains how the parts work together, and why.
//!
//! The modules in reading order; each imports only from those above it, plus `config` and `telemetry` (a test holds
//! it):
//!
//! - [`metrics`], [`trace`]: counters, histograms and their text; the spans of calls and of what they ask of backends.
//! - [`in_flight`]: the places of calls and the bytes that they hold, counted against their bounds.
//! - `peer`: what answers at a backend's address, asked when no connection comes about.
//! - [`proto`]: the generated code.
//! - [`record`]: feature views, entity ids, records, revisions, and the stored bytes of a record.
//! - [`cache`]: the contract of L1, the entry state machine, L1 in process and in Redis.
//! - [`store`]: the contract of L2, L2 on disk and in MongoDB.
//! - [`tiered`]: the coherence protocol over a cache and a store.
//! - [`access`]: who calls, and what they may do.
//! - [`api`]: the gRPC service: requests in, rows and status codes out.
//! - [`server`]: from a listener to the service: connections, deadlines, health, reflection, drain.
//! - [`config`], [`telemetry`], [`app`]: settings, logs and traces, and the composition of it all.
//!
//! Invariants:
//!
//! 1. `redis` is named only under `cache::redis`, `mongodb` and `bson` only under `store::mongodb`, `tonic` only in `api`,
//!    `server`, `proto` and the command.
//! 2. `tiered` cannot see which engine is behind a trait.
//! 3. Absence is data, failure is an error; nothing turns one into the other.
//! 4. An L1 failure never fails a request by itself.
//! 5. Every await on a backend is bounded in time, every queue and batch in size.
//! 6. No mutable globals; shutdown and clocks are passed in.
//! 7. A write's future is never dropped half way, and a MongoDB driver future is never dropped at all.

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
