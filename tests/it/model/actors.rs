//! Where everybody is, and all else that the protocol's future depends on.

use std::fmt::{self, Display};

use super::{
    explore::Next,
    l1::{Command, Id, L1, Value},
    setup::{ACTORS, Role, Setup},
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
