//! All integration tests, in one binary: contract suites, behaviour through gRPC, scenarios.

mod access;
mod architecture;
mod binary;
mod cache_contract;
#[cfg(all(feature = "redis", feature = "mongodb"))]
mod clocks;
#[cfg(feature = "mongodb")]
mod counting;
#[cfg(feature = "mongodb")]
mod deploy;
mod docs;
mod durability;
mod edge;
#[cfg(feature = "mongodb")]
mod elections;
mod harness;
#[cfg(feature = "mongodb")]
mod health;
#[cfg(feature = "mongodb")]
mod history;
#[cfg(feature = "redis")]
mod lacking;
mod model;
#[cfg(feature = "mongodb")]
mod mongodb_store;
#[cfg(feature = "mongodb")]
mod observability;
#[cfg(feature = "mongodb")]
mod outages;
mod protocol;
#[cfg(feature = "mongodb")]
mod repair;
mod service;
#[cfg(all(feature = "mongodb", feature = "otel"))]
mod soak;
mod store_contract;
#[cfg(all(feature = "redis", feature = "mongodb"))]
mod stored_bytes;
#[cfg(feature = "mongodb")]
mod tour;
#[cfg(all(feature = "mongodb", feature = "otel"))]
mod traces;
