//! A storm: clients, nemesis, and afterwards the proof that everything is as it was before, and that no answer lied.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use super::{
    check::check,
    client::{Habits, Log, Shared, Worker},
    event::{Answer, Bounds, Call, Event},
    nemesis::{Fault, Nemesis},
    report::Report,
    settled::settled,
    world::{Tiers, World},
};
use crate::harness::client::Bearer;

/// How long it took to come to rest, or the panic that says why it did not.
pub type Settled = Result<Duration, Box<dyn Any + Send>>;

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
        let endpoint = |url: String| Endpoint::from_shared(url).unwrap();
        Self::over(Shared::new(world.urls().into_iter().map(endpoint).collect(), Bearer::default()), habits, seed)
    }

    /// The same over any servers.
    pub fn over(shared: Arc<Shared>, habits: &Habits, seed: u64) -> Self {
        let mut tasks = JoinSet::new();
        for me in 0..habits.clients {
            tasks.spawn(Worker::new(shared.clone(), habits.clone(), me, seed).run());
        }
        Self { shared, habits: habits.clone(), tasks }
    }

    /// Stops them, and reads all keys once more from all servers, so that nothing that was lost stays unseen.
    pub async fn stop(self) -> Log {
        let last = [self.last(), self.last()];
        let mut log = self.join().await;
        for (last, strong) in last.into_iter().zip([false, true]) {
            log.append(last.read_all(strong).await);
        }
        log
    }

    /// The same; before the last STRONG reads everything must have settled, by `settled`.
    pub async fn stop_and_settle(self, world: &mut World) -> (Log, Settled) {
        let (last, habits) = ([self.last(), self.last()], self.habits.clone());
        let mut log = self.join().await;
        let [cached, strong] = last;
        log.append(cached.read_all(false).await);
        let settled = AssertUnwindSafe(settled(world, &habits)).catch_unwind().await;
        log.append(strong.read_all(true).await);
        (log, settled)
    }

    fn last(&self) -> Worker {
        Worker::new(self.shared.clone(), self.habits.clone(), u16::MAX, 0)
    }

    async fn join(self) -> Log {
        self.shared.stop.store(true, SeqCst);
        let mut all = Log::default();
        self.tasks.join_all().await.into_iter().for_each(|log| all.append(log));
        all
    }
}

impl Storm {
    /// Rages, and judges. Where the servers do not recover, it panics after it has told what was seen until then.
    pub async fn run(self) -> Report {
        let mut world = World::start(self.tiers).await;
        let crowd = Crowd::start(&world, &self.habits, self.seed);
        let mut nemesis = Nemesis::new(Fault::all(self.tiers, &self.faults), self.seed);
        let (start, shared) = (Instant::now(), crowd.shared.clone());
        let raged = AssertUnwindSafe(self.rage(&mut world, &mut nemesis, &shared)).catch_unwind().await;
        let (log, settled) = match raged {
            Ok(()) => crowd.stop_and_settle(&mut world).await,
            Err(broken) => (crowd.stop().await, Err(broken)),
        };
        let verdict = check(&log.events, &nemesis.windows, Bounds::default());
        let report = Report {
            name: self.name.to_owned(),
            seed: self.seed,
            seconds: start.elapsed().as_secs(),
            events: log.events,
            calls: log.calls,
            injected: nemesis.injected,
            verdict,
            settled: settled.as_ref().ok().copied(),
        };
        report.tell();
        if let Err(broken) = settled {
            resume_unwind(broken);
        }
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

    async fn rage(&self, world: &mut World, nemesis: &mut Nemesis, shared: &Shared) {
        let (start, mut told) = (Instant::now(), Instant::now());
        while start.elapsed() < self.length {
            tokio::time::sleep(Duration::from_millis(300)).await;
            nemesis.strike(world, || shared.now()).await;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let (ended, failed) = (shared.ended.load(SeqCst), shared.failed.load(SeqCst));
                let fault = nemesis.injected.last().map_or("", |injected| injected.fault.name());
                println!("{:4} s: {ended} calls, {failed} failed; last: {fault}", start.elapsed().as_secs());
            }
        }
        nemesis.recover(world, || shared.now()).await;
        // With nothing broken any more, everything must be as ever.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
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
