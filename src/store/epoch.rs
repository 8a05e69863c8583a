//! The epoch as L2 keeps it: the generation of L1, the one L1 that it holds for, and who says to use it.
//!
//! Whoever uses the named L1 says so by a lease, in L2's clock. It is one lease for all of them, prolonged only when it has
//! run down by half, so that many servers cost few writes. While it runs nobody else may name another L1; what makes that
//! safe is not the lease but the pause that everybody keeps after a change (`tiered::trust`).

use std::time::Duration;

use crate::{
    cache::{Epoch, L1Name},
    record::Millis,
};

/// For how long who uses the named L1 says so; longer than a view of the epoch lives.
pub const LEASE: Duration = Duration::from_secs(4);
/// The lease is prolonged when less than this is left of it.
pub const LEASE_LOW: Duration = Duration::from_millis(2500);

/// The generation of L1 as L2 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochState {
    /// Part of every L1 key.
    pub epoch: Epoch,
    /// A write bypassed L1 in this epoch: whoever lost sight of L1 trusts it again only under a new one.
    pub dirty: bool,
    /// How long this epoch has held for this L1, by L2's clock. An exclusive store, which nobody else uses, need not count.
    pub age: Duration,
    /// The L1 that it holds for; None: no server has named one yet.
    pub l1: Option<L1Name>,
    /// For how long servers still say to use that L1. An exclusive store need not count.
    pub leased: Duration,
    /// For how long servers still say to use other L1s, each in its own process.
    pub beside: Duration,
    /// L2's clock, as it answered; None: it is this machine's.
    pub now: Option<Millis>,
}

impl EpochState {
    /// One that has stood for ever and names no L1.
    pub fn new(epoch: Epoch) -> Self {
        let (leased, beside) = (Duration::ZERO, Duration::ZERO);
        Self { epoch, dirty: false, age: Duration::MAX, l1: None, leased, beside, now: None }
    }

    /// Whether it holds for this L1.
    pub fn names(&self, l1: &L1Name) -> bool {
        self.l1.as_ref().is_some_and(|named| named.is(l1))
    }
}

/// What a server asks for that wants the epoch to hold for its L1.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What it saw. Where the epoch or the named L1 differs from it nothing is changed.
    pub seen: EpochState,
    /// Its L1.
    pub l1: L1Name,
    /// The epoch stays, as what this L1 holds goes on from what the named one held. Else there is a new one.
    pub keep_epoch: bool,
    /// Whether others still say to use the named L1 does not matter.
    pub at_once: bool,
}
