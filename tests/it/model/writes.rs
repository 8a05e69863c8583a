//! What writers, deletes and bulks do, one step at a time.

use super::{
    actors::{Actor, Kind, L2, State, Step, View},
    explore::Next,
    l1::{Command, Id, Reply, Value},
    named::ELSEWHERE,
    setup::{Role, Rule, Setup},
};

/// The ids of an actor's first and second sending.
pub(super) fn ids(who: usize) -> [Id; 2] {
    [2 * who as Id, 2 * who as Id + 1]
}

impl State {
    pub(super) fn write(&self, setup: &Setup, who: usize, out: &mut Vec<Next>) {
        let (role, server) = setup.roles[who];
        let marks = matches!(role, Role::Write | Role::Conditional | Role::Delete);
        match self.actors[who] {
            Actor::Idle => match self.view(setup, who) {
                View::First if marks && self.uses_l1(setup, server, 0) => self.mark(setup, who, 0, true, out),
                View::Second if marks && self.uses_l1(setup, server, 1) => self.mark(setup, who, 1, true, out),
                // A bulk, and every write while the epoch changes, or where it names another L1.
                View::First | View::Second | View::Paused => self.commit(setup, who, None, out),
                View::TooOld => {}
            },
            Actor::MarksAgain => match self.view(setup, who) {
                View::First => self.mark(setup, who, 0, false, out),
                View::Second => self.mark(setup, who, 1, false, out),
                View::Paused | View::TooOld => {}
            },
            Actor::Marked { permit, epoch } => {
                self.commit(setup, who, Some((permit, epoch)), out);
                if role == Role::Conditional {
                    self.is_not_written(setup, who, permit, epoch, out);
                }
            }
            Actor::Bypasses => self.commit(setup, who, None, out),
            Actor::Committed { permit: Some((permit, epoch)), value } => {
                self.put(setup, who, permit, epoch, value, out);
            }
            Actor::Committed { permit: None, value } | Actor::TellsAnew { value } => self.tell(setup, who, value, out),
            Actor::Warms => self.warm(setup, who, out),
            Actor::Missed { lease, epoch, .. } => {
                let value = self.l2(setup, who).value();
                let mut to = self.clone();
                to.actors[who] = Actor::Read { lease, value, answer: 0, floor: 0, epoch };
                out.push(step(setup, who, "reads back from L2 revision", value, "", to));
            }
            Actor::Read { lease, value, epoch, .. } => self.fill(setup, who, lease, value, epoch, out),
            Actor::Boarding { .. } | Actor::Hit { .. } | Actor::Done => {}
        }
    }

    fn mark(&self, setup: &Setup, who: usize, epoch: u8, first: bool, out: &mut Vec<Next>) {
        let same = setup.lacks(Rule::NewIdForEachMark);
        let permit = ids(who)[usize::from(!first && !same)];
        for (mut to, reply, how) in self.send(setup, who, epoch, Command::Mark { permit }) {
            if reply.is_some() || setup.lacks(Rule::ReplyToMarkBeforeL2) {
                to.actors[who] = Actor::Marked { permit, epoch };
                out.push(plain(setup, who, "MARK", how, to));
                continue;
            }
            if first {
                let mut to = to.clone();
                to.actors[who] = Actor::MarksAgain;
                out.push(plain(setup, who, "MARK", "no reply in time, so it will send another", to));
            }
            to.actors[who] = Actor::Bypasses;
            to.servers[setup.roles[who].1].remembers = true;
            out.push(plain(setup, who, "MARK", "no reply in time, so it writes behind L1's back", to));
        }
    }

    fn commit(&self, setup: &Setup, who: usize, permit: Option<(Id, u8)>, out: &mut Vec<Next>) {
        let deletes = matches!(setup.roles[who].0, Role::Delete | Role::BulkDelete);
        let mut to = self.clone();
        let at = setup.l2_of(setup.roles[who].1);
        let l2 = &mut to.l2[at];
        let writes = !deletes || l2.kind == Kind::Record;
        let does = if !deletes {
            l2.kind = Kind::Record;
            "commits revision"
        } else if l2.kind == Kind::Record {
            l2.kind = Kind::Tombstone;
            "deletes, with a tombstone of revision"
        } else {
            "finds nothing to delete, at revision"
        };
        if writes {
            *l2 = L2 { version: setup.next_version(at, l2.version), kind: l2.kind, restored: false };
            if setup.repairer {
                to.changes |= 1 << l2.version;
            }
        }
        let value = l2.value();
        to.actors[who] = Actor::Committed { permit, value };
        if setup.lacks(Rule::SettleBeforeABulksReply) {
            to.promise(setup, who, value.version);
        }
        out.push(step(setup, who, does, value, "", to));
    }

