//! Which L1 counts, and for which L2: what a server's connection leads to, what the epoch's document names, who uses it,
//! and who takes it over. There are two L1 (0 and 1) and two L2 (the second is a copy of the first).
//!
//! - The lease of whoever uses the named L1 outlives its view of the epoch, so at the earliest it has run out when nobody
//!   has a fresh view any more.
//! - A new connection is used only when the marker was seen over it, so whether it leads to the named L1 is known at once.

use super::{
    actors::{Actor, COPIED, Document, L2, State, Step, View},
    explore::Next,
    l1::{Command, Reply, Value},
    setup::{Role, Rule, Second, Setup},
};

/// How an answer of an L1 that does not count is told.
pub(super) const ELSEWHERE: &str = "confirmed by an L1 that does not count, so it answers cached = false";

impl State {
    /// How it begins where there are two L1, or two L2.
    pub(super) fn first_of_two(&mut self, setup: &Setup) {
        match setup.second {
            Some(Second::Replica | Second::Restored) => self.l1[2] = self.l1[0].clone(),
            Some(Second::Private) => self.servers[1].connected = 1,
            _ => {}
        }
        if setup.copied {
            self.servers[1].view = View::TooOld;
        }
    }

    /// The epoch's document before or after its change, as this server knows it.
    pub(super) fn document(&self, setup: &Setup, at: usize, epoch: u8) -> Document {
        let first = Document { epoch: 0, l1: 0 };
        if epoch == 0 { first } else { self.changed[setup.l2_of(at)].unwrap_or(Document { epoch: 1, l1: 0 }) }
    }

    /// Where a server's commands go.
    pub(super) fn slot(&self, setup: &Setup, at: usize, epoch: u8) -> usize {
        let epoch = self.document(setup, at, epoch).epoch;
        usize::from(2 * self.servers[at].connected + epoch)
    }

    /// Whether a server finds, by the marker that it sees, that its L1 is the one that the document names.
    pub(super) fn is_named(&self, setup: &Setup, at: usize, epoch: u8) -> bool {
        // A connection of its own stays where it was when all others have gone elsewhere.
        let looks_at = if setup.lacks(Rule::MarkerOverTheSameConnection) { 0 } else { self.servers[at].connected };
        let same_id = match setup.second {
            None => true,
            Some(Second::Other | Second::Private) => setup.lacks(Rule::EpochNamesItsL1),
            Some(Second::Unmarked) => setup.lacks(Rule::AnotherRunIsAnotherL1),
            Some(Second::Replica | Second::Restored) => setup.lacks(Rule::EpochNamesTheHistory),
        };
        same_id || looks_at == self.document(setup, at, epoch).l1
    }

    /// Whether a server with a fresh view reads from its L1 and fills it. What is its own follows L2's change events.
    pub(super) fn uses_l1(&self, setup: &Setup, at: usize, epoch: u8) -> bool {
        self.is_named(setup, at, epoch) || is_private(setup, at)
    }

    /// Whether what this server's L1 confirms is everybody's, or is taken for it without the rule.
    pub(super) fn counts_at(&self, setup: &Setup, at: usize, epoch: u8, rule: Rule) -> bool {
        let alone = is_private(setup, at) && setup.lacks(Rule::PrivateL1CountsOnlyAlone);
        self.is_named(setup, at, epoch) || setup.lacks(rule) || alone
    }

    /// The reply to the last command of a write, if it counts.
    pub(super) fn confirmed(
        &self,
        setup: &Setup,
        at: usize,
        epoch: u8,
        reply: Option<Reply>,
        how: &'static str,
    ) -> (Option<Reply>, &'static str) {
        match reply {
            // What is its own has it, and nobody else looks there.
            Some(_) if is_private(setup, at) => (reply, how),
            Some(_) if !self.counts_at(setup, at, epoch, Rule::WriteConfirmedByTheNamedL1) => (None, ELSEWHERE),
            reply => (reply, how),
        }
    }

