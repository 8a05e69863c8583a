//! Which calls may fail: none, but calls that need MongoDB while it elects, and first sendings to a server that is being
//! restarted, which its clients send to the other one.

use std::{collections::BTreeMap, time::Duration};

use super::{
    caller::{Failed, NO_CONNECTION},
    events::{KILL, ROLL, STEP_DOWN},
};
use crate::history::{
    client::CallRecord,
    event::{Nanos, Window},
};

/// How long after the loss of a primary calls may fail: ten times what an election takes here.
const ELECTION: Duration = Duration::from_secs(30);
/// What calls that need MongoDB are answered without it: UNAVAILABLE, DEADLINE_EXCEEDED, and where very many wait for it
/// RESOURCE_EXHAUSTED.
const WITHOUT_MONGODB: [&str; 5] = ["L2_UNAVAILABLE", "L2_TIMEOUT", "OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED", "TOO_BUSY"];

/// Failures of one sort.
#[derive(Debug)]
pub struct Failures {
    pub window: &'static str,
    pub who: &'static str,
    pub what: &'static str,
    pub reason: String,
    pub count: u64,
    pub allowed: bool,
    /// The last of them, after its window opened.
    pub latest: Duration,
}

/// A call of the history has no retry, so it counts as a first sending.
pub fn failures(load: &[Failed], history: &[CallRecord], windows: &[Window]) -> Vec<Failures> {
    let of_load = load.iter().map(|failed| {
        let who = if failed.last { "call failed" } else { "sent again" };
        (who, failed.what, failed.reason.as_str(), failed.invoked, failed.returned)
    });
    let of_history = history.iter().filter(|call| call.has_failed());
    let of_history =
        of_history.map(|call| ("history, no retry", call.what, call.outcome.as_str(), call.invoked, call.returned));
    let mut sorts: BTreeMap<_, Failures> = BTreeMap::new();
    for (who, what, reason, invoked, returned) in of_load.chain(of_history) {
        let window = windows.iter().find(|window| window.from <= returned && invoked <= window.until);
        let (name, from) = window.map_or(("none", invoked), |window| (window.fault, window.from));
        let latest = Duration::from_nanos(returned.saturating_sub(from));
        let allowed = window.is_some_and(|window| is_allowed(window, who, reason, returned));
        let sort = sorts.entry((name, who, what, reason.to_owned(), allowed)).or_insert_with(|| {
            let reason = reason.to_owned();
            Failures { window: name, who, what, reason, count: 0, allowed, latest }
        });
        sort.count += 1;
        sort.latest = sort.latest.max(latest);
    }
    sorts.into_values().collect()
}

fn is_allowed(window: &Window, who: &str, reason: &str, returned: Nanos) -> bool {
    match window.fault {
        STEP_DOWN | KILL => WITHOUT_MONGODB.contains(&reason) && returned <= window.from + ELECTION.as_nanos() as Nanos,
        ROLL => who != "call failed" && reason == NO_CONNECTION,
        _ => false,
    }
}
