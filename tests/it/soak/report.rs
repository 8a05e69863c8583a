//! What the soak brought, as tables for docs/operations.md.

use std::{fmt, time::Duration};

use super::{caller::Seen, events::Happened, judge::Failures, memory::Instance};

pub struct Report {
    /// Calls a second that the servers could bear.
    pub most: f64,
    pub length: Duration,
    pub seen: Seen,
    pub history_calls: usize,
    pub judged: u64,
    pub wrong: u64,
    pub older_while_electing: u64,
    pub answered_electing: u64,
    pub spans: usize,
    pub failures: Vec<Failures>,
    pub memory: Vec<Instance>,
    pub events: Vec<Happened>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: u64 = self.seen.took.values().map(|took| took.len()).sum();
        let failed: u64 = self.failures.iter().filter(|sort| sort.who == "call failed").map(|sort| sort.count).sum();
        let again: u64 = self.failures.iter().filter(|sort| sort.who == "sent again").map(|sort| sort.count).sum();
        let seconds = self.length.as_secs_f64();
        writeln!(f, "\n| | |\n|---|---|")?;
        writeln!(f, "| length | {seconds:.0} s |")?;
        writeln!(f, "| maximal load | {:.0} calls/s |", self.most)?;
        writeln!(f, "| load of the soak | {:.0} calls/s |", (calls + failed) as f64 / seconds)?;
        writeln!(f, "| calls | {} and {} of the history |", calls + failed, self.history_calls)?;
        writeln!(f, "| answers checked (rows, results of writes) | {} |", self.judged)?;
        writeln!(f, "| wrong answers | {} |", self.wrong)?;
        writeln!(f, "| older answers, degraded or while MongoDB elected | {} |", self.older_while_electing)?;
        writeln!(f, "| calls answered while MongoDB elected | {} |", self.answered_electing)?;
        writeln!(f, "| calls sent again to the other server | {again} |")?;
        writeln!(f, "| calls failed | {failed} |")?;
        writeln!(f, "| spans received, 1 % of the calls | {} |", self.spans)?;
        writeln!(f, "\n| call | answered | p50 | p99 | p99.9 | longest |\n|---|---|---|---|---|---|")?;
        for (what, took) in &self.seen.took {
            let at = |quantile| format!("{:.1} ms", took.value_at_quantile(quantile) as f64 / 1000.0);
            writeln!(f, "| {what} | {} | {} | {} | {} | {} |", took.len(), at(0.5), at(0.99), at(0.999), at(1.0))?;
        }
        writeln!(f, "\n| event | after | both servers normal after | |\n|---|---|---|---|")?;
        for event in &self.events {
            let (at, recovered) = (event.at.as_secs(), event.recovered);
            writeln!(f, "| {} | {at} s | {recovered:.1?} | {} |", event.what, event.note)?;
        }
        writeln!(
            f,
            "\n| during | who | call | reason | times | the last, after the event | allowed |\n|---|---|---|---|---|---|---|"
        )?;
        for sort in &self.failures {
            let Failures { window, who, what, reason, count, latest, allowed } = sort;
            let allowed = if *allowed { "yes" } else { "NO" };
            writeln!(f, "| {window} | {who} | {what} | {reason} | {count} | {latest:.1?} | {allowed} |")?;
        }
        writeln!(
            f,
            "\n| server | lived | RSS, MiB: 1st third | 2nd | 3rd | last | largest | |\n|---|---|---|---|---|---|---|---|"
        )?;
        for instance in &self.memory {
            writeln!(f, "| {} |", instance.row())?;
        }
        Ok(())
    }
}
