//! What each tier is used for now, as Info and the metrics tell it.

use super::{Tiered, breaker, trust::L1Use};

/// How a tier is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierMode {
    /// For everything.
    Healthy,
    /// It is L1 and slow: reads leave it alone, writes do not.
    Slow,
    /// Not at all: its breaker is open.
    Bypassed,
    /// Not at all but for one probe.
    Probing,
    /// It is L1 and answers, but is not trusted yet.
    Recovering,
}

impl TierMode {
    /// All of them.
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
    /// How L1 is used now.
    pub fn l1_mode(&self) -> TierMode {
        match (self.trust.breaker.mode().into(), self.trust.l1()) {
            (TierMode::Healthy, L1Use::Trusted(_) | L1Use::HitsOnly(_)) if self.pace.is_slow() => TierMode::Slow,
            (TierMode::Healthy, L1Use::Trusted(_) | L1Use::HitsOnly(_)) => TierMode::Healthy,
            (TierMode::Healthy, _) => TierMode::Recovering,
            (mode, _) => mode,
        }
    }

    /// How L2 is used now.
    pub fn l2_mode(&self) -> TierMode {
        self.l2_breaker.mode().into()
    }

    /// How a read may use L1. One that is slow is left alone, unless L2 is no better.
    pub(super) fn l1_for_read(&self) -> L1Use {
        match self.trust.l1() {
            L1Use::Trusted(_) if self.pace.is_slow() && self.l2_breaker.is_healthy() => L1Use::Bypassed,
            l1 => l1,
        }
    }

    /// Flights on their way: keys that are being read from L2, or wait for it.
    pub fn flights(&self) -> usize {
        self.flights.count()
    }

    /// Keys that were read from L2 for another caller too, since start.
    pub fn coalesced_reads(&self) -> u64 {
        self.flights.joined()
    }

    /// Tasks that no call can drop: writes, and what runs flights.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }
}
