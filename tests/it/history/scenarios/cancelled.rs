//! Calls are dropped at random moments, thousands of them: no answer lies, and nothing is left behind.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    harness::{binary::Binary, server::eventually},
    history::{
        check::check,
        client::Habits,
        event::Bounds,
        report::explain,
        storm::{Crowd, seed, settled},
        world::{Tiers, World},
    },
};

/// `FEATURESTORE_TEST_DROPPED_CALLS` says how many (docs/reliability.md: 10,000), else that.
const CALLS: u64 = 2_500;
const BOUND: Duration = Duration::from_secs(300);

/// The gauges of what a server has under way, by its metrics.
async fn in_flight(server: &Binary) -> Vec<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.admin_port)).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let gauges = text.lines().filter(|line| !line.starts_with('#') && line.contains("in_flight"));
    gauges.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_dropped_calls_leave_nothing_behind() {
    let seed = seed(6);
    let mut world = World::start(Tiers::OneNode).await;
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
    let log = crowd.stop().await;
    let settled = settled(&mut world, &habits).await;
    let verdict = check(&log.events, &[], Bounds::default());
    println!("{dropped} of {} calls dropped in {took:.1?}; settled in {settled:.1?}", log.calls.len());
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", explain(&verdict, &log.events));
    for server in &mut world.servers {
        let none = |gauges: Vec<String>| gauges.iter().all(|gauge| gauge.ends_with(" 0"));
        eventually("nothing to be in flight", async || none(in_flight(server).await)).await;
        // A task that was left behind would hold up the drain until its timeout.
        let start = Instant::now();
        server.signal("TERM");
        assert_eq!(server.exit_code(Duration::from_secs(60)), 0, "{}", server.log());
        println!("drained in {:.1?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(4), "something was left behind: {}", server.log());
    }
}
