//! How a server is configured, as far as it shows: persistence, eviction, version, and whether
//! restarts can be noticed. None of this keeps L1 from being used. A problem is logged when it is
//! found and from time to time while it lasts, and a metric shows it as long as it lasts.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_redis::redis::{Pipeline, Value};
use tokio::time::Instant;

use super::{field, text};
use crate::cache::{
    CacheError, Problem,
    redis::connections::{Lane, Shared, unavailable},
};

/// The time between two checks over the same connections.
const INTERVAL: Duration = Duration::from_secs(5);
/// A problem that lasts is logged again after this time.
const REMINDER: Duration = Duration::from_secs(600);
/// The scripts need SET with KEEPTTL (6.0), but versions before 6.2 are not maintained any more.
const OLDEST_VERSION: (u32, u32) = (6, 2);

/// What was found at each server.
#[derive(Debug, Default)]
pub(in crate::cache::redis) struct Settings(Mutex<BTreeMap<String, Server>>);

#[derive(Debug)]
struct Server {
    looked: Instant,
    /// The run that was checked, as in INFO.
    run: Option<String>,
    /// The text of each problem, and when it was last logged.
    problems: BTreeMap<Problem, (String, Instant)>,
}

impl Settings {
    /// The problems of all servers.
    pub(in crate::cache::redis) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self.lock().values().flat_map(|server| server.problems.keys().copied()).collect();
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// Forgets servers that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|address, _| is_there(address));
    }

    /// Checks a server if that is due.
    pub(super) async fn look(&self, shared: &Shared, address: &str, is_new: bool) -> Result<(), CacheError> {
        let is_due = |server: &Server| is_new || server.looked.elapsed() >= INTERVAL;
        if !self.lock().get(address).is_none_or(is_due) {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        for section in ["server", "memory", "persistence"] {
            pipeline.cmd("INFO").arg(section);
        }
        for setting in ["save", "appendonly"] {
            pipeline.cmd("CONFIG").arg("GET").arg(setting);
        }
        let replies = shared.send(pipeline, Lane::Swift).await.map_err(|e| unavailable(&e))?;
        let run = replies.first().and_then(|info| field(info, "run_id"));
        self.note(address, run.map(str::to_owned), found(&replies));
        Ok(())
    }

    /// Stores what was found, and logs new, lasting and ended problems.
    fn note(&self, address: &str, run: Option<String>, found: Vec<(Problem, String)>) {
        let now = Instant::now();
        let mut servers = self.lock();
        let server = servers.entry(address.to_owned());
        let server = server.or_insert_with(|| Server { looked: now, run: None, problems: BTreeMap::new() });
        server.looked = now;
        let is_same_run = server.run == run;
        server.run = run;
        let before = std::mem::take(&mut server.problems);
        for (problem, what) in found {
            let is_recent = |(text, at): &&(String, Instant)| *text == what && at.elapsed() < REMINDER;
            let logged = before.get(&problem).filter(is_recent).filter(|_| is_same_run);
            if logged.is_none() {
                tracing::warn!(address, problem = problem.name(), "{what}");
            }
            server.problems.insert(problem, (what, logged.map_or(now, |(_, at)| *at)));
        }
        for problem in before.keys().filter(|problem| !server.problems.contains_key(problem)) {
            tracing::info!(address, problem = problem.name(), "this problem with the Redis of L1 has ended");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Server>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The problems, from three sections of INFO and CONFIG GET of save and appendonly. What a server
/// does not show counts as right.
fn found(replies: &[Value]) -> Vec<(Problem, String)> {
    let [server, memory, persistence, save, append_only] = replies else { return Vec::new() };
    [version(server), persists(persistence, save, append_only), evicts_nothing(memory), is_full(memory)]
        .into_iter()
        .flatten()
        .collect()
}

fn version(info: &Value) -> Option<(Problem, String)> {
    // Valkey names the version of Redis with which it is compatible.
    let Some(version) = field(info, "redis_version") else {
        let what = "Redis does not allow INFO: a restart with old data cannot be noticed (allow this user +info)";
        return Some((Problem::RestartsUnseen, what.to_owned()));
    };
    let is_old = parse_version(version).is_some_and(|version| version < OLDEST_VERSION);
    is_old.then(|| (Problem::OldVersion, format!("Redis {version} is older than 6.2, the oldest that is supported")))
}

fn persists(info: &Value, save: &Value, append_only: &Value) -> Option<(Problem, String)> {
    let save = setting(save).filter(|value| !value.is_empty()).map(|value| format!("save {value}"));
    let appends = setting(append_only) == Some("yes") || field(info, "aof_enabled") == Some("1");
    let how = [save, appends.then(|| "appendonly yes".to_owned())].into_iter().flatten().collect::<Vec<_>>();
    (!how.is_empty()).then(|| {
        let what = format!(
            "Redis persists ({}); a restart with what it saved will need a new epoch: set save \"\" and appendonly no",
            how.join(", ")
        );
        (Problem::Persistent, what)
    })
}

fn evicts_nothing(memory: &Value) -> Option<(Problem, String)> {
    let is_so = number(memory, "maxmemory")? > 0 && field(memory, "maxmemory_policy")? == "noeviction";
    is_so.then(|| {
        let what =
            "Redis evicts nothing and refuses writes once maxmemory is reached: set maxmemory-policy allkeys-lru";
        (Problem::NoEviction, what.to_owned())
    })
}

fn is_full(memory: &Value) -> Option<(Problem, String)> {
    let (max, used) = (number(memory, "maxmemory")?, number(memory, "used_memory")?);
    // If entries are evicted, the use is always near the limit. But the memory of the bare server
    // cannot be evicted.
    let evicts_nothing = field(memory, "maxmemory_policy") == Some("noeviction");
    let fixed = if evicts_nothing { used } else { number(memory, "used_memory_startup")? };
    (max > 0 && fixed >= max).then(|| {
        // Without figures that change all the time, so that it is logged once.
        let what = format!(
            "The memory of Redis is full (maxmemory {max}) and nothing can be evicted: hits are served, but nothing \
             new is cached: raise maxmemory, and set maxmemory-policy allkeys-lru"
        );
        (Problem::Full, what)
    })
}

/// The value in a reply to CONFIG GET.
fn setting(reply: &Value) -> Option<&str> {
    match reply {
        Value::Array(pair) => pair.get(1).and_then(text),
        Value::Map(pairs) => pairs.first().and_then(|(_, value)| text(value)),
        _ => None,
    }
}

fn number(info: &Value, name: &str) -> Option<u64> {
    field(info, name)?.trim().parse().ok()
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(lines: &[&str]) -> Value {
        Value::BulkString(lines.join("\r\n").into_bytes())
    }

    fn config(name: &str, value: &str) -> Value {
        Value::Array([name, value].map(|word| Value::BulkString(word.as_bytes().to_vec())).to_vec())
    }

    /// A well configured server, except for these lines of INFO and this `save`.
    fn problems(version: &str, memory: &[&str], aof: &str, save: &str) -> Vec<Problem> {
        let found =
            found(&[info(&[version]), info(memory), info(&[aof]), config("save", save), config("appendonly", "no")]);
        found.into_iter().map(|(problem, _)| problem).collect()
    }

    #[test]
    fn each_problem_is_found_and_a_good_server_has_none() {
        const GOOD: [&str; 4] =
            ["maxmemory:100", "maxmemory_policy:allkeys-lru", "used_memory:101", "used_memory_startup:10"];
        let good = |version| problems(version, &GOOD, "aof_enabled:0", "");
        assert_eq!(good("redis_version:7.0.15"), []);
        assert_eq!(good("redis_version:6.2.0"), []);
        assert_eq!(good("redis_version:unstable"), []);
        assert_eq!(good("redis_version:6.0.16"), [Problem::OldVersion]);
        assert_eq!(good("redis_version:5.0.14"), [Problem::OldVersion]);
        assert_eq!(good("nothing:1"), [Problem::RestartsUnseen]);
        let memory = |lines: &[&str]| problems("redis_version:7.0.15", lines, "aof_enabled:0", "");
        let with = |max: &str, policy: &str| {
            memory(&[max, &format!("maxmemory_policy:{policy}"), "used_memory:50", "used_memory_startup:10"])
        };
        assert_eq!(with("maxmemory:0", "noeviction"), []);
        assert_eq!(with("maxmemory:100", "noeviction"), [Problem::NoEviction]);
        assert_eq!(with("maxmemory:50", "noeviction"), [Problem::NoEviction, Problem::Full]);
        assert_eq!(with("maxmemory:40", "volatile-lru"), []);
        assert_eq!(with("maxmemory:1", "allkeys-lru"), [Problem::Full]);
        assert_eq!(memory(&[]), [], "what it does not show is not wrong");
        let persisting = |aof, save| problems("redis_version:7.0.15", &GOOD, aof, save);
        assert_eq!(persisting("aof_enabled:0", "900 1"), [Problem::Persistent]);
        assert_eq!(persisting("aof_enabled:1", ""), [Problem::Persistent], "where CONFIG says nothing");
        let appends = config("appendonly", "yes");
        let found = found(&[info(&["redis_version:7.0.15"]), info(&GOOD), info(&[]), config("save", ""), appends]);
        assert_eq!(found.iter().map(|(problem, _)| *problem).collect::<Vec<_>>(), [Problem::Persistent]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_is_logged_again_after_a_while_and_what_is_over_is_forgotten() {
        let settings = Settings::default();
        let note = |run: &str, found| settings.note("a", Some(run.to_owned()), found);
        let full = || vec![(Problem::Full, "full".to_owned())];
        let logged = || settings.lock()["a"].problems[&Problem::Full].1;
        note("r1", full());
        let first = logged();
        tokio::time::advance(INTERVAL).await;
        note("r1", full());
        assert_eq!(logged(), first, "not again so soon");
        note("r2", full());
        assert!(logged() > first, "the server has restarted and is still so");
        let second = logged();
        tokio::time::advance(REMINDER).await;
        note("r2", full());
        assert!(logged() > second);
        settings.note("b", None, vec![(Problem::Persistent, "saves".to_owned())]);
        assert_eq!(settings.problems(), [Problem::Persistent, Problem::Full]);
        note("r2", Vec::new());
        assert_eq!(settings.problems(), [Problem::Persistent]);
        settings.retain(|address| address == "a");
        assert_eq!(settings.problems(), []);
    }
}
