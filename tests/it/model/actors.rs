//! Who takes part, and all that the protocol's future depends on.

use std::{
    fmt::{self, Display},
    ops::Range,
};

use super::{
    explore::Next,
    l1::{Command, Id, L1, Value},
};

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

/// Where an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Actor {
    /// Has not begun, or begins again.
    Idle,
    /// Its first MARK was not answered; it sends another.
    MarksAgain,
    /// Holds a permit in an epoch.
    Marked { permit: Id, epoch: u8 },
    /// Writes behind L1's back: its server remembers the key.
    Bypasses,
    /// L2 has it, and L1 is to be told.
    Committed { permit: Option<(Id, u8)>, value: Value },
    /// The epoch is not what it was: L1 is to be told in that of now.
    TellsAnew { value: Value },
    /// Has told L1, and goes on to fill it.
    Warms,
    /// Asked for the lease, and is to read L2. `floor`: what it must not fall below.
    Missed { lease: Option<Id>, suspect: Option<Value>, floor: u8, epoch: u8 },
    /// Holds what L2 answered.
    Read { lease: Option<Id>, value: Value, answer: u8, floor: u8, epoch: u8 },
    /// A flight that can be joined.
    Boarding { floor: u8 },
    /// L1's answer is on its way to the flight.
    Hit { version: u8, floor: u8 },
    /// Has ended.
    Done,
}

/// What stands in L2. A version is one state of the record; what was collected has lost its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct L2 {
    pub version: u8,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Record,
    Tombstone,
    Nothing,
}

impl L2 {
    pub(super) fn value(self) -> Value {
        Value { version: self.version, revision: if self.kind == Kind::Nothing { 0 } else { self.version } }
    }
}

/// What a server knows of the epoch, of which there are two: 0, and 1 after the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    /// Of the epoch at the beginning, and fresh.
    First,
    /// Too old.
    TooOld,
    /// It has seen the change, and bypasses L1.
    Paused,
    /// Uses the second.
    Second,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    /// It remembers the key, so it does not trust L1.
    pub remembers: bool,
    pub view: View,
    /// The newest that it answered with `cached = false` or `degraded`, promised once L1 is trusted again.
    pub owed: u8,
}

/// All that the future depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// By epoch.
    pub l1: [L1; 2],
    pub l2: L2,
    pub now: u8,
    /// The newest version that was answered, and is promised to every later read.
    pub promised: u8,
    pub servers: [Server; 2],
    pub actors: [Actor; ACTORS],
    /// Commands on their way that nobody waits for.
    pub late: [Option<(u8, Command)>; 2],
    /// Versions whose change events are on their way, a bit each.
    pub changes: u8,
    pub evictions: u8,
    pub faults: u8,
    pub changed: bool,
}

impl State {
    pub(super) fn first(setup: &Setup) -> Self {
        let version = u8::from(!setup.absent);
        let l2 = L2 { version, kind: if setup.absent { Kind::Nothing } else { Kind::Record } };
        let mut state = Self {
            l1: [None, None],
            l2,
            now: 0,
            promised: version,
            servers: [Server { remembers: false, view: View::First, owed: 0 }; 2],
            actors: [Actor::Idle; ACTORS],
            late: [None; 2],
            changes: 0,
            evictions: setup.evictions,
            faults: setup.faults,
            changed: false,
        };
        if !setup.absent {
            let (token, value) = (Id::MAX, l2.value());
            for command in [Command::Acquire { token }, Command::Settle { lease: Some(token), value }] {
                command.execute(setup, &mut state.l1[0], 0);
            }
        }
        state
    }

    /// Everything that may happen next.
    pub(super) fn next(&self, setup: &Setup) -> Vec<Next> {
        let mut out = Vec::with_capacity(16);
        for who in 0..setup.roles.len() {
            match setup.roles[who].0 {
                Role::Read | Role::Strong | Role::Flight => self.read(setup, who, &mut out),
                _ => self.write(setup, who, &mut out),
            }
        }
        self.surroundings(setup, &mut out);
        out
    }

    /// A clean entry that a read which begins now would be answered with, although it is older than what was promised.
    pub(super) fn too_old_a_hit(&self, setup: &Setup) -> Option<Step> {
        let too_old = |at: &usize| self.hit(*at).filter(|value| value.version < self.promised);
        let (at, value) = setup.servers().find_map(|at| Some((at, too_old(&at)?)))?;
        let how = "although a newer one was answered before";
        let revision = Some(value.version);
        Some(Step { who: "a reader at server", number: Some(at), does: "hits revision", revision, how })
    }

    /// What a server's read would hit.
    pub(super) fn hit(&self, at: usize) -> Option<Value> {
        let server = &self.servers[at];
        let epoch = match server.view {
            View::First => 0,
            View::Second => 1,
            View::TooOld | View::Paused => return None,
        };
        let entry = self.l1[epoch].as_ref().filter(|_| !server.remembers)?;
        entry.hit(self.now.into()).copied()
    }

    /// Nobody is under way.
    pub(super) fn is_quiet(&self) -> bool {
        let rests = |actor: &Actor| matches!(actor, Actor::Idle | Actor::Done);
        self.actors.iter().all(rests) && self.late == [None; 2] && self.changes == 0
    }

    pub(super) fn promise(&mut self, version: u8) {
        self.promised = self.promised.max(version);
    }
}

/// What somebody did, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub who: &'static str,
    pub number: Option<usize>,
    pub does: &'static str,
    pub revision: Option<u8>,
    pub how: &'static str,
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.who)?;
        self.number.map_or(Ok(()), |number| write!(f, " {number}"))?;
        write!(f, " {}", self.does)?;
        self.revision.map_or(Ok(()), |revision| write!(f, " {revision}"))?;
        if self.how.is_empty() { Ok(()) } else { write!(f, ", {}", self.how) }
    }
}