    /// Whether what this server answers is promised to others: not where its L1 is its own, beside others.
    pub(super) fn may_promise(&self, setup: &Setup, at: usize) -> bool {
        let epoch = u8::from(matches!(self.servers[at].view, View::Paused | View::Second));
        !is_private(setup, at) || self.counts_at(setup, at, epoch, Rule::PrivateL1CountsOnlyAlone)
    }

    /// Whether a hit breaks the promise.
    pub(super) fn is_too_old(&self, setup: &Setup, at: usize, value: Value) -> bool {
        // What others wrote is on its way to an L1 that is a server's own.
        let lags = is_private(setup, at) && self.changes != 0 && !self.may_promise(setup, at);
        let is_old = value.version < self.promised[setup.l2_of(at)] && !self.excused && !lags;
        is_old || self.is_of_the_other_l2(setup, at, value)
    }

    /// Whether only the other L2 ever held this.
    pub(super) fn is_of_the_other_l2(&self, setup: &Setup, at: usize, value: Value) -> bool {
        let is_copied = value.version & COPIED != 0;
        setup.copied && value.version > 1 && is_copied != (setup.l2_of(at) == 1)
    }

    /// No server of this L2 has a fresh view of the first document. A suspended one is not known of.
    pub(super) fn nobody_is_left(&self, setup: &Setup, l2: usize) -> bool {
        let mut here = self.servers.iter().enumerate().filter(|(at, _)| setup.l2_of(*at) == l2);
        here.all(|(_, server)| server.suspended || server.view != View::First)
    }

    /// The lease for the L1 that the first document names is alive.
    fn is_in_use(&self, setup: &Setup) -> bool {
        let uses = |at: usize| {
            let server = &self.servers[at];
            server.view == View::First && server.leased && !server.suspended && self.is_named(setup, at, 0)
        };
        (0..2).any(uses)
    }

    /// All that happens of itself because of it.
    pub(super) fn whose(&self, setup: &Setup, out: &mut Vec<Next>) {
        for at in setup.servers() {
            if self.servers[at].suspended {
                self.wake(setup, at, out);
                continue;
            }
            self.go_elsewhere(setup, at, out);
            self.look_again(setup, at, out);
            if setup.second.is_some() {
                self.take_over(setup, at, out);
                self.repair(setup, at, out);
            }
            if setup.suspends && self.servers[at].view == View::First {
                let mut to = self.clone();
                to.servers[at].suspended = true;
                happens(out, at, "is suspended with its machine", to);
            }
        }
        if setup.second == Some(Second::Replica) {
            self.replicate(out);
        }
        // After the change it would take a third document.
        if setup.restores && !self.replaced && self.changed[0].is_none() {
            self.restore(setup, out);
        }
    }

    /// A server's connection is a new one, or the server is.
    fn go_elsewhere(&self, setup: &Setup, at: usize, out: &mut Vec<Next>) {
        let other = 1 - self.servers[at].connected;
        let is_there = match setup.second {
            None | Some(Second::Private) => false,
            Some(Second::Replica) => self.promoted || other == 0,
            Some(_) => true,
        };
        if is_there && self.moves > 0 {
            let mut to = self.clone();
            to.moves -= 1;
            to.servers[at].connected = other;
            happens(out, at, ["reconnects, to L1 0", "reconnects, to L1 1"][usize::from(other)], to);
        }
        if is_there && self.restarts > 0 {
            let mut to = self.stopped(setup, at);
            to.restarts -= 1;
            to.servers[at].connected = other;
            happens(out, at, ["is restarted with L1 0", "is restarted with L1 1"][usize::from(other)], to);
        }
    }

