//! What readers and flights do, one step at a time. A read that hits at once needs no actor.

use super::{
    actors::{Actor, State},
    explore::Next,
    l1::{Command, Id, Reply, Value},
    setup::{Role, Rule, Setup},
    writes::{ids, plain, step},
};

impl State {
    pub(super) fn read(&self, setup: &Setup, who: usize, out: &mut Vec<Next>) {
        match (setup.roles[who].0, self.actors[who]) {
            (Role::Strong, Actor::Idle) => self.read_strong(setup, who, out),
            (Role::Flight, Actor::Idle) => self.board(setup, who, out),
            (_, Actor::Idle) => self.ask_l1(setup, who, self.floor(setup), out),
            (_, Actor::Boarding { floor }) => {
                self.join(setup, who, floor, true, out);
                self.ask_l1(setup, who, floor, out);
            }
            (_, Actor::Hit { version, floor }) => {
                self.join(setup, who, floor, self.joins_until(setup, false), out);
                let mut to = self.clone();
                to.promise(setup, who, version);
                to.actors[who] = setup.after_a_read();
                let value = Value { version, revision: version };
                let mut next = step(setup, who, "lands with L1's answer, revision", value, "", to);
                next.wrong = version < floor;
                out.push(next);
            }
            (role, Actor::Missed { lease, suspect, floor, epoch }) => {
                if role == Role::Flight {
                    self.join(setup, who, floor, self.joins_until(setup, false), out);
                }
                self.ask_l2(setup, who, lease, suspect, floor, epoch, out);
            }
            (role, Actor::Read { lease, value, answer, floor, epoch }) => {
                if role == Role::Flight {
                    self.join(setup, who, floor, self.joins_until(setup, true), out);
                }
                let epoch = if role == Role::Strong { self.epoch_to_tell(setup, who) } else { Some(epoch) };
                match epoch {
                    Some(epoch) => self.settle(setup, who, lease, value, answer, floor, epoch, out),
                    None => self.answer_degraded(setup, who, value, out),
                }
            }
            _ => {}
        }
    }

    /// What a read that begins now must not fall below. Where L2 always answers what stands, this needs no check.
    fn floor(&self, setup: &Setup) -> u8 {
        if setup.deposed { self.promised[0] } else { 0 }
    }

    /// The epoch in which a server reads from L1, unless it would hit.
    fn misses_in(&self, setup: &Setup, who: usize) -> Option<u8> {
        let at = setup.roles[who].1;
        if self.servers[at].remembers || self.hit(setup, at).is_some() {
            return None;
        }
        self.servers[at].view.epoch().filter(|epoch| self.uses_l1(setup, at, *epoch))
    }

