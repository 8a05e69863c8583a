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

/// Reads what nobody writes until it is stopped: how many reads L1 answered, and the share of the time that went into
/// others. There may be some: a server whose own write ended with too old a view of the epoch asks L2 until it has told L1.
async fn read_cached(mut client: Client, shared: std::sync::Arc<Shared>) -> (u64, f64) {
    let (mut reads, mut lost, begun) = (0, Duration::ZERO, Instant::now());
    while !shared.stop.load(SeqCst) {
        let start = Instant::now();
        let answer = client.get_features(api::get((0..RECORDS).map(|i| format!("cached{i}")))).await;
        let rows = answer.map_or_else(|_| Vec::new(), |answer| answer.into_inner().rows);
        for row in &rows {
            assert!(matches!(row.status(), api::RowStatus::Found | api::RowStatus::Error), "{row:?}");
        }
        if !rows.is_empty() && rows.iter().all(|row| row.source() == Source::L1) {
            reads += 1;
        } else {
            lost += start.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (reads, lost.div_duration_f64(begun.elapsed()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mongodbs_primary_killed_under_load_loses_and_doubles_nothing() {
    let seed = seed(5);
    // One slow command on a busy machine would let L1 be doubted, and nobody read from it.
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
    for (reads, lost) in readers.join_all().await {
        println!("{reads} reads of cached records from L1; others took {:.0} % of the time", 100.0 * lost);
        assert!(reads > 10 && lost < 0.5, "reads of cached records go on");
    }
    assert!(acknowledged(from) > 0 && acknowledged(until) > 0, "nothing was under way");
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", explain(&verdict, &log.events));
}
