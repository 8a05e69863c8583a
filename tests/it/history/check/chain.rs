//! What a merge and a condition built on: the write right before them, and no earlier one.

use super::{
    Context, Rule, Verdict,
    ledger::{Ledger, Stands, is_single},
};
use crate::history::event::{Answer, Attempt, Kind, Value};

pub(super) fn check(context: &Context<'_>, key: &[usize], ledger: &Ledger, verdict: &mut Verdict) {
    let has_deletes = ledger.writes.values().any(|write| write.kind == Kind::Delete);
    for i in key {
        let event = &context.events[*i];
        match &event.answer {
            Answer::Row { revision, value: Some(value), .. } => {
                if let Some(earlier) = broken_base(ledger, *revision, *value, has_deletes) {
                    verdict.violations.push(context.violation(Rule::LostUpdate, earlier, *i));
                }
            }
            Answer::Done { changed: true, revision, .. } => {
                let Some(Attempt { write, if_revision: Some(built_on), .. }) = is_single(event) else { continue };
                // Answered after a repeat, it may be another write's.
                let is_own = ledger.revisions.get(revision).is_some_and(|(what, _)| *what == Stands::Record(*write));
                if !is_own {
                    continue;
                }
                if let Some(between) = between(ledger, *built_on, *revision, has_deletes) {
                    verdict.violations.push(context.violation(Rule::LostUpdate, Some(between), *i));
                }
            }
            _ => {}
        }
    }
}

/// The event that shows a write between a revision and the one that was built on it. On 0, no live record, anything but
/// a tombstone.
fn between(ledger: &Ledger, built_on: i64, revision: i64, has_deletes: bool) -> Option<usize> {
    if built_on == 0 {
        let (_, (what, seen)) = ledger.revisions.range(..revision).next_back()?;
        // A delete that nobody saw may lie between.
        return (*what != Stands::Tombstone && !has_deletes).then_some(*seen);
    }
    let mut between = ledger.revisions.range(built_on + 1..revision.max(built_on + 1));
    between.next().map(|(_, (_, seen))| *seen)
}

/// Whether a record's base is another than the last replacement before it; the event that shows it, if one does.
fn broken_base(ledger: &Ledger, revision: i64, value: Value, has_deletes: bool) -> Option<Option<usize>> {
    let write = ledger.writes.get(&value.last)?;
    if write.kind == Kind::Replace {
        return (value.base != Some(value.last)).then_some(None);
    }
    // The last one before it that merged nothing.
    let before = ledger.revisions.range(..revision).rev().find(|(_, (what, _))| match what {
        Stands::Tombstone => true,
        Stands::Record(number) => ledger.writes.get(number).is_some_and(|write| write.kind == Kind::Replace),
    });
    let (barrier, barrier_seen) = before.map_or((0, None), |(revision, (_, seen))| (*revision, Some(*seen)));
    match value.base {
        // What it replaced may have been deleted unseen.
        None => {
            let lost = !has_deletes && barrier > 0;
            lost.then_some(barrier_seen)
        }
        Some(number) => {
            let Some(base) = ledger.writes.get(&number) else { return Some(None) };
            // Its own revision may be unknown; one that was applied twice is judged elsewhere.
            let (Some(own), true) = (base.revisions.keys().next(), base.revisions.len() == 1) else { return None };
            let lost = (*own < barrier || *own > revision) && !ledger.may_be_forgotten(number);
            lost.then_some(barrier_seen)
        }
    }
}
