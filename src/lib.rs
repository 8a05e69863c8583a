//! An online feature store: L1 (Redis or in process) in front of L2 (MongoDB or embedded on disk), behind gRPC.
//!
//! The modules in reading order:
//!
//! - [`record`]: feature views, entity ids, records, revisions, and the stored bytes of a record.
//! - [`cache`]: the contract of L1 and its implementations.
//! - [`store`]: the contract of L2 and its implementations.

pub mod cache;
pub mod proto;
pub mod record;
pub mod store;
