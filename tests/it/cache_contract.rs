//! Every L1 keeps the contract of `featurestore::cache::Cache`.
