//! What tests stand on: real servers on free ports in temporary folders, ended with the test binary.

#![allow(dead_code, unreachable_pub, reason = "each test uses what it needs")]

#[cfg(feature = "mongodb")]
pub mod backends;
pub mod binary;
pub mod certificates;
pub mod client;
#[cfg(feature = "otel")]
pub mod collector;
pub mod faulty;
#[cfg(feature = "mongodb")]
pub mod guarded;
#[cfg(feature = "mongodb")]
pub mod mongod;
#[cfg(feature = "mongodb")]
pub mod mongod_set;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod redis_cluster;
pub mod sentinel;
pub mod server;
pub mod tls;
pub mod tools;