    /// A server is killed, and starts again with nothing.
    fn stopped(&self, setup: &Setup, at: usize) -> Self {
        let mut to = self.clone();
        let server = &mut to.servers[at];
        (server.view, server.leased, server.remembers, server.owed) = (View::TooOld, false, false, 0);
        for (who, (role, _)) in setup.roles.iter().enumerate().filter(|(_, (_, server))| *server == at) {
            if to.actors[who] != Actor::Idle {
                let again = matches!(role, Role::Read | Role::Strong);
                to.actors[who] = if again { setup.after_a_read() } else { Actor::Done };
            }
        }
        to
    }

    /// A view that was too old is refreshed; where L2 is another than the document says, it begins anew.
    fn look_again(&self, setup: &Setup, at: usize, out: &mut Vec<Next>) {
        let (server, l2) = (&self.servers[at], setup.l2_of(at));
        if self.changed[l2].is_some() {
            return;
        }
        if server.view == View::First && !server.leased {
            let mut to = self.clone();
            to.servers[at].leased = true;
            happens(out, at, "says in L2 that it uses its L1", to);
        }
        if server.view != View::TooOld {
            return;
        }
        let mut to = self.clone();
        if setup.lacks(Rule::MarkerIsNeverOverwritten) && self.is_in_use(setup) {
            let (who, does, how) = ("server", "starts, and writes a marker of its own", "over that of an L1 in use");
            let step = Step { who, number: Some(at), does, revision: None, how };
            out.push(Next { step, to: to.clone(), wrong: true });
        }
        if (l2 == 1 || self.replaced) && !setup.lacks(Rule::L2HasAnIdentity) {
            to.changed[l2] = Some(Document { epoch: 1, l1: server.connected });
            to.servers[at].view = View::Paused;
            happens(out, at, "finds that L2 is another than the epoch's, and makes a new epoch", to);
        } else {
            to.servers[at].view = View::First;
            to.servers[at].leased = !setup.lacks(Rule::LeaseWithTheLook);
            happens(out, at, "looks at the epoch", to);
        }
    }

    /// A server whose L1 is not the named one makes a new epoch that names it, or moves the history on.
    fn take_over(&self, setup: &Setup, at: usize, out: &mut Vec<Next>) {
        let knows = matches!(self.servers[at].view, View::First | View::TooOld);
        if !knows || self.changed[0].is_some() || self.is_named(setup, at, 0) {
            return;
        }
        let moves_on = match setup.second {
            Some(Second::Replica | Second::Restored) => {
                (setup.repairer || setup.lacks(Rule::NoReplicaWithoutARepairer))
                    && (!self.aged || setup.lacks(Rule::OldMarkerIsARestoredL1))
            }
            _ => false,
        };
        let rule = if moves_on { Rule::HistoryMovesAfterTheLease } else { Rule::TakeoverAfterTheLease };
        let in_use = self.is_in_use(setup);
        if in_use && !setup.lacks(rule) {
            return;
        }
        let mut to = self.clone();
        to.changed[0] = Some(Document { epoch: u8::from(!moves_on), l1: self.servers[at].connected });
        to.servers[at].view = if moves_on { View::Second } else { View::Paused };
        to.excused = moves_on && setup.repairer && !self.aged;
        let does = if moves_on { "moves the history on to its L1" } else { "makes a new epoch for its L1, and pauses" };
        let how = if in_use { "which another server uses" } else { "" };
        let step = Step { who: "server", number: Some(at), does, revision: None, how };
        // It would go on for ever, each taking it from the other.
        out.push(Next { step, to, wrong: in_use && !moves_on });
    }