    /// L2 refuses it, or has answered this request before; or it never got there.
    fn is_not_written(&self, setup: &Setup, who: usize, permit: Id, epoch: u8, out: &mut Vec<Next>) {
        let value = self.l2(setup, who).value();
        let mut to = self.clone();
        if setup.lacks(Rule::UnmarkOnlyIfL2NeverSaw) {
            let slot = self.slot(setup, setup.roles[who].1, epoch);
            Command::Unmark { permit }.execute(setup, &mut to.l1[slot], self.now);
            to.promise(setup, who, value.version);
            to.actors[who] = Actor::Done;
            out.push(step(setup, who, "is refused by L2, takes its MARK back, and answers revision", value, "", to));
        } else {
            to.actors[who] = Actor::Committed { permit: Some((permit, epoch)), value };
            out.push(step(setup, who, "is refused by L2, which shows revision", value, "", to));
        }
        for (mut to, _, how) in self.send(setup, who, epoch, Command::Unmark { permit }) {
            to.actors[who] = Actor::Done;
            out.push(plain(setup, who, "never reaches L2, and takes its MARK back", how, to));
        }
    }

    fn put(&self, setup: &Setup, who: usize, permit: Id, epoch: u8, value: Value, out: &mut Vec<Next>) {
        let (does, command) = if value.revision == 0 && !setup.lacks(Rule::RemoveWhereNothingStands) {
            ("DEL, at revision", Command::Remove)
        } else {
            ("PUT revision", Command::Put { permit, value })
        };
        let holds = self.holds(setup, who, epoch) || setup.lacks(Rule::WriteChecksItsViewAgain);
        for (mut to, reply, how) in self.send(setup, who, epoch, command) {
            if setup.may_change() {
                // The epoch may change before it looks at its view again.
                let mut to = to.clone();
                to.actors[who] = Actor::TellsAnew { value };
                out.push(step(setup, who, does, value, "and looks at the epoch later", to));
            }
            if holds {
                let (reply, how) = self.confirmed(setup, setup.roles[who].1, epoch, reply, how);
                let how = to.answer(setup, who, value, reply, how);
                out.push(step(setup, who, does, value, how, to));
            }
        }
    }

    /// SETTLE without a lease: of what was not marked, or in an epoch that is not that of the MARK.
    fn tell(&self, setup: &Setup, who: usize, value: Value, out: &mut Vec<Next>) {
        let at = setup.roles[who].1;
        let Some(epoch) = self.epoch_to_tell(setup, who) else { return };
        for (mut to, reply, how) in self.send(setup, who, epoch, Command::Settle { lease: None, value }) {
            let (confirmed, told) = self.confirmed(setup, at, epoch, reply, how);
            let how = if confirmed.is_none() || self.holds(setup, who, epoch) {
                to.answer(setup, who, value, confirmed, told)
            } else {
                // Promised from the end of the pause on.
                to.servers[at].owed = to.servers[at].owed.max(value.version);
                to.actors[who] = Actor::Done;
                "and answers cached = false, as the epoch has just changed"
            };
            if setup.roles[who].0 == Role::WarmBulk && confirmed.is_some() && !self.servers[at].remembers {
                to.actors[who] = Actor::Warms;
            }
            out.push(step(setup, who, "SETTLE without a lease, revision", value, how, to));
        }
    }

