//! Who takes part in one exploration, what may happen to them, and which rule they lack.

use std::ops::Range;

use super::actors::{Actor, COPIED};

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
    // Those that say which L1 counts, for which L2.
    EpochNamesItsL1,
    MarkerOverTheSameConnection,
    WriteConfirmedByTheNamedL1,
    ReadConfirmedByTheNamedL1,
    RemoveFromTheNamedL1,
    RepairOfTheNamedL1,
    TakeoverAfterTheLease,
    MarkerIsNeverOverwritten,
    AnotherRunIsAnotherL1,
    EpochNamesTheHistory,
    HistoryMovesAfterTheLease,
    LeaseWithTheLook,
    NoReplicaWithoutARepairer,
    OldMarkerIsARestoredL1,
    PrivateL1CountsOnlyAlone,
    L2HasAnIdentity,
    ViewIsFreshByTheWallClock,
    // Others.
    SuspectIsRight,
    TombstonesAreKept,
    RemoveWhereNothingStands,
}

/// What the second L1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Second {
    /// Another server, with a marker and an id of its own: another address, another database, another user's prefix.
    Other,
    /// Another server, which has no marker yet.
    Unmarked,
    /// A replica of the first, some way behind it, which may be promoted while that lives on.
    Replica,
    /// A server that came up with an old copy of what the first held, its marker among it.
    Restored,
    /// In the process of server 1, and followed by L2's change events.
    Private,
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
    /// There is a second L1.
    pub second: Option<Second>,
    /// How often an address of L1 may lead to the other one, at a reconnect.
    pub moves: u8,
    /// How often a server may be restarted with the other L1.
    pub restarts: u8,
    /// A machine may be suspended.
    pub suspends: bool,
    /// Server 1 is over a copy of L2, which carries the epoch's document along.
    pub copied: bool,
    /// L2 may be restored from a backup, while no server runs.
    pub restores: bool,
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
            second: None,
            moves: 0,
            restarts: 0,
            suspends: false,
            copied: false,
            restores: false,
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

    /// Whether it matters which L1 counts, and for which L2.
    pub(super) fn whose(&self) -> bool {
        self.second.is_some() || self.suspends || self.copied || self.restores
    }

    /// Whether the epoch's document may change.
    pub(super) fn may_change(&self) -> bool {
        self.epochs || self.whose()
    }

    /// The L2 of a server.
    pub(super) fn l2_of(&self, server: usize) -> usize {
        usize::from(self.copied && server == 1)
    }

    /// What is written next in an L2.
    pub(super) fn next_version(&self, l2: usize, version: u8) -> u8 {
        if l2 == 1 { (version + 1) | COPIED } else { version + 1 }
    }

    pub(super) fn lacks(&self, rule: Rule) -> bool {
        self.without == Some(rule)
    }
}