    /// L2's change events reach L1 through a server, and what was answered with `cached = false` is promised from then on.
    fn repair(&self, setup: &Setup, at: usize, out: &mut Vec<Next>) {
        let epoch = match self.servers[at].view {
            View::First if self.changed[0].is_none() => 0,
            View::Second => 1,
            _ => return,
        };
        let follows = setup.second == Some(Second::Private);
        if if follows { at != 1 } else { !self.counts_at(setup, at, epoch, Rule::RepairOfTheNamedL1) } {
            return;
        }
        for version in (0..8).filter(|version| self.changes & 1 << version != 0) {
            let mut to = self.repaired(setup, self.slot(setup, at, epoch), version);
            if !follows && self.servers.iter().any(|server| server.owed >= version) {
                to.promised[0] = to.promised[0].max(version);
            }
            let step = Step {
                who: "repairer at server",
                number: Some(at),
                does: "SETTLE without a lease, revision",
                revision: Some(version),
                how: "",
            };
            out.push(Next { step, to, wrong: false });
        }
        // It comes when everything of before the failover has long ended.
        let is_of_before = |actor: &Actor| match actor {
            Actor::Marked { epoch, .. } | Actor::Missed { epoch, .. } | Actor::Read { epoch, .. } => *epoch == 0,
            Actor::Committed { permit, .. } => permit.is_some_and(|(_, epoch)| epoch == 0),
            _ => false,
        };
        if self.excused && self.changes == 0 && !self.actors.iter().any(is_of_before) {
            let mut to = self.clone();
            to.excused = false;
            let (slot, value) = (self.slot(setup, at, epoch), self.l2[0].value());
            Command::Settle { lease: None, value }.execute(setup, &mut to.l1[slot], self.now);
            happens(out, at, "repairs in a second pass what the failover may have lost", to);
        }
    }

    /// A replica follows, is promoted, and its marker grows old: nobody renews it in an L1 that the epoch does not name.
    fn replicate(&self, out: &mut Vec<Next>) {
        let mut happens = |does, change: &dyn Fn(&mut Self)| {
            let mut to = self.clone();
            change(&mut to);
            let step = Step { who: "L1 1", number: None, does, revision: None, how: "" };
            out.push(Next { step, to, wrong: false });
        };
        if self.promoted {
            if self.changed[0].is_none() && !self.aged {
                happens("has followed nobody for so long that its marker is old", &|to| to.aged = true);
            }
            return;
        }
        if self.l1[..2] != self.l1[2..] {
            let follow = |to: &mut Self| {
                let (followed, follower) = to.l1.split_at_mut(2);
                follower.clone_from_slice(followed);
            };
            happens("has all that L1 0 has", &follow);
        }
        happens("is promoted", &|to| to.promoted = true);
    }

    /// Everybody stops, and L2 is what it was at the beginning.
    fn restore(&self, setup: &Setup, out: &mut Vec<Next>) {
        let mut to = (0..2).fold(self.clone(), |state, at| state.stopped(setup, at));
        to.replaced = true;
        let L2 { version, kind, .. } = self.l2[0];
        to.l2[0] = L2 { version: version + 1, kind, restored: true };
        to.promised[0] = version + 1;
        (to.changes, to.late) = (0, [None; 2]);
        let does = "is restored from a backup while no server runs, and holds revision 1 as";
        let step = Step { who: "L2", number: None, does, revision: Some(version + 1), how: "" };
        out.push(Next { step, to, wrong: false });
    }

    fn wake(&self, setup: &Setup, at: usize, out: &mut Vec<Next>) {
        let mut to = self.clone();
        to.servers[at].suspended = false;
        let does = if setup.lacks(Rule::ViewIsFreshByTheWallClock) {
            "wakes, and its clock says that it has just looked at the epoch"
        } else {
            to.servers[at].view = View::TooOld;
            to.servers[at].leased = false;
            "wakes, and looks again first"
        };
        happens(out, at, does, to);
    }
}

fn is_private(setup: &Setup, at: usize) -> bool {
    setup.second == Some(Second::Private) && at == 1
}

/// A step of a server.
fn happens(out: &mut Vec<Next>, at: usize, does: &'static str, to: State) {
    out.push(Next { step: Step { who: "server", number: Some(at), does, revision: None, how: "" }, to, wrong: false });
}
