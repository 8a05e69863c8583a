//! The soak: two servers as they are deployed (TLS, tokens, traces, metrics) over one Redis and a MongoDB set of three, at
//! half of the load that they can bear, while Redis is restarted, MongoDB elects, certificates are rotated and the servers
//! are rolled. No answer may be wrong, calls may fail only where docs/operations.md allows it, and memory stays flat.

#![allow(unreachable_pub, reason = "as in the harness")]

mod caller;
mod events;
mod judge;
mod load;
mod memory;
mod report;
mod world;

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::FutureExt as _;

use crate::{
    history::{
        check::check,
        client::{Habits, Shared},
        event::Bounds,
        report::explain,
        storm::{Crowd, seed, stale_read},
    },
    soak::{events::Conductor, load::Load, memory::Memory, report::Report, world::World},
};

/// How long the maximal load is measured.
const MEASURE: Duration = Duration::from_secs(10);
const PROGRESS: Duration = Duration::from_secs(30);
/// From this length on everything happens twice.
const TWICE: Duration = Duration::from_secs(120);

/// `tests/soak.sh` sets what it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "as long as SOAK_SECONDS says; run it by tests/soak.sh"]
async fn a_soak_answers_nothing_wrong_and_fails_only_where_operations_allows_it() {
    let seconds = std::env::var("SOAK_SECONDS").unwrap_or_else(|_| "1800".to_owned());
    let length = Duration::from_secs(seconds.parse().expect("SOAK_SECONDS is a number"));
    let seed = seed(1);
    let mut world = World::start().await;
    let shared = Shared::new(world.endpoints(), world.bearer.clone());
    let load = Load::new(shared.clone(), seed);
    load.fill().await;
    let most = load.measure(MEASURE).await;
    println!("maximal load: {most:.0} calls/s");

    // A few calls a second of every sort, dropped ones and retries included, on keys that all fight for.
    let habits = Habits { shared_keys: 24, clients: 8, pause: 100..300, cancels: 2, ..Habits::default() };
    let crowd = Crowd::over(shared.clone(), &habits, seed);
    let paced = load.at(most / 2.0);
    let memory = Memory::watch(&shared);
    let mut conductor = Conductor::new(load.clone(), memory.clone());
    let begun = shared.now();
    let night = async {
        tokio::select! {
            () = conductor.conduct(&mut world, length, length >= TWICE) => {}
            never = progress(&shared, &load, &memory) => never,
        }
    };
    // What was seen until then is told even so.
    let broken = AssertUnwindSafe(night).catch_unwind().await.err();
    let ended = shared.now();
    let seen = paced.stop().await;
    let log = crowd.stop().await;
    memory.stop();

    let windows = load.windows();
    let verdict = check(&log.events, &windows, Bounds::default());
    let report = Report {
        most,
        length: Duration::from_nanos(ended - begun),
        judged: verdict.judged + load.checked.load(SeqCst),
        wrong: verdict.violations.len() as u64 + load.wrong.load(SeqCst),
        older_while_electing: load.older.load(SeqCst),
        answered_electing: load.answered_electing.load(SeqCst),
        spans: world.collector.take() + conductor.spans,
        failures: judge::failures(&seen.failed, &log.calls, &windows),
        memory: memory.judge(),
        events: conductor.happened,
        history_calls: log.calls.len(),
        seen,
    };
    println!("{report}");
    if let Some(broken) = broken {
        resume_unwind(broken);
    }
    assert_eq!(report.wrong, 0, "seed {seed}: {:?}\n{}", load.first_wrong(), explain(&verdict, &log.events));
    let bad: Vec<_> = report.failures.iter().filter(|failure| !failure.allowed).collect();
    assert!(bad.is_empty(), "failed where nothing may fail: {bad:#?}");
    let grown: Vec<_> = report.memory.iter().filter(|instance| !instance.is_flat()).collect();
    assert!(grown.is_empty(), "memory grew: {grown:#?}");
    assert!(report.spans > 0, "no spans came");
    assert!(report.answered_electing > 0, "not even what is cached was read while MongoDB elected");
    // A checker that cannot see is worth nothing.
    let mut lie = log.events;
    let stale = stale_read(&lie);
    lie.push(stale);
    assert!(!check(&lie, &[], Bounds::default()).violations.is_empty(), "a stale read was not seen");
}

/// A line now and then; never ends.
async fn progress(shared: &Arc<Shared>, load: &Load, memory: &Memory) {
    let mut before = load.done.load(SeqCst);
    loop {
        tokio::time::sleep(PROGRESS).await;
        let done = load.done.load(SeqCst);
        println!(
            "{:5} s: {:.0} calls/s, {} failed in all, {} wrong; {} calls of the history, {} failed; RSS {}",
            shared.now() / 1_000_000_000,
            (done - before) as f64 / PROGRESS.as_secs_f64(),
            load.failed.load(SeqCst),
            load.wrong.load(SeqCst),
            shared.ended.load(SeqCst),
            shared.failed.load(SeqCst),
            memory.now(),
        );
        before = done;
    }
}
