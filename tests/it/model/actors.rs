//! Where everybody is, and all else that the protocol's future depends on.

use std::fmt::{self, Display};

use super::{
    explore::Next,
    l1::{Command, Id, L1, Value},
    setup::{ACTORS, Role, Second, Setup},
};

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
    /// Came from a backup, with the revision that it had then.
    pub restored: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Record,
    Tombstone,
    Nothing,
}

impl L2 {
    pub(super) fn value(self) -> Value {
        let revision = match self.kind {
            Kind::Nothing => 0,
            _ if self.restored => 1,
            _ => self.version & !COPIED,
        };
        Value { version: self.version, revision }
    }
}

/// What is written in the copy of L2 only has versions with this bit.
pub(super) const COPIED: u8 = 0x40;

/// The epoch's document in L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Document {
    /// Part of every key in L1.
    pub epoch: u8,
    /// The L1 that it names, by its id and its history.
    pub l1: u8,
}

/// What a server knows of the epoch's document, of which there are two: 0, and 1 after the change. Actors call both
/// "epoch", also where the second keeps the epoch of the first and only names another history of L1.
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

impl View {
    /// Which of the two this server uses; None: neither, until it has looked again or its pause has ended.
    pub(super) fn epoch(self) -> Option<u8> {
        match self {
            Self::First => Some(0),
            Self::Second => Some(1),
            Self::TooOld | Self::Paused => None,
        }
    }
}

/// No entry anywhere.
pub(super) const EMPTY: [L1; 4] = [None, None, None, None];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    /// It remembers the key, so it does not trust L1.
    pub remembers: bool,
    pub view: View,
    /// The newest that it answered with `cached = false` or `degraded`, promised once L1 is trusted again.
    pub owed: u8,
    /// The L1 that its connection leads to.
    pub connected: u8,
    /// L2 knows that it uses the L1 that the first document names.
    pub leased: bool,
    /// Its machine sleeps, and so does its clock.
    pub suspended: bool,
}

/// All that the future depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// Of each L1 the entry of each epoch.
    pub l1: [L1; 4],
    /// L2, and a copy of it.
    pub l2: [L2; 2],
    pub now: u8,
    /// The newest version that was answered, and is promised to every later read; by L2.
    pub promised: [u8; 2],
    pub servers: [Server; 2],
    pub actors: [Actor; ACTORS],
    /// Commands on their way that nobody waits for.
    pub late: [Option<(usize, Command)>; 2],
    /// Versions whose change events are on their way, a bit each.
    pub changes: u8,
    pub evictions: u8,
    pub faults: u8,
    /// The document after its change, by L2.
    pub changed: [Option<Document>; 2],
    /// How often addresses of L1 may yet change, and servers be restarted.
    pub moves: u8,
    pub restarts: u8,
    /// L1 1 follows L1 0 no longer.
    pub promoted: bool,
    /// The marker in L1 1 is one that nobody has renewed for longer than the second pass looks back.
    pub aged: bool,
    /// A failover may have lost what was confirmed, and the second pass has not gone by yet.
    pub excused: bool,
    /// L2 is not the one that the epoch's document tells of.
    pub replaced: bool,
}

impl State {
    pub(super) fn first(setup: &Setup) -> Self {
        let version = u8::from(!setup.absent);
        let kind = if setup.absent { Kind::Nothing } else { Kind::Record };
        let l2 = L2 { version, kind, restored: false };
        let server =
            Server { remembers: false, view: View::First, owed: 0, connected: 0, leased: true, suspended: false };
        let mut state = Self {
            l1: EMPTY,
            l2: [l2; 2],
            now: 0,
            promised: [version; 2],
            servers: [server; 2],
            actors: [Actor::Idle; ACTORS],
            late: [None; 2],
            changes: 0,
            evictions: setup.evictions,
            faults: setup.faults,
            changed: [None; 2],
            moves: setup.moves,
            restarts: setup.restarts,
            promoted: false,
            aged: setup.second == Some(Second::Restored),
            excused: false,
            replaced: false,
        };
        if !setup.absent {
            let (token, value) = (Id::MAX, l2.value());
            for command in [Command::Acquire { token }, Command::Settle { lease: Some(token), value }] {
                command.execute(setup, &mut state.l1[0], 0);
            }
        }
        state.first_of_two(setup);
        state
    }

    /// Everything that may happen next.
    pub(super) fn next(&self, setup: &Setup) -> Vec<Next> {
        let mut out = Vec::with_capacity(16);
        let runs = |who: &usize| !self.servers[setup.roles[*who].1].suspended;
        for who in (0..setup.roles.len()).filter(runs) {
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
        let too_old = |at: &usize| self.hit(setup, *at).filter(|value| self.is_too_old(setup, *at, *value));
        let (at, value) = setup.servers().find_map(|at| Some((at, too_old(&at)?)))?;
        let how = match self.is_of_the_other_l2(setup, at, value) {
            true => "which only the other L2 holds",
            false => "although a newer one was answered before",
        };
        let revision = Some(value.version);
        Some(Step { who: "a reader at server", number: Some(at), does: "hits revision", revision, how })
    }

    /// What a server's read would hit.
    pub(super) fn hit(&self, setup: &Setup, at: usize) -> Option<Value> {
        let server = &self.servers[at];
        let epoch = server.view.epoch()?;
        let looks = !server.remembers && !server.suspended && self.uses_l1(setup, at, epoch);
        let entry = self.l1[self.slot(setup, at, epoch)].as_ref().filter(|_| looks)?;
        entry.hit(self.now.into()).copied()
    }

    /// Nobody is under way.
    pub(super) fn is_quiet(&self) -> bool {
        let rests = |actor: &Actor| matches!(actor, Actor::Idle | Actor::Done);
        self.actors.iter().all(rests) && self.late == [None; 2] && self.changes == 0
    }

    pub(super) fn promise(&mut self, setup: &Setup, who: usize, version: u8) {
        let at = setup.roles[who].1;
        if self.may_promise(setup, at) {
            let promised = &mut self.promised[setup.l2_of(at)];
            *promised = version.max(*promised);
        }
    }

    /// What a server owed is promised.
    pub(super) fn pay(&mut self, setup: &Setup, at: usize) {
        let promised = &mut self.promised[setup.l2_of(at)];
        *promised = self.servers[at].owed.max(*promised);
        self.servers[at].owed = 0;
    }

    /// What an actor's server finds in L2.
    pub(super) fn l2(&self, setup: &Setup, who: usize) -> L2 {
        self.l2[setup.l2_of(setup.roles[who].1)]
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