    /// The end of a write, and whether it is `cached`.
    fn answer(
        &mut self,
        setup: &Setup,
        who: usize,
        value: Value,
        reply: Option<Reply>,
        how: &'static str,
    ) -> &'static str {
        self.actors[who] = Actor::Done;
        if reply.is_some() || setup.lacks(Rule::ConfirmationBeforeCached) {
            self.promise(setup, who, value.version);
            if !self.may_promise(setup, setup.roles[who].1) {
                return "and answers cached = false, as its L1 is its own";
            }
            return if how.is_empty() { "and answers cached = true" } else { how };
        }
        let server = &mut self.servers[setup.roles[who].1];
        server.remembers = true;
        server.owed = server.owed.max(value.version);
        if how == ELSEWHERE { ELSEWHERE } else { "no reply in time, so it answers cached = false" }
    }

    fn warm(&self, setup: &Setup, who: usize, out: &mut Vec<Next>) {
        let Some(epoch) = self.epoch_to_tell(setup, who) else { return };
        let missed = |lease| Actor::Missed { lease, suspect: None, floor: 0, epoch };
        if setup.lacks(Rule::AcquireBeforeTheReadBack) {
            let mut to = self.clone();
            to.actors[who] = missed(None);
            out.push(plain(setup, who, "goes on to the read back", "", to));
            return;
        }
        for (mut to, reply, how) in self.send(setup, who, epoch, Command::Acquire { token: ids(who)[0] }) {
            to.actors[who] = match reply {
                Some(Reply::Miss { lease: Some(lease), .. }) => missed(Some(lease)),
                _ => Actor::Done,
            };
            out.push(plain(setup, who, "ACQUIRE", how, to));
        }
    }

    fn fill(&self, setup: &Setup, who: usize, lease: Option<Id>, value: Value, epoch: u8, out: &mut Vec<Next>) {
        let (mut before, mut lease) = (self.clone(), lease);
        if setup.lacks(Rule::AcquireBeforeTheReadBack) {
            let slot = &mut before.l1[self.slot(setup, setup.roles[who].1, epoch)];
            if let Reply::Miss { lease: given, .. } =
                (Command::Acquire { token: ids(who)[0] }).execute(setup, slot, self.now)
            {
                lease = given;
            }
        }
        for (mut to, reply, how) in before.send(setup, who, epoch, Command::Settle { lease, value }) {
            to.servers[setup.roles[who].1].remembers |= reply.is_none();
            to.actors[who] = Actor::Done;
            out.push(step(setup, who, "SETTLE with the lease, revision", value, how, to));
        }
    }

    pub(super) fn view(&self, setup: &Setup, who: usize) -> View {
        self.servers[setup.roles[who].1].view
    }

    /// Whether what was told to L1 in this epoch holds for everybody.
    pub(super) fn holds(&self, setup: &Setup, who: usize, epoch: u8) -> bool {
        self.view(setup, who).epoch() == Some(epoch)
    }

    /// The epoch that L1 is told in; None: the view has to be refreshed first.
    pub(super) fn epoch_to_tell(&self, setup: &Setup, who: usize) -> Option<u8> {
        match self.view(setup, who) {
            View::First => Some(0),
            View::Paused | View::Second => Some(1),
            View::TooOld => None,
        }
    }

    /// A command to L1: answered; or on its way for as long as it likes, with nobody waiting; or done twice.
    pub(super) fn send(
        &self,
        setup: &Setup,
        who: usize,
        epoch: u8,
        command: Command,
    ) -> Vec<(Self, Option<Reply>, &'static str)> {
        let slot = self.slot(setup, setup.roles[who].1, epoch);
        let mut done = self.clone();
        let reply = Some(command.execute(setup, &mut done.l1[slot], self.now));
        let mut sent = Vec::with_capacity(3);
        if let (Some(free), true) = (self.late.iter().position(Option::is_none), self.faults > 0) {
            let later = |mut state: Self| {
                state.faults -= 1;
                state.late[free] = Some((slot, command));
                state
            };
            sent.push((later(self.clone()), None, "no reply in time"));
            // Nobody sends the same id twice, so there is no second copy of these.
            let is_once = match command {
                Command::Mark { .. } => !setup.lacks(Rule::NewIdForEachMark),
                Command::Acquire { .. } => !setup.lacks(Rule::NewIdForEachAcquire),
                _ => false,
            };
            if !is_once {
                sent.push((later(done.clone()), reply, "and a second copy of the command is on its way"));
            }
        }
        sent.push((done, reply, ""));
        sent
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Write => "writer",
        Role::Conditional => "conditional writer",
        Role::Delete => "delete",
        Role::Bulk => "bulk",
        Role::WarmBulk => "warming bulk",
        Role::BulkDelete => "bulk delete",
        Role::Read => "reader",
        Role::Strong => "STRONG reader",
        Role::Flight => "flight",
    }
}

/// A step that shows no revision.
pub(super) fn plain(setup: &Setup, who: usize, does: &'static str, how: &'static str, to: State) -> Next {
    let step = Step { who: name(setup.roles[who].0), number: Some(who), does, revision: None, how };
    Next { step, to, wrong: false }
}

pub(super) fn step(setup: &Setup, who: usize, does: &'static str, value: Value, how: &'static str, to: State) -> Next {
    let mut next = plain(setup, who, does, how, to);
    next.step.revision = Some(value.version);
    next
}
