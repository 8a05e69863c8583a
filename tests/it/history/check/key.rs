//! The order of one key's answers: revisions never run against real time.

use std::time::Duration;

use super::{Context, Rule, Verdict, chain, ledger::Ledger};
use crate::history::event::{Answer, Attempt, Call, Nanos};

/// An answer that told a revision.
struct Point {
    revision: i64,
    returned: Nanos,
    /// It promised that every later default read sees it.
    confirmed: bool,
    event: usize,
}

/// For every revision, who was the first to answer it or a newer one.
struct Floor {
    /// Rising.
    revisions: Vec<i64>,
    first: Vec<(Nanos, usize)>,
}

impl Floor {
    fn of<'a>(points: impl Iterator<Item = &'a Point>) -> Self {
        let mut points: Vec<&Point> = points.collect();
        points.sort_by_key(|point| point.revision);
        let mut first = vec![(Nanos::MAX, 0); points.len()];
        let mut earliest = (Nanos::MAX, 0);
        for (place, point) in first.iter_mut().zip(&points).rev() {
            earliest = earliest.min((point.returned, point.event));
            *place = earliest;
        }
        Self { revisions: points.iter().map(|point| point.revision).collect(), first }
    }

    /// Who answered `revision` or newer before `at`, and when.
    fn at_least(&self, revision: i64, at: Nanos) -> Option<(Nanos, usize)> {
        let place = self.revisions.partition_point(|other| *other < revision);
        self.first.get(place).copied().filter(|(returned, _)| *returned < at)
    }
}

pub(super) fn check(context: &Context<'_>, key: &[usize], verdict: &mut Verdict) {
    let ledger = Ledger::of(context, key, verdict);
    let points: Vec<Point> = key.iter().filter_map(|i| point(context, *i)).collect();
    let answered = Floor::of(points.iter());
    let confirmed = Floor::of(points.iter().filter(|point| point.confirmed));
    verdict.judged += points.len() as u64;
    for point in &points {
        let event = &context.events[point.event];
        match event.call {
            Call::Read { at_least, .. } if point.revision < at_least => {
                verdict.violations.push(context.violation(Rule::MinRevision, None, point.event));
            }
            Call::Read { strong: false, .. } => {
                verdict.electing += u64::from(context.is_electing(event));
                let newer = |floor: &Floor| floor.at_least(point.revision + 1, event.invoked);
                if let Some(earlier) = newer(&confirmed) {
                    judge_stale(context, earlier, point.event, verdict);
                } else if let Some(earlier) = newer(&answered) {
                    measure(context, earlier, point.event, context.bounds.unconfirmed, verdict);
                }
            }
            Call::Read { strong: true, .. } | Call::Write(_) => {
                if let Some((_, earlier)) = answered.at_least(point.revision + 1, event.invoked) {
                    verdict.violations.push(context.violation(Rule::StaleL2, Some(earlier), point.event));
                }
            }
        }
    }
    for i in key {
        if context.events[*i].answer == Answer::NotReached {
            verdict.violations.push(context.violation(Rule::MinRevision, None, *i));
        }
    }
    hold_writes_above_what_was_before(context, key, &ledger, &answered, verdict);
    chain::check(context, key, &ledger, verdict);
}

/// What an event tells of its key's revision.
fn point(context: &Context<'_>, i: usize) -> Option<Point> {
    let event = &context.events[i];
    let (revision, confirmed) = match (&event.call, &event.answer) {
        // What a server with an L1 of its own reads, the L1 of the others does not confirm.
        (_, Answer::Row { revision, degraded, .. }) => {
            (*revision, !degraded && context.bounds.follower != Some(event.server))
        }
        (_, Answer::Done { revision, cached, .. }) => (*revision, *cached),
        // A repeat tells what was stored at the first time. An error does not tell whether L1 confirmed; without a fault it
        // did.
        (Call::Write(Attempt { again: false, .. }), Answer::Mismatch { stored: stored @ 1.. }) => {
            (*stored, context.fault(event.invoked, event.returned).is_none())
        }
        _ => return None,
    };
    Some(Point { revision, returned: event.returned, confirmed, event: i })
}

/// A default read was older than what was confirmed.
fn judge_stale(context: &Context<'_>, earlier: (Nanos, usize), later: usize, verdict: &mut Verdict) {
    let event = &context.events[later];
    let says_so = matches!(event.answer, Answer::Row { degraded: true, from_l1: true, .. });
    if says_so {
        measure(context, earlier, later, context.bounds.unconfirmed, verdict);
    } else if context.bounds.follower == Some(event.server) {
        measure(context, earlier, later, context.bounds.followed, verdict);
    } else if context.is_electing(event) {
        measure(context, earlier, later, context.bounds.election, verdict);
    } else {
        verdict.violations.push(context.violation(Rule::Stale, Some(earlier.1), later));
    }
}

/// A default read was older than what was answered, which the promise allows for a while.
fn measure(context: &Context<'_>, earlier: (Nanos, usize), later: usize, bound: Duration, verdict: &mut Verdict) {
    let event = &context.events[later];
    let staleness = Duration::from_nanos(event.invoked - earlier.0);
    let found = context.violation(Rule::BoundExceeded, Some(earlier.1), later);
    let measured = verdict.stale.entry(found.fault).or_default();
    measured.reads += 1;
    measured.largest = measured.largest.max(staleness);
    if staleness > bound {
        verdict.violations.push(found);
    }
}

/// Where a write was seen, and what it was answered, is above everything that was answered before it was first sent.
fn hold_writes_above_what_was_before(
    context: &Context<'_>,
    key: &[usize],
    ledger: &Ledger,
    answered: &Floor,
    verdict: &mut Verdict,
) {
    let answers = key.iter().filter_map(|i| match (&context.events[*i].call, &context.events[*i].answer) {
        (Call::Write(attempt), Answer::Done { changed: true, revision, .. }) => {
            let write = ledger.writes.get(&attempt.write)?;
            let own = write.revisions.keys().next().copied().unwrap_or(0);
            let own = if own > *revision && ledger.may_be_forgotten(attempt.write) { 0 } else { own };
            Some((write.first_invoked, *revision, *i, own))
        }
        _ => None,
    });
    let seen = ledger.writes.values().filter_map(|write| {
        let (revision, seen) = write.revisions.first_key_value()?;
        Some((write.first_invoked, *revision, *seen, *revision))
    });
    for (invoked, revision, event, own) in answers.chain(seen) {
        let before = answered.at_least(revision, invoked).map(|(_, earlier)| earlier);
        if before.is_some() || own > revision {
            verdict.violations.push(context.violation(Rule::NotRising, before, event));
        }
    }
}
