//! What a storm brought, for people as a table and for programs as JSON.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, time::Duration};

use super::{
    check::Verdict,
    client::CallRecord,
    event::{Event, Nanos},
    nemesis::Injected,
};

pub struct Report {
    pub name: String,
    pub seed: u64,
    pub seconds: u64,
    pub events: Vec<Event>,
    pub calls: Vec<CallRecord>,
    pub injected: Vec<Injected>,
    pub verdict: Verdict,
    /// From the end of the storm until all keys were hits again, equal in both tiers; None: it broke off before.
    pub settled: Option<Duration>,
}

/// The first violations, each with the events that show it.
pub fn explain(verdict: &Verdict, events: &[Event]) -> String {
    let mut text = String::new();
    for violation in verdict.violations.iter().take(10) {
        let (rule, fault, more) = (violation.rule, violation.fault, &violation.more);
        let _ = writeln!(text, "  VIOLATION {rule:?} (during: {fault}) {more}");
        if let Some(earlier) = violation.earlier {
            let _ = writeln!(text, "    earlier: {:?}", events[earlier]);
        }
        let _ = writeln!(text, "    later:   {:?}", events[violation.later]);
    }
    text
}

/// Of one sort of fault.
#[derive(Default)]
struct Row {
    times: u64,
    calls: u64,
    failed: u64,
    recovery: Duration,
    waited: u64,
}

impl Report {
    /// Prints it, and writes `target/storm/<name>-<seed>.json`.
    pub fn tell(&self) {
        println!("{}", self.table());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("storm");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{}-{}.json", self.name, self.seed)), self.json()).unwrap();
    }

    fn outcomes(&self) -> BTreeMap<&'static str, BTreeMap<&str, u64>> {
        let mut outcomes: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
        for call in &self.calls {
            *outcomes.entry(call.what).or_default().entry(call.outcome.as_str()).or_default() += 1;
        }
        outcomes
    }

    fn faults(&self) -> BTreeMap<&'static str, Row> {
        let mut rows: BTreeMap<_, Row> = BTreeMap::new();
        let mut calls: Vec<(Nanos, bool)> = self.calls.iter().map(|call| (call.invoked, call.has_failed())).collect();
        calls.sort_unstable();
        for injected in &self.injected {
            let row = rows.entry(injected.fault.name()).or_default();
            let from = calls.partition_point(|(at, _)| *at < injected.from);
            let until = calls.partition_point(|(at, _)| *at <= injected.healed);
            row.times += 1;
            row.calls += (until - from) as u64;
            row.failed += calls[from..until].iter().filter(|(_, failed)| *failed).count() as u64;
            if let Some(recovery) = injected.recovery {
                row.recovery = row.recovery.max(recovery);
                row.waited += 1;
            }
        }
        rows
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let (events, calls) = (self.events.len(), self.calls.len());
        let _ = writeln!(
            text,
            "storm {} seed {}: {} s, {calls} calls, {events} events",
            self.name, self.seed, self.seconds
        );
        for (what, outcomes) in self.outcomes() {
            let words: Vec<String> = outcomes.iter().map(|(word, count)| format!("{word} {count}")).collect();
            let _ = writeln!(text, "  {what:12} {}", words.join(", "));
        }
        let _ =
            writeln!(text, "  {:36} {:>5} {:>8} {:>7} {:>14}", "fault", "times", "calls", "failed", "recovery, max");
        for (name, row) in self.faults() {
            let recovery = if row.waited > 0 { format!("{:.1?}", row.recovery) } else { "-".to_owned() };
            let _ = writeln!(text, "  {name:36} {:>5} {:>8} {:>7} {recovery:>14}", row.times, row.calls, row.failed);
        }
        let settled = self.settled.map_or("NOT SETTLED".to_owned(), |took| format!("settled in {took:.1?}"));
        for (fault, stale) in &self.verdict.stale {
            let _ = writeln!(
                text,
                "  stale within the bound: {} reads, at most {:.1?} old, during: {fault}",
                stale.reads, stale.largest
            );
        }
        let _ = writeln!(
            text,
            "  {} answers judged, {:.1} % of them reads in an election's window; {} late repeats, {settled}, {} violations",
            self.verdict.judged,
            100.0 * self.verdict.electing as f64 / self.verdict.judged.max(1) as f64,
            self.verdict.late_repeats,
            self.verdict.violations.len()
        );
        text += &explain(&self.verdict, &self.events);
        text
    }

    fn json(&self) -> String {
        let outcomes = self.outcomes().into_iter().map(|(what, outcomes)| {
            let counts = outcomes.into_iter().map(|(word, count)| format!("{word:?}: {count}"));
            format!("{what:?}: {{{}}}", join(counts))
        });
        let faults = self.faults().into_iter().map(|(name, row)| {
            let Row { times, calls, failed, recovery, waited } = row;
            let recovery = if waited > 0 { format!("{:.3}", recovery.as_secs_f64()) } else { "null".to_owned() };
            format!("{name:?}: {{\"times\": {times}, \"calls\": {calls}, \"failed\": {failed}, \"max_recovery_s\": {recovery}}}")
        });
        let stale = self.verdict.stale.iter().map(|(fault, stale)| {
            format!("{fault:?}: {{\"reads\": {}, \"max_s\": {:.3}}}", stale.reads, stale.largest.as_secs_f64())
        });
        let mut violations: BTreeMap<String, u64> = BTreeMap::new();
        for violation in &self.verdict.violations {
            *violations.entry(format!("{:?} during {}", violation.rule, violation.fault)).or_default() += 1;
        }
        let violations = violations.into_iter().map(|(what, count)| format!("{what:?}: {count}"));
        format!(
            "{{\"name\": {:?}, \"seed\": {}, \"seconds\": {}, \"calls\": {{{}}}, \"faults\": {{{}}}, \"stale_within_bounds\": \
             {{{}}}, \"judged\": {}, \"judged_while_electing\": {}, \"late_repeats\": {}, \"settled_s\": {}, \"violations\": {{{}}}}}\n",
            self.name,
            self.seed,
            self.seconds,
            join(outcomes),
            join(faults),
            join(stale),
            self.verdict.judged,
            self.verdict.electing,
            self.verdict.late_repeats,
            self.settled.map_or("null".to_owned(), |took| format!("{:.3}", took.as_secs_f64())),
            join(violations),
        )
    }
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
