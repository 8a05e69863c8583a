//! In which mode each tier is used now, for Info and the metrics.

use super::{Tiered, breaker, trust::L1Use};

/// In which mode a tier is used; docs/architecture.md has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierMode {
    /// It is used for everything.
    Healthy,
    /// L1 is slow: reads bypass it, writes do not.
    Slow,
    /// It is not used: its breaker is open.
    Bypassed,
    /// It is not used, except for one probe that is in flight.
    Probing,
    /// L1 answers, but is not trusted yet.
    Recovering,
}

impl TierMode {
    /// All modes, for metrics.
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Slow, Self::Bypassed, Self::Probing, Self::Recovering];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Bypassed => "bypassed",
            Self::Probing => "probing",
            Self::Recovering => "recovering",
        }
    }
}

impl From<breaker::Mode> for TierMode {
    fn from(mode: breaker::Mode) -> Self {
        match mode {
            breaker::Mode::Healthy => Self::Healthy,
            breaker::Mode::Tripped => Self::Bypassed,
            breaker::Mode::Probing => Self::Probing,
        }
    }
}

impl Tiered {
    /// The mode of L1 now.
    pub fn l1_mode(&self) -> TierMode {
        match (self.trust.breaker.mode().into(), self.trust.l1()) {
            (TierMode::Healthy, L1Use::Trusted(_) | L1Use::HitsOnly(_)) if self.pace.is_slow() => TierMode::Slow,
            (TierMode::Healthy, L1Use::Trusted(_) | L1Use::HitsOnly(_)) => TierMode::Healthy,
            (TierMode::Healthy, _) => TierMode::Recovering,
            (mode, _) => mode,
        }
    }

    /// The mode of L2 now.
    pub fn l2_mode(&self) -> TierMode {
        self.l2_breaker.mode().into()
    }

    /// How a read may use L1. A slow L1 is bypassed, unless the breaker of L2 is open.
    pub(super) fn l1_for_read(&self) -> L1Use {
        match self.trust.l1() {
            L1Use::Trusted(_) if self.pace.is_slow() && self.l2_breaker.is_healthy() => L1Use::Bypassed,
            l1 => l1,
        }
    }

    /// Keys in flights: they are read from L2, or wait for that.
    pub fn flights(&self) -> usize {
        self.flights.count()
    }

    /// Keys that joined the flight of another caller, since start.
    pub fn coalesced_reads(&self) -> u64 {
        self.flights.joined()
    }

    /// Tasks that continue when their call ends: writes and flights.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }
}
