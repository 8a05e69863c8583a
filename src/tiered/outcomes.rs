//! The results of operations on L1 entries: which fills L1 installed, and which it refused or
//! dropped. A refused fill is no failure, but many of them mean misses that could be avoided.
//!
//! Not here: what the repairer removes (`repair`), and commands that failed (`meter`).

use std::array;

use crate::{
    cache::{Acquired, CacheError, Effect, Marked},
    metrics::Counter,
};

/// An operation on an entry whose `Effect` is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A SETTLE with a lease, to install what L2 returned.
    Fill,
    /// A SETTLE without a lease, to remove what is older.
    Settle,
    /// A PUT, at the end of a write.
    Put,
    /// An UNMARK, after a write that failed.
    Unmark,
}

/// Counts of entries, by operation and result.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Hit, lease, refused.
    acquired: [Counter; 3],
    /// Granted, overflow.
    marked: [Counter; 2],
    /// By step: installed, dropped, kept, no entry.
    effects: [[Counter; 4]; 4],
}

impl Outcomes {
    pub(super) fn acquired(&self, answers: &[Result<Acquired, CacheError>]) {
        let place = |answer: &Acquired| match answer {
            Acquired::Hit(_) => 0,
            Acquired::Lease { .. } => 1,
            Acquired::NoFill { .. } => 2,
        };
        count(&self.acquired, answers.iter().flatten().map(place));
    }

    pub(super) fn marked(&self, answers: &[Result<Marked, CacheError>]) {
        count(&self.marked, answers.iter().flatten().map(|answer| usize::from(*answer == Marked::Overflow)));
    }

    pub(super) fn effects<'a>(&self, step: Step, answers: impl IntoIterator<Item = &'a Result<Effect, CacheError>>) {
        let place = |effect: &Effect| match effect {
            Effect::Installed => 0,
            Effect::Dropped => 1,
            Effect::Kept => 2,
            Effect::NoEntry => 3,
        };
        count(&self.effects[step as usize], answers.into_iter().flatten().map(place));
    }

    /// Step, outcome and count, as labels and value of the metric.
    pub fn reading(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let named = |step, outcomes: &'static [&'static str], counts: &[Counter]| {
            outcomes.iter().zip(counts).map(|(outcome, count)| (step, *outcome, count.get())).collect::<Vec<_>>()
        };
        let acquired = named("acquire", &["hit", "lease", "refused"], &self.acquired);
        let marked = named("mark", &["granted", "overflow"], &self.marked);
        let steps = ["fill", "settle", "put", "unmark"].into_iter().zip(&self.effects);
        let effects =
            steps.flat_map(move |(step, counts)| named(step, &["installed", "dropped", "kept", "no_entry"], counts));
        acquired.into_iter().chain(marked).chain(effects)
    }
}

/// Adds once to each counter, and to none that stays the same.
fn count<const N: usize>(counters: &[Counter; N], places: impl Iterator<Item = usize>) {
    let mut counts = [0; N];
    places.for_each(|place| counts[place] += 1);
    for (counter, count) in array::from_fn::<_, N, _>(|i| (&counters[i], counts[i])) {
        if count > 0 {
            counter.add(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_counted_where_it_belongs() {
        let outcomes = Outcomes::default();
        outcomes.acquired(&[Ok(Acquired::Lease { suspect: None }), Ok(Acquired::NoFill { suspect: None })]);
        outcomes.marked(&[Ok(Marked::Granted), Err(CacheError::Timeout), Ok(Marked::Granted)]);
        outcomes.effects(Step::Put, &[Ok(Effect::NoEntry), Ok(Effect::Installed)]);
        let counted: Vec<_> = outcomes.reading().filter(|(_, _, count)| *count > 0).collect();
        let expected = [
            ("acquire", "lease", 1),
            ("acquire", "refused", 1),
            ("mark", "granted", 2),
            ("put", "installed", 1),
            ("put", "no_entry", 1),
        ];
        assert_eq!(counted, expected);
    }
}
