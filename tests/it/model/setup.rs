//! Who takes part in one exploration, what may happen to them, and which rule they lack.

use std::ops::Range;

use super::actors::Actor;

/// How many actors there are room for.
pub(super) const ACTORS: usize = 4;

/// What somebody does, again and again or once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// MARK, commit, PUT.
    Write,
    /// The same with a condition that L2 may find not met; a repeated request id is the same to L1.
    Conditional,
    /// The same with a tombstone; where nothing stands in L2 there is nothing to PUT, so DEL.
    Delete,
    /// Commit, SETTLE without a lease.
    Bulk,
    /// And ACQUIRE, read back, SETTLE with the lease.
    WarmBulk,
    /// A bulk's deletion.
    BulkDelete,
    /// ACQUIRE, L2, SETTLE, for ever. What hits needs no actor.
    Read,
    /// L2, SETTLE without a lease, for ever.
    Strong,
    /// One read of L2 for many readers, for ever.
    Flight,
}

/// Rules that can be taken away. The first part is the table of the protocol's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Permit,
    Lease,
    SetIfNewer,
    Floor,
    SettleBeforeAStrongReply,
    SettleBeforeAReply,
    SettleBeforeABulksReply,
    ConfirmationBeforeCached,
    ReplyToMarkBeforeL2,
    NewIdForEachMark,
    NewIdForEachAcquire,
    DoorsCloseBeforeL2,
    DoorsCloseBeforeL1,
    AcquireBeforeTheReadBack,
    UnmarkOnlyIfL2NeverSaw,
    // Those of the degraded modes.
    RememberALostSettle,
    RemoveBeforeTrust,
    PauseAfterAChange,
    WriteChecksItsViewAgain,
    ReadChecksItsViewAgain,
    // Others.
    SuspectIsRight,
    TombstonesAreKept,
    RemoveWhereNothingStands,
}

/// Who takes part in one exploration, and what may happen to them.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// With the server that each of them is at.
    pub roles: Vec<(Role, usize)>,
    /// How often L1 may evict.
    pub evictions: u8,
    /// How many commands to L1 may be lost, late, or repeated.
    pub faults: u8,
    /// How often all deadlines may pass.
    pub ticks: u8,
    /// What is filled lives for one tick.
    pub short_lived: bool,
    /// L2's change events reach L1, any time after each commit.
    pub repairer: bool,
    /// A deposed primary may answer where there is a suspect.
    pub deposed: bool,
    /// Somebody may delete the document by hand.
    pub by_hand: bool,
    /// The epoch may change, once.
    pub epochs: bool,
    /// Nothing stands at first. Else revision 1, clean in L1, and answered.
    pub absent: bool,
    /// What is taken away.
    pub without: Option<Rule>,
}

impl Setup {
    /// These roles at one server, an eviction, and nothing else that happens.
    pub(super) fn new(roles: &[Role]) -> Self {
        assert!(roles.len() <= ACTORS);
        let roles = roles.iter().map(|role| (*role, 0)).collect();
        Self {
            roles,
            evictions: 1,
            faults: 0,
            ticks: 0,
            short_lived: false,
            repairer: false,
            deposed: false,
            by_hand: false,
            epochs: false,
            absent: false,
            without: None,
        }
    }

    /// The same roles at these servers.
    pub(super) fn at<const N: usize>(mut self, servers: [usize; N]) -> Self {
        assert_eq!(self.roles.len(), N);
        self.roles.iter_mut().zip(servers).for_each(|((_, at), server)| *at = server);
        self
    }

    /// Without this rule.
    pub(super) fn without(mut self, rule: Rule) -> Self {
        self.without = Some(rule);
        self
    }

    /// Reads go on for ever, with the same token; where a command may be late they end, as a token is never used again.
    pub(super) fn after_a_read(&self) -> Actor {
        if self.faults > 0 { Actor::Done } else { Actor::Idle }
    }

    /// Those that anybody is at.
    pub(super) fn servers(&self) -> Range<usize> {
        0..self.roles.iter().map(|(_, at)| at + 1).max().unwrap_or(0)
    }

    pub(super) fn lacks(&self, rule: Rule) -> bool {
        self.without == Some(rule)
    }
}
