//! Judges a history: whether every answer fits one order of the writes of each key, in real time. Knows nothing of
//! servers. Takes O(n log n).
//!
//! Each write writes a value of its own, so that a read tells whose revision it saw. Then, for each key:
//!
//! - a revision belongs to one write, and a write has one revision (unless it was sent again after the record had
//!   forgotten it);
//! - what was answered with a revision before a write began has a lower one than that write;
//! - what L2 answered (STRONG reads, refusals, repeats) is not older than anything that was answered before it was asked;
//! - what a default read answers is not older than anything that was answered as confirmed before; what was answered
//!   `cached = false` or `degraded` it may hide for a while, which is measured and held to a bound;
//! - nobody reads a write that has not begun, that was refused, or less than `min_revisions` asks for;
//! - between what a merge or a condition built on and its own revision there is no other write.

mod chain;
mod key;
mod ledger;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use super::event::{Bounds, Class, Event, Nanos, Window};

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A value that no write of this key wrote, or only one that was surely refused.
    NeverWritten,
    /// A read ended before the write began that it saw.
    FromTheFuture,
    /// Two writes share a revision.
    TwoValues,
    /// One write has two revisions.
    AppliedTwice,
    /// A write's revision is not above what was answered before it began.
    NotRising,
    /// L2 answered less than was answered before it was asked.
    StaleL2,
    /// A default read answered less than was confirmed before it was asked.
    Stale,
    /// An older value was read for longer than the bound.
    BoundExceeded,
    /// A read answered less than it was asked for, or claimed that what was answered before is not there.
    MinRevision,
    /// A merge or a conditional write was applied to something else than the record before it.
    LostUpdate,
}

/// An event that breaks a rule, and the earlier one that shows it.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub earlier: Option<usize>,
    pub later: usize,
    pub fault: &'static str,
    /// What else shows it.
    pub more: String,
}

/// Older values that were read after an answer that did not promise better.
#[derive(Clone, Copy, Debug, Default)]
pub struct Staleness {
    pub reads: u64,
    pub largest: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// By the fault during which it was read.
    pub stale: BTreeMap<&'static str, Staleness>,
    /// Repeats that came after the record had forgotten their request id.
    pub late_repeats: u64,
    /// Answers that were held to the rules.
    pub judged: u64,
    /// Of those, default reads while MongoDB elected.
    pub electing: u64,
}

impl Verdict {
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self.violations.iter().map(|violation| violation.rule).collect();
        rules.sort();
        rules.dedup();
        rules
    }
}

/// What the checker knows beside the events of one key.
struct Context<'a> {
    events: &'a [Event],
    windows: &'a [Window],
    /// When MongoDB elected; they rise and do not touch.
    elections: Vec<(Nanos, Nanos)>,
    bounds: Bounds,
}

impl Context<'_> {
    /// The fault that was the last to begin, of those that reach into this time.
    fn fault(&self, from: Nanos, until: Nanos) -> Option<&Window> {
        self.windows.iter().rev().find(|window| window.from <= until && from <= window.until)
    }

    fn violation(&self, rule: Rule, earlier: Option<usize>, later: usize) -> Violation {
        let event = &self.events[later];
        let fault = self.fault(event.invoked, event.returned).map_or("none", |window| window.fault);
        Violation { rule, earlier, later, fault, more: String::new() }
    }

    /// Whether a default read may be older than what was confirmed.
    fn is_electing(&self, event: &Event) -> bool {
        let next = self.elections.partition_point(|(_, until)| *until < event.invoked);
        self.elections.get(next).is_some_and(|(from, _)| *from <= event.returned)
    }
}

fn elections(windows: &[Window]) -> Vec<(Nanos, Nanos)> {
    let mut elections: Vec<(Nanos, Nanos)> = Vec::new();
    for window in windows.iter().filter(|window| window.class == Class::Election) {
        match elections.last_mut() {
            Some((_, until)) if window.from <= *until => *until = window.until.max(*until),
            _ => elections.push((window.from, window.until)),
        }
    }
    elections
}

/// Judges all keys. The windows are in the order of their starts.
pub fn check(events: &[Event], windows: &[Window], bounds: Bounds) -> Verdict {
    let context = Context { events, windows, elections: elections(windows), bounds };
    let mut by_key: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (i, event) in events.iter().enumerate() {
        by_key.entry(event.key).or_default().push(i);
    }
    let mut verdict = Verdict::default();
    for of_key in by_key.values_mut() {
        of_key.sort_by_key(|i| events[*i].invoked);
        key::check(&context, of_key, &mut verdict);
    }
    verdict
}
