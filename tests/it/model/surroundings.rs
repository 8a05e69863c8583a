//! What happens of itself: eviction, time, late commands, change events, new epochs, and the removal of remembered keys.

use super::{
    actors::{Actor, Kind, L2, State, Step, View},
    explore::Next,
    l1::{Command, Value},
    setup::{Role, Rule, Setup},
};

impl State {
    pub(super) fn surroundings(&self, setup: &Setup, out: &mut Vec<Next>) {
        let mut happens = |who, number, does, revision, to| {
            out.push(Next { step: Step { who, number, does, revision, how: "" }, to, wrong: false });
        };
        for (epoch, slot) in self.l1.iter().enumerate() {
            if slot.is_some() && self.evictions > 0 {
                let mut to = self.clone();
                to.evictions -= 1;
                to.l1[epoch] = None;
                happens("L1", None, "evicts the entry", None, to);
            }
        }
        if self.now < setup.ticks && self.l1.iter().any(Option::is_some) {
            let mut to = self.clone();
            to.now += 1;
            happens("all that is timed", None, "is over", None, to);
        }
        for (at, late) in self.late.iter().enumerate() {
            if let Some((epoch, command)) = late {
                let mut to = self.clone();
                to.late[at] = None;
                command.execute(setup, &mut to.l1[usize::from(*epoch)], self.now);
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
        for version in (0..8).filter(|version| self.changes & 1 << version != 0) {
            let mut to = self.clone();
            to.changes &= !(1 << version);
            let value = Value { version, revision: version };
            Command::Settle { lease: None, value }.execute(setup, &mut to.l1[0], self.now);
            happens("repairer", None, "SETTLE without a lease, revision", Some(version), to);
        }
        if setup.by_hand && self.l2.kind == Kind::Record {
            let mut to = self.clone();
            to.l2 = L2 { version: self.l2.version + 1, kind: Kind::Nothing };
            happens("somebody", None, "deletes the document by hand", None, to);
        }
        if self.l2.kind == Kind::Tombstone && (self.is_quiet() || setup.lacks(Rule::TombstonesAreKept)) {
            let mut to = self.clone();
            to.l2.kind = Kind::Nothing;
            if self.is_quiet() {
                to.l1 = [None, None]; // a day has passed, and nothing in L1 lives for so long
            }
            happens("L2", None, "forgets the tombstone", None, to);
        }
        for at in setup.servers() {
            let server = &self.servers[at];
            if let Some(value) = self.hit(at).filter(|value| value.version > self.promised) {
                let mut to = self.clone();
                to.promise(value.version);
                happens("a reader at server", Some(at), "hits revision", Some(value.version), to);
            }
            if server.remembers && self.may_trust_again(setup, at) {
                let mut to = self.clone();
                let epoch = usize::from(server.view == View::Second);
                if !setup.lacks(Rule::RemoveBeforeTrust) {
                    to.l1[epoch] = None;
                }
                to.servers[at].remembers = false;
                to.promise(server.owed);
                to.servers[at].owed = 0;
                happens("server", Some(at), "removes the key that it remembers, and trusts L1 again", None, to);
            }
        }
        if setup.epochs {
            self.change_epoch(setup, &mut happens);
        }
        if setup.ticks > 0 {
            out.iter_mut().filter(|next| next.to.l1 == [None, None]).for_each(|next| next.to.now = 0);
        }
    }

    fn change_epoch(
        &self,
        setup: &Setup,
        happens: &mut impl FnMut(&'static str, Option<usize>, &'static str, Option<u8>, Self),
    ) {
        if !self.changed {
            let to = Self { changed: true, ..self.clone() };
            return happens("L2", None, "holds a new epoch", None, to);
        }
        let nobody_is_left = self.servers.iter().all(|server| server.view != View::First);
        for (at, server) in self.servers.iter().enumerate() {
            let mut becomes = |view, does| {
                let mut to = self.clone();
                to.servers[at].view = view;
                if view == View::Second && !server.remembers {
                    to.promise(server.owed);
                    to.servers[at].owed = 0;
                }
                happens("server", Some(at), does, None, to);
            };
            match server.view {
                View::First => {
                    becomes(View::TooOld, "has not looked at the epoch for too long");
                    becomes(View::Paused, "sees the new epoch, and pauses");
                }
                View::TooOld => becomes(View::Paused, "sees the new epoch, and pauses"),
                // The pause is longer than a view lives.
                View::Paused if nobody_is_left || setup.lacks(Rule::PauseAfterAChange) => {
                    becomes(View::Second, "ends its pause");
                }
                View::Paused | View::Second => {}
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
        let knows = matches!(self.servers[at].view, View::First | View::Second);
        knows && !here.map(|((role, _), actor)| (*role, actor)).any(bypasses)
    }
}
