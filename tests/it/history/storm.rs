//! A storm: clients, nemesis, and afterwards the proof that everything is as it was before, and that no answer lied.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use tokio::task::{JoinSet, block_in_place};

use super::{
    check::check,
    client::{Habits, Log, Shared, Worker, entity_id},
    event::{Answer, Bounds, Call, Event},
    nemesis::{Fault, Nemesis},
    report::Report,
    world::{RECOVERY, Tiers, World, tail},
};

/// How long pending entries may have left, in ms; -2: gone meanwhile.
const LEFT: [std::ops::RangeInclusive<i64>; 2] = [-2..=-2, 0..=60_000];

pub struct Storm {
    pub name: &'static str,
    pub tiers: Tiers,
    /// all, redis, mongodb or servers.
    pub faults: String,
    pub seed: u64,
    pub length: Duration,
    pub habits: Habits,
}

/// The seed of the schedule and of the calls: `FEATURESTORE_TEST_SEED`, else the test's own.
pub fn seed(own: u64) -> u64 {
    let seed = std::env::var("FEATURESTORE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(own);
    println!("FEATURESTORE_TEST_SEED={seed}");
    seed
}

/// Clients at work.
pub struct Crowd {
    pub shared: Arc<Shared>,
    habits: Habits,
    tasks: JoinSet<Log>,
}

impl Crowd {
    pub fn start(world: &World, habits: &Habits, seed: u64) -> Self {
        let shared = Shared::new(world.urls());
        let mut tasks = JoinSet::new();
        for me in 0..habits.clients {
            tasks.spawn(Worker::new(shared.clone(), habits.clone(), me, seed).run());
        }
        Self { shared, habits: habits.clone(), tasks }
    }

    /// Stops them, and reads all keys once more from all servers.
    pub async fn stop(self) -> Log {
        self.shared.stop.store(true, SeqCst);
        let mut all = Log::default();
        let last = Worker::new(self.shared.clone(), self.habits, u16::MAX, 0);
        for log in self.tasks.join_all().await.into_iter().chain([last.read_all().await]) {
            all.events.extend(log.events);
            all.calls.extend(log.calls);
        }
        all
    }
}

impl Storm {
    /// Rages, and judges. Panics where the servers do not recover.
    pub async fn run(self) -> Report {
        let mut world = World::start(self.tiers).await;
        let crowd = Crowd::start(&world, &self.habits, self.seed);
        let shared = crowd.shared.clone();
        let now = || shared.now();
        let mut nemesis = Nemesis::new(Fault::all(self.tiers, &self.faults), self.seed);
        let (start, mut told) = (Instant::now(), Instant::now());
        while start.elapsed() < self.length {
            tokio::time::sleep(Duration::from_millis(300)).await;
            nemesis.strike(&mut world, now).await;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let (ended, failed) = (shared.ended.load(SeqCst), shared.failed.load(SeqCst));
                let fault = nemesis.injected.last().map_or("", |injected| injected.fault.name());
                println!("{:4} s: {ended} calls, {failed} failed; last: {fault}", start.elapsed().as_secs());
            }
        }
        nemesis.recover(&world, now).await;
        // With nothing broken any more, everything must be as ever.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let log = crowd.stop().await;
        let settled = settled(&mut world, &self.habits).await;
        let verdict = check(&log.events, &nemesis.windows, Bounds::default());
        let report = Report {
            name: self.name.to_owned(),
            seed: self.seed,
            seconds: start.elapsed().as_secs(),
            events: log.events,
            calls: log.calls,
            injected: nemesis.injected,
            verdict,
            settled,
        };
        report.tell();
        // A checker that cannot see is worth nothing: one stale read among all these turns it red.
        let mut lie = report.events.clone();
        let stale = stale_read(&lie);
        lie.push(stale);
        let verdict = check(&lie, &[], Bounds::default());
        assert!(
            verdict.violations.iter().any(|violation| violation.later == lie.len() - 1),
            "a stale read was not seen"
        );
        report
    }
}

/// Waits until every server answers every key from L1 with what L2 holds; says how long that took.
pub async fn settled(world: &mut World, habits: &Habits) -> Duration {
    use crate::harness::client::{self as api, RowStatus, Source};
    let (start, ids) = (Instant::now(), (0..habits.keys()).map(entity_id).collect::<Vec<_>>());
    let mut last = String::new();
    while start.elapsed() < RECOVERY {
        last.clear();
        for server in &world.servers {
            let mut client = server.client().await;
            let strong = client.get_features(api::strong(ids.clone())).await;
            let cached = client.get_features(api::get(ids.clone())).await;
            let (Ok(strong), Ok(cached)) = (strong, cached) else {
                last = "a read failed".to_owned();
                continue;
            };
            let (strong, cached) = (strong.into_inner(), cached.into_inner());
            for (strong, cached) in strong.rows.iter().zip(&cached.rows) {
                let equal = (strong.revision, &strong.features) == (cached.revision, &cached.features);
                assert!(equal, "L1 holds {cached:?}, L2 {strong:?}\n{}", tail(&server.log()));
                // That there is no such record L1 keeps for seconds only, so one of them is always a miss.
                if cached.source() != Source::L1 && cached.status() == RowStatus::Found {
                    last = format!("no hit: {cached:?}");
                }
            }
        }
        if let Some(redis) = &world.redis {
            // Those of an earlier epoch nobody touches any more; they go by themselves.
            let kept = block_in_place(|| {
                let keys = redis.cli(&["KEYS", "{}fs:*:*"]);
                let pending = keys.lines().filter(|key| redis.cli(&["GETRANGE", key, "0", "0"]) == "P");
                pending
                    .map(|key| redis.cli(&["PTTL", key]).parse::<i64>().unwrap())
                    .find(|left| !LEFT.iter().any(|allowed| allowed.contains(left)))
            });
            assert_eq!(kept, None, "a permit or lease outlives its deadline, in ms");
        }
        if last.is_empty() {
            return start.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("not settled after {RECOVERY:?}: {last}");
}

/// A default read that never was: it began after a confirmed answer, and answers what stood before that.
pub fn stale_read(events: &[Event]) -> Event {
    let mut reads: Vec<&Event> =
        events.iter().filter(|event| matches!(event.answer, Answer::Row { degraded: false, .. })).collect();
    reads.sort_by_key(|event| (event.key, event.returned));
    let revision = |event: &Event| match event.answer {
        Answer::Row { revision, .. } => revision,
        _ => 0,
    };
    let older_then_newer =
        |pair: &&[&Event]| pair[0].key == pair[1].key && 0 < revision(pair[0]) && revision(pair[0]) < revision(pair[1]);
    let pair = reads.windows(2).find(older_then_newer).expect("a key that was read, written and read again");
    let (invoked, returned) = (pair[1].returned + 1, pair[1].returned + 2);
    Event { invoked, returned, call: Call::Read { strong: false, at_least: 0 }, ..pair[0].clone() }
}
