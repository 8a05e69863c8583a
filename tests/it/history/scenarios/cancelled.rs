//! Calls are dropped at random moments, thousands of them: no answer lies, and nothing is left behind.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use crate::history::{
    check::check,
    client::Habits,
    event::Bounds,
    report::explain,
    storm::{Crowd, seed},
    world::{Tiers, World},
};

/// `FEATURESTORE_TEST_DROPPED_CALLS` says how many (docs/reliability.md: 10,000), else that.
const CALLS: u64 = 2_500;
const BOUND: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_dropped_calls_leave_nothing_behind() {
    let seed = seed(6);
    let mut world = World::start_with(Tiers::OneNode, &[("FEATURESTORE_DRAIN_TIMEOUT", "30s")]).await;
    let habits =
        Habits { cancels: 80, clients: 32, shared_keys: 60, pause: 0..1, retry_pause: 1..20, ..Habits::default() };
    let crowd = Crowd::start(&world, &habits, seed);
    let start = Instant::now();
    let given = std::env::var("FEATURESTORE_TEST_DROPPED_CALLS").ok();
    let calls = given.and_then(|calls| calls.parse().ok()).unwrap_or(CALLS);
    while crowd.shared.dropped.load(SeqCst) < calls {
        assert!(start.elapsed() < BOUND, "{} calls dropped", crowd.shared.dropped.load(SeqCst));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (took, dropped) = (start.elapsed(), crowd.shared.dropped.load(SeqCst));
    let (log, settled) = crowd.stop_and_settle(&mut world).await;
    let verdict = check(&log.events, &[], Bounds::default());
    println!("{dropped} of {} calls dropped in {took:.1?}; settled: {settled:.1?}", log.calls.len());
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", explain(&verdict, &log.events));
    assert!(settled.is_ok(), "see the panic above");
    for server in &mut world.servers {
        // A task that was left behind would hold up the drain until its timeout.
        let start = Instant::now();
        server.signal("TERM");
        assert_eq!(server.exit_code(Duration::from_secs(60)), 0, "{}", server.log());
        println!("drained in {:.1?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(15), "something was left behind: {}", server.log());
    }
}
