//! What each RPC requires of its caller. An RPC that is not listed here is denied to everybody, and
//! a test fails.

use super::Right;

/// What a caller needs for an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing, not even a token.
    Open,
    /// A token, whatever its rights are.
    AnyCaller,
    /// A right on the feature view that the request names.
    Needs(Right),
}

/// The most frequent calls come first.
const RULES: [(&str, Rule); 9] = [
    ("/featurestore.v1.FeatureStoreService/GetFeatures", Rule::Needs(Right::Read)),
    ("/featurestore.v1.FeatureStoreService/UpsertFeatures", Rule::Needs(Right::Write)),
    ("/featurestore.v1.FeatureStoreService/BulkUpsert", Rule::Needs(Right::Write)),
    ("/featurestore.v1.FeatureStoreService/DeleteFeatures", Rule::Needs(Right::Delete)),
    // It names no feature view and no record.
    ("/featurestore.v1.FeatureStoreService/Info", Rule::AnyCaller),
    // Kubelets and load balancers have no tokens.
    ("/grpc.health.v1.Health/Check", Rule::Open),
    ("/grpc.health.v1.Health/Watch", Rule::Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::AnyCaller),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Rule::AnyCaller),
];

/// The rule of an RPC, with its path, by the path of a call. None: nobody may call it.
pub fn of(path: &str) -> Option<(&'static str, Rule)> {
    RULES.into_iter().find(|(of, _)| *of == path)
}

/// All rules, with the paths of the RPCs.
pub fn all() -> impl Iterator<Item = (&'static str, Rule)> {
    RULES.into_iter()
}