    fn ask_l1(&self, setup: &Setup, who: usize, floor: u8, out: &mut Vec<Next>) {
        let flies = setup.roles[who].0 == Role::Flight;
        let epoch = if flies { Some(0) } else { self.misses_in(setup, who) };
        let (Some(epoch), token) = (epoch, ids(who)[0]) else { return };
        if setup.lacks(Rule::Lease) {
            let mut to = self.clone();
            to.actors[who] = Actor::Missed { lease: Some(token), suspect: None, floor, epoch };
            out.push(plain(setup, who, "misses", "", to));
            return;
        }
        for (mut to, reply, mut how) in self.send(setup, who, epoch, Command::Acquire { token }) {
            match reply {
                Some(Reply::Hit(value)) => {
                    to.actors[who] = Actor::Hit { version: value.version, floor };
                    how = "a hit after all";
                }
                Some(Reply::Miss { lease, suspect }) => {
                    to.actors[who] = Actor::Missed { lease, suspect, floor, epoch };
                    if how.is_empty() {
                        how = if lease.is_some() { "and holds the lease" } else { "no lease" };
                    }
                }
                // It reads L2, remembers the key, and answers `degraded`.
                _ => {
                    to.owe(setup, who, to.l2(setup, who).version);
                    to.actors[who] = setup.after_a_read();
                }
            }
            out.push(plain(setup, who, "misses, ACQUIRE", how, to));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an actor's state, taken apart")]
    fn ask_l2(
        &self,
        setup: &Setup,
        who: usize,
        lease: Option<Id>,
        suspect: Option<Value>,
        floor: u8,
        epoch: u8,
        out: &mut Vec<Next>,
    ) {
        let l2 = self.l2(setup, who);
        let mut answers = vec![("reads from L2 revision", l2.value())];
        if setup.deposed && suspect.is_some() && l2.version > 0 {
            let before = l2.version - 1;
            answers.push(("reads from a deposed primary revision", Value { version: before, revision: before }));
        }
        for (does, value) in answers {
            let newer = suspect.filter(|suspect| suspect.revision > value.revision);
            let answer = newer.filter(|_| !setup.lacks(Rule::SuspectIsRight)).unwrap_or(value).version;
            let mut to = self.clone();
            if setup.lacks(Rule::SettleBeforeAReply) {
                to.promise(setup, who, answer);
            }
            to.actors[who] = Actor::Read { lease, value, answer, floor, epoch };
            out.push(step(setup, who, does, value, "", to));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an actor's state, taken apart")]
    fn settle(
        &self,
        setup: &Setup,
        who: usize,
        lease: Option<Id>,
        value: Value,
        answer: u8,
        floor: u8,
        epoch: u8,
        out: &mut Vec<Next>,
    ) {
        let holds = self.holds(setup, who, epoch) || setup.lacks(Rule::ReadChecksItsViewAgain);
        let counts = self.counts_at(setup, setup.roles[who].1, epoch, Rule::ReadConfirmedByTheNamedL1);
        for (mut to, reply, how) in self.send(setup, who, epoch, Command::Settle { lease, value }) {
            to.actors[who] = setup.after_a_read();
            let how = match reply {
                Some(_) if holds && !counts => "confirmed by an L1 that does not count, so it answers degraded",
                Some(_) if holds => {
                    to.promise(setup, who, answer);
                    if how.is_empty() { "and answers" } else { how }
                }
                Some(_) => "and answers degraded, as the epoch is another now",
                None if setup.lacks(Rule::RememberALostSettle) => {
                    to.promise(setup, who, answer);
                    "no reply in time, and answers"
                }
                None => {
                    to.owe(setup, who, answer);
                    "no reply in time, so it answers degraded"
                }
            };
            let mut next = step(setup, who, "SETTLE revision", value, how, to);
            next.wrong = reply.is_some() && holds && counts && answer < floor;
            out.push(next);
        }
    }

    fn read_strong(&self, setup: &Setup, who: usize, out: &mut Vec<Next>) {
        let value = self.l2(setup, who).value();
        let mut to = self.clone();
        if setup.lacks(Rule::SettleBeforeAStrongReply) {
            to.promise(setup, who, value.version);
            out.push(step(setup, who, "reads from L2 and answers revision", value, "", to));
            return;
        }
        to.actors[who] = Actor::Read { lease: None, value, answer: value.version, floor: 0, epoch: 0 };
        out.push(step(setup, who, "reads from L2 revision", value, "", to));
    }

    /// Nothing is promised.
    fn answer_degraded(&self, setup: &Setup, who: usize, value: Value, out: &mut Vec<Next>) {
        let mut to = self.clone();
        to.actors[who] = setup.after_a_read();
        out.push(step(setup, who, "answers degraded revision", value, "", to));
    }

    /// The key is remembered, and what was answered is promised once it was removed.
    fn owe(&mut self, setup: &Setup, who: usize, version: u8) {
        let server = &mut self.servers[setup.roles[who].1];
        server.remembers = true;
        server.owed = server.owed.max(version);
    }

    /// A first reader misses, and a flight begins.
    fn board(&self, setup: &Setup, who: usize, out: &mut Vec<Next>) {
        if self.misses_in(setup, who).is_some() {
            let mut to = self.clone();
            to.actors[who] = Actor::Boarding { floor: self.promised[0] };
            out.push(plain(setup, who, "is boarded by a reader that missed", "", to));
        }
    }

    /// Another reader misses; what the flight brings must not be older than what was promised before.
    fn join(&self, setup: &Setup, who: usize, floor: u8, open: bool, out: &mut Vec<Next>) {
        if !open || self.promised[0] <= floor || self.misses_in(setup, who).is_none() {
            return;
        }
        let floor = self.promised[0];
        let mut to = self.clone();
        to.actors[who] = match self.actors[who] {
            Actor::Hit { version, .. } => Actor::Hit { version, floor },
            Actor::Missed { lease, suspect, epoch, .. } => Actor::Missed { lease, suspect, floor, epoch },
            Actor::Read { lease, value, answer, epoch, .. } => Actor::Read { lease, value, answer, floor, epoch },
            _ => Actor::Boarding { floor },
        };
        out.push(plain(setup, who, "is joined by a reader that began now and missed", "", to));
    }

    /// Whether readers may still join a flight that has asked L1, or (`l2`) L2.
    fn joins_until(&self, setup: &Setup, l2: bool) -> bool {
        setup.lacks(Rule::DoorsCloseBeforeL2) || (setup.lacks(Rule::DoorsCloseBeforeL1) && !l2)
    }
}
