//! MongoDB's primary is killed under load: what was acknowledged stays, nothing is applied twice, and what is cached is
//! read as ever.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use tokio::task::{JoinSet, block_in_place};

use crate::{
    harness::client::{self as api, Client, Source},
    history::{
        check::check,
        client::{Habits, Shared},
        event::{Answer, Bounds, Call, Class, Event, Nanos, Window},
        report::explain,
        storm::{Crowd, seed},
        world::{Mongo, Tiers, World},
    },
};

/// Ten times what an election may take here.
const ELECTION: Duration = Duration::from_secs(60);
const RECORDS: usize = 10;

/// Reads what nobody writes until it is stopped: how many reads, and the slowest.
async fn read_cached(mut client: Client, shared: std::sync::Arc<Shared>) -> (u64, Duration) {
    let (mut reads, mut slowest) = (0, Duration::ZERO);
    while !shared.stop.load(SeqCst) {
        let start = Instant::now();
        let answer = client.get_features(api::get((0..RECORDS).map(|i| format!("cached{i}")))).await;
        let answer = answer.expect("reads of cached records go on").into_inner();
        for row in &answer.rows {
            assert_eq!((row.status(), row.source()), (api::RowStatus::Found, Source::L1), "{row:?}");
        }
        (reads, slowest) = (reads + 1, slowest.max(start.elapsed()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (reads, slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mongodbs_primary_killed_under_load_loses_and_doubles_nothing() {
    let seed = seed(5);
    // A busy machine is not a lost Redis: every cached record is to be answered by L1.
    let mut world = World::start_with(Tiers::ThreeNodes, &[("FEATURESTORE_L1_TIMEOUT", "5s")]).await;
    let mut client = world.servers[0].client().await;
    for i in 0..RECORDS {
        api::put(&mut client, api::record(&format!("cached{i}"), [("n", api::double(1.0))])).await;
    }
    let habits = Habits { plain: true, clients: 12, pause: 0..10, ..Habits::default() };
    let crowd = Crowd::start(&world, &habits, seed);
    let shared = crowd.shared.clone();
    let mut readers = JoinSet::new();
    for server in &world.servers {
        readers.spawn(read_cached(server.client().await, shared.clone()));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;

    let from = shared.now();
    let killed_at = Instant::now();
    let Mongo::Three(set) = &mut world.mongo else { unreachable!() };
    let killed = block_in_place(|| set.kill_primary());
    let mut write = async || client.upsert_features(api::upsert(api::record("probe", []))).await;
    while write().await.is_err() {
        assert!(killed_at.elapsed() < ELECTION, "no writes {ELECTION:?} after the primary's death");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let elected = killed_at.elapsed();
    block_in_place(|| set.node(killed).start_again());
    world.until_all_normal().await;
    let until = shared.now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = crowd.stop().await;

    let repeats = log.events.iter().filter(|event| match &event.call {
        Call::Write(attempt) => attempt.again && matches!(event.answer, Answer::Done { .. }),
        Call::Read { .. } => false,
    });
    let repeats = repeats.count();
    let acknowledged = |after: Nanos| {
        let done = |event: &&Event| event.invoked > after && matches!(event.answer, Answer::Done { .. });
        log.events.iter().filter(done).count()
    };
    let window = Window { fault: "MongoDB's primary killed", class: Class::Election, from, until };
    let verdict = check(&log.events, &[window], Bounds::default());
    println!(
        "writes {elected:.1?} after the kill; {repeats} writes sent again; {} calls, {} failed; stale: {:?}",
        log.calls.len(),
        super::failures(&log.calls).len(),
        verdict.stale
    );
    for (reads, slowest) in readers.join_all().await {
        println!("{reads} reads of cached records, the slowest took {slowest:.1?}");
        assert!(reads > 10);
    }
    assert!(acknowledged(from) > 0 && acknowledged(until) > 0, "nothing was under way");
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", explain(&verdict, &log.events));
}
