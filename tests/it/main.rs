//! All integration tests, in one binary: contract suites, behaviour through gRPC, scenarios.

mod cache_contract;
mod harness;
mod store_contract;
