//! Every L2 keeps the contract of `featurestore::store::Store`.
