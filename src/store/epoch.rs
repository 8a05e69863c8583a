//! The epoch as L2 keeps it: the generation of L1, the L1 that it names, and whether servers use
//! it.
//!
//! Servers that use the named L1 share one lease, by L2's clock. It is extended only when less than
//! `LEASE_LOW` is left, so that many servers cost few writes. While it runs, no server may name
//! another L1. What makes a change safe is not the lease but the pause that every server keeps
//! after it (`tiered::trust`).

use std::time::Duration;

use crate::{
    cache::{Epoch, L1Name},
    record::Millis,
};

/// How long a server that uses the named L1 says so; longer than a view of the epoch is usable.
pub const LEASE: Duration = Duration::from_secs(4);
/// The lease is extended when less than this is left.
pub const LEASE_LOW: Duration = Duration::from_millis(2500);

/// The epoch as stored in L2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochState {
    /// A part of every L1 key.
    pub epoch: Epoch,
    /// A write bypassed L1 in this epoch: a server that lost its connection to L1 must start a new
    /// epoch before it uses L1 again.
    pub dirty: bool,
    /// How long this epoch has named this L1, by L2's clock. An exclusive store need not count.
    pub age: Duration,
    /// The named L1. None: no server has named one yet.
    pub l1: Option<L1Name>,
    /// How long the lease on the named L1 still runs. An exclusive store need not count.
    pub leased: Duration,
    /// How long the lease still runs of servers whose L1 is in their own process.
    pub beside: Duration,
    /// L2's clock at its answer. None: it is the clock of this machine.
    pub now: Option<Millis>,
}

impl EpochState {
    /// An epoch without an L1, old enough for every rule.
    pub fn new(epoch: Epoch) -> Self {
        let (leased, beside) = (Duration::ZERO, Duration::ZERO);
        Self { epoch, dirty: false, age: Duration::MAX, l1: None, leased, beside, now: None }
    }

    /// Whether it names this L1.
    pub fn names(&self, l1: &L1Name) -> bool {
        self.l1.as_ref().is_some_and(|named| named.is(l1))
    }
}

/// The request of a server that the epoch should name its L1.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The epoch as the server saw it. If the epoch or the named L1 differs, nothing is changed.
    pub seen: EpochState,
    /// The L1 of the server.
    pub l1: L1Name,
    /// Whether the epoch stays, because the data of this L1 continues that of the named one.
    pub keep_epoch: bool,
    /// Whether to ignore the lease on the named L1.
    pub at_once: bool,
}
