//! What happens of itself: eviction, time, late commands, change events, new epochs, and the removal of remembered keys.

use super::{
    actors::{Actor, Document, EMPTY, Kind, L2, State, Step, View},
    explore::Next,
    l1::{Command, Value},
    setup::{Role, Rule, Setup},
};

impl State {
    pub(super) fn surroundings(&self, setup: &Setup, out: &mut Vec<Next>) {
        let mut happens = |who, number, does, revision, to| {
            out.push(Next { step: Step { who, number, does, revision, how: "" }, to, wrong: false });
        };
        for (at, slot) in self.l1.iter().enumerate() {
            if slot.is_some() && self.evictions > 0 {
                let mut to = self.clone();
                to.evictions -= 1;
                to.l1[at] = None;
                happens("L1", None, "evicts the entry", None, to);
            }
        }
        if self.now < setup.ticks && self.l1.iter().any(Option::is_some) {
            let mut to = self.clone();
            to.now += 1;
            happens("all that is timed", None, "is over", None, to);
        }
        for (at, late) in self.late.iter().enumerate() {
            if let Some((slot, command)) = late {
                let mut to = self.clone();
                to.late[at] = None;
                command.execute(setup, &mut to.l1[*slot], self.now);
                let (does, revision) = match command {
                    Command::Acquire { .. } => ("executes a late ACQUIRE", None),
                    Command::Settle { value, .. } => ("executes a late SETTLE, revision", Some(value.version)),
                    Command::Mark { .. } => ("executes a late MARK", None),
                    Command::Put { value, .. } => ("executes a late PUT, revision", Some(value.version)),
                    Command::Unmark { .. } => ("executes a late UNMARK", None),
                    Command::Remove => ("executes a late DEL", None),
                };
                happens("L1", None, does, revision, to);
            }
        }
        // Of two L1 servers repair the one that they use.
        let changes = if setup.second.is_none() { self.changes } else { 0 };
        for version in (0..8).filter(|version| changes & 1 << version != 0) {
            let to = self.repaired(setup, 0, version);
            happens("repairer", None, "SETTLE without a lease, revision", Some(version), to);
        }
        let l2 = self.l2[0];
        if setup.by_hand && l2.kind == Kind::Record {
            let mut to = self.clone();
            to.l2[0] = L2 { version: l2.version + 1, kind: Kind::Nothing, restored: false };
            happens("somebody", None, "deletes the document by hand", None, to);
        }
        if l2.kind == Kind::Tombstone && (self.is_quiet() || setup.lacks(Rule::TombstonesAreKept)) {
            let mut to = self.clone();
            to.l2[0].kind = Kind::Nothing;
            if self.is_quiet() {
                to.l1 = EMPTY; // a day has passed, and nothing in L1 lives for so long
            }
            happens("L2", None, "forgets the tombstone", None, to);
        }
        for at in setup.servers() {
            let server = &self.servers[at];
            let l2 = setup.l2_of(at);
            let shows_more = |value: &Value| value.version > self.promised[l2] && self.may_promise(setup, at);
            if let Some(value) = self.hit(setup, at).filter(shows_more) {
                let mut to = self.clone();
                to.promised[l2] = value.version;
                happens("a reader at server", Some(at), "hits revision", Some(value.version), to);
            }
            if server.remembers && !server.suspended && self.may_trust_again(setup, at) {
                let mut to = self.clone();
                if !setup.lacks(Rule::RemoveBeforeTrust) {
                    to.l1[self.slot(setup, at, (server.view == View::Second).into())] = None;
                }
                to.servers[at].remembers = false;
                to.pay(setup, at);
                happens("server", Some(at), "removes the key that it remembers, and trusts L1 again", None, to);
            }
        }
        if setup.epochs && self.changed[0].is_none() {
            self.change_epoch(setup, &mut happens);
        }
        if setup.may_change() {
            self.look_at_the_epoch(setup, &mut happens);
        }
        if setup.whose() {
            self.whose(setup, out);
        }
        if setup.ticks > 0 {
            out.iter_mut().filter(|next| next.to.l1 == EMPTY).for_each(|next| next.to.now = 0);
        }
    }

