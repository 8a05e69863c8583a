//! Whose each revision is: what the answers together tell of one key's writes.

use std::collections::{BTreeMap, HashMap};

use super::{Context, Rule, Verdict, Violation};
use crate::history::event::{Answer, Attempt, Call, Event, Kind, Nanos, Value};

/// How many of its latest writes a record remembers, by the API's promise.
const REMEMBERED_REQUESTS: usize = 8;

/// How long after its client gave up a sending may still reach L2: the servers' deadline for writes.
const LATEST: Nanos = 3_000_000_000;

/// All sendings of one write.
pub(super) struct Write {
    pub kind: Kind,
    pub first_invoked: Nanos,
    /// When the last of its sendings can have reached L2.
    pub ended: Nanos,
    pub sendings: usize,
    /// Every sending of it was refused.
    pub refused: bool,
    /// Where it was seen, with the event that showed it.
    pub revisions: BTreeMap<i64, usize>,
}

/// What stands at a revision.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    Record(u64),
    Tombstone,
}

/// The first sending of a single write.
pub(super) fn is_single(event: &Event) -> Option<&Attempt> {
    match &event.call {
        Call::Write(attempt) if !attempt.again && !attempt.batched => Some(attempt),
        _ => None,
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    pub writes: HashMap<u64, Write>,
    pub revisions: BTreeMap<i64, (Stands, usize)>,
    /// When each write was sent and answered, for how much a record may have forgotten.
    attempts: Vec<(Nanos, Nanos, u64)>,
}

impl Ledger {
    pub(super) fn of(context: &Context<'_>, key: &[usize], verdict: &mut Verdict) -> Self {
        let mut ledger = Self::default();
        for i in key {
            let event = &context.events[*i];
            if let Call::Write(attempt) = &event.call {
                let refused = matches!(event.answer, Answer::Refused | Answer::Mismatch { .. });
                let write = ledger.writes.entry(attempt.write).or_insert(Write {
                    kind: attempt.kind,
                    first_invoked: event.invoked,
                    ended: 0,
                    sendings: 0,
                    refused: true,
                    revisions: BTreeMap::new(),
                });
                write.refused &= refused;
                let late = if event.answer == Answer::Unknown { LATEST } else { 0 };
                write.ended = write.ended.max(event.returned + late);
                write.sendings += 1;
                ledger.attempts.push((event.invoked, event.returned + late, attempt.write));
            }
        }
        for i in key {
            let event = &context.events[*i];
            match (&event.call, &event.answer) {
                (Call::Read { .. }, Answer::Row { revision, value: Some(value), .. }) => {
                    ledger.saw(context, *i, *revision, *value, verdict);
                }
                (Call::Read { .. }, Answer::Row { revision: revision @ 1.., value: None, .. }) => {
                    ledger.stands(context, *i, *revision, Stands::Tombstone, verdict);
                }
                _ => {}
            }
        }
        ledger.take_claims(context, key);
        ledger.hold_tombstones_to_deletes(context, verdict);
        ledger.hold_writes_to_one_revision(context, verdict);
        ledger
    }

    fn saw(&mut self, context: &Context<'_>, i: usize, revision: i64, value: Value, verdict: &mut Verdict) {
        match self.writes.get(&value.last) {
            Some(write) if write.kind != Kind::Delete && !write.refused => {
                if write.first_invoked > context.events[i].returned {
                    verdict.violations.push(context.violation(Rule::FromTheFuture, None, i));
                }
                self.stands(context, i, revision, Stands::Record(value.last), verdict);
            }
            _ => verdict.violations.push(context.violation(Rule::NeverWritten, None, i)),
        }
    }

    fn stands(&mut self, context: &Context<'_>, i: usize, revision: i64, what: Stands, verdict: &mut Verdict) {
        let (known, earlier) = *self.revisions.entry(revision).or_insert((what, i));
        if known != what {
            verdict.violations.push(context.violation(Rule::TwoValues, Some(earlier), i));
        } else if let Stands::Record(write) = what
            && let Some(write) = self.writes.get_mut(&write)
        {
            write.revisions.entry(revision).or_insert(i);
        }
    }

    /// Whether the record may have forgotten this write before its last sending reached L2, so that it was applied again.
    pub(super) fn may_be_forgotten(&self, number: u64) -> bool {
        let Some(write) = self.writes.get(&number).filter(|write| write.sendings > 1) else { return false };
        let during = |(invoked, ended, other): &&(Nanos, Nanos, u64)| {
            *other != number && *invoked <= write.ended && *ended >= write.first_invoked
        };
        self.attempts.iter().filter(during).count() >= REMEMBERED_REQUESTS
    }

    /// A write's answer tells the revision of what stands then: its own, unless the server itself had to try twice and
    /// others came between. So it is taken for its own only where nothing speaks against it.
    fn take_claims(&mut self, context: &Context<'_>, key: &[usize]) {
        let mut claims: BTreeMap<i64, Vec<(u64, usize)>> = BTreeMap::new();
        for i in key {
            let event = &context.events[*i];
            if let (Some(attempt), Answer::Done { changed: true, revision, .. }) = (is_single(event), &event.answer) {
                claims.entry(*revision).or_default().push((attempt.write, *i));
            }
        }
        for (revision, claims) in claims {
            let ([(number, i)], false) = (&claims[..], self.revisions.contains_key(&revision)) else { continue };
            let Some(write) = self.writes.get_mut(number).filter(|write| write.revisions.is_empty()) else { continue };
            let what = if write.kind == Kind::Delete { Stands::Tombstone } else { Stands::Record(*number) };
            if write.kind != Kind::Delete {
                write.revisions.insert(revision, *i);
            }
            self.revisions.insert(revision, (what, *i));
        }
    }

    /// The k-th tombstone that a read shows needs k deletes that had begun; one that was forgotten counts for each sending.
    fn hold_tombstones_to_deletes(&self, context: &Context<'_>, verdict: &mut Verdict) {
        let mut seen: Vec<(Nanos, usize)> = (self.revisions.values())
            .filter(|(what, i)| *what == Stands::Tombstone && matches!(context.events[*i].answer, Answer::Row { .. }))
            .map(|(_, i)| (context.events[*i].returned, *i))
            .collect();
        let mut begun: Vec<Nanos> = Vec::new();
        for (number, write) in &self.writes {
            if write.kind == Kind::Delete && !write.refused {
                let times = if self.may_be_forgotten(*number) { write.sendings } else { 1 };
                begun.extend(std::iter::repeat_n(write.first_invoked, times));
            }
        }
        seen.sort_unstable();
        begun.sort_unstable();
        for (k, (at, i)) in seen.into_iter().enumerate() {
            if begun.get(k).is_none_or(|begun| *begun > at) {
                verdict.violations.push(context.violation(Rule::NeverWritten, None, i));
                return;
            }
        }
    }

    fn hold_writes_to_one_revision(&self, context: &Context<'_>, verdict: &mut Verdict) {
        for (number, write) in &self.writes {
            if write.revisions.len() < 2 {
                continue;
            }
            if self.may_be_forgotten(*number) {
                verdict.late_repeats += 1;
                continue;
            }
            let mut seen = write.revisions.values();
            let (earlier, later) = (seen.next().copied(), seen.next().copied().unwrap_or_default());
            let violation = context.violation(Rule::AppliedTwice, earlier, later);
            let (kind, sendings) = (write.kind, write.sendings);
            let more = format!("write {number}, {kind:?}, sent {sendings} times, at first at {}", write.first_invoked);
            verdict.violations.push(Violation { more, ..violation });
        }
    }
}