    /// The state after the repairer has removed from an entry of L1 what this change of L2 made old.
    pub(super) fn repaired(&self, setup: &Setup, slot: usize, version: u8) -> Self {
        let mut to = self.clone();
        to.changes &= !(1 << version);
        let value = Value { version, revision: version };
        Command::Settle { lease: None, value }.execute(setup, &mut to.l1[slot], self.now);
        to
    }

    /// Somebody asks for a new epoch.
    fn change_epoch(
        &self,
        setup: &Setup,
        happens: &mut impl FnMut(&'static str, Option<usize>, &'static str, Option<u8>, Self),
    ) {
        for l1 in 0..if setup.second.is_some() { 2 } else { 1 } {
            let mut to = self.clone();
            to.changed[0] = Some(Document { epoch: 1, l1 });
            let does = ["holds a new epoch", "holds a new epoch, which names L1 1"][usize::from(l1)];
            happens("L2", None, does, None, to);
        }
    }

    /// What servers learn of the epoch's document.
    fn look_at_the_epoch(
        &self,
        setup: &Setup,
        happens: &mut impl FnMut(&'static str, Option<usize>, &'static str, Option<u8>, Self),
    ) {
        for (at, server) in self.servers.iter().enumerate().filter(|(_, server)| !server.suspended) {
            let l2 = setup.l2_of(at);
            let mut becomes = |view, does| {
                let mut to = self.clone();
                to.servers[at].view = view;
                to.servers[at].leased &= view == View::First;
                // A new epoch is cold, and was told all that is owed.
                let is_new = self.document(setup, at, 1).epoch == 1 && self.is_named(setup, at, 1);
                if view == View::Second && !server.remembers && is_new {
                    to.pay(setup, at);
                }
                happens("server", Some(at), does, None, to);
            };
            match (server.view, self.changed[l2]) {
                (View::First, None) if setup.whose() => {
                    becomes(View::TooOld, "has not looked at the epoch for too long");
                }
                (View::First, None) | (View::TooOld, None) => {}
                // The history is another, and the epoch is not: nobody uses the old one any more, so there is no pause.
                (View::First | View::TooOld, Some(Document { epoch: 0, .. })) => {
                    becomes(View::Second, "sees that the epoch names the other history");
                    if server.view == View::First {
                        becomes(View::TooOld, "has not looked at the epoch for too long");
                    }
                }
                (View::First, Some(_)) => {
                    becomes(View::TooOld, "has not looked at the epoch for too long");
                    becomes(View::Paused, "sees the new epoch, and pauses");
                }
                (View::TooOld, Some(_)) => becomes(View::Paused, "sees the new epoch, and pauses"),
                // The pause is longer than a view lives.
                (View::Paused, _) if self.nobody_is_left(setup, l2) || setup.lacks(Rule::PauseAfterAChange) => {
                    becomes(View::Second, "ends its pause");
                }
                (View::Paused | View::Second, _) => {}
            }
        }
    }

    /// No write of the key is on its way behind L1's back, and the epoch is known.
    fn may_trust_again(&self, setup: &Setup, at: usize) -> bool {
        let bypasses = |(role, actor): (Role, Actor)| {
            let marks = matches!(role, Role::Write | Role::Conditional | Role::Delete);
            marks && matches!(actor, Actor::Bypasses | Actor::Committed { permit: None, .. })
        };
        let here = setup.roles.iter().zip(self.actors).filter(|((_, server), _)| *server == at);
        let counts = |epoch| self.counts_at(setup, at, epoch, Rule::RemoveFromTheNamedL1);
        let knows = self.servers[at].view.epoch().is_some_and(counts);
        knows && !here.map(|((role, _), actor)| (*role, actor)).any(bypasses)
    }
}
