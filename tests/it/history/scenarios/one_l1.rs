//! One L1 for one L2: storms in which the address, the URL or the kind of L1 changes or differs, or L2 has a copy. Each
//! runs for seconds in every run of the tests, and for as long as one likes by `tests/storm.sh --scenario`.

mod copied_l2;
mod led_elsewhere;
mod mixed_settings;
mod promoted_replica;
mod rolled_redis;

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;
use tonic::transport::Endpoint;

use crate::{
    harness::{
        binary::Binary,
        client::{self as api, Bearer, Client, Source},
    },
    history::{
        check::{Verdict, check},
        client::{Habits, Log, Shared},
        event::{Answer, Bounds, Call, Class, Event, Nanos, Window},
        report::explain,
        storm::Crowd,
        world::tail,
    },
};

/// What a storm of these is told.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub length: Duration,
}

/// The storms, by the names that `tests/storm.sh --scenario` takes.
pub async fn run(name: &str, plan: Plan) {
    match name {
        "rolled-redis" => rolled_redis::run(plan).await,
        "led-elsewhere" => led_elsewhere::run(plan).await,
        "copied-database" => copied_l2::run_over_mongodb(plan).await,
        "copied-folder" => copied_l2::run_over_folders(plan).await,
        "mixed-settings" => mixed_settings::run(plan).await,
        "promoted-replica-embedded" => promoted_replica::run_over_folder(plan).await,
        "promoted-replica-standalone" => promoted_replica::run_over_standalone(plan).await,
        other => panic!("STORM_SCENARIO={other}: see tests/storm.sh --help"),
    }
}

/// How long a server may take from a change until its L1 is used as ever: the lease of whoever used another one, and the
/// pause of a new epoch, on a busy machine.
const USED: Duration = Duration::from_secs(120);

/// More than a call takes on a busy machine.
const HOLD: Duration = Duration::from_millis(700);

/// One L2 with its servers and the clients that call them.
struct Deployment {
    servers: Vec<Binary>,
    crowd: Crowd,
}

impl Deployment {
    /// Starts a server for each of the settings, and clients. Deployments that may meet number their writes apart, so that a
    /// value tells whose it is.
    async fn start(settings: &[&[(&str, String)]], seed: u64, apart: u64) -> Self {
        let servers: Vec<Binary> = settings.iter().map(|settings| server(settings)).collect();
        Self::over(servers, seed, apart).await
    }

    /// The same with servers that run.
    async fn over(servers: Vec<Binary>, seed: u64, apart: u64) -> Self {
        for server in &servers {
            server.until_serving().await;
        }
        let habits = Habits { clients: 8, pause: 5..25, cancels: 2, ..Habits::default() };
        let endpoints = servers.iter().map(|server| Endpoint::from_shared(server.url()).unwrap()).collect();
        let shared = Shared::new(endpoints, Bearer::default());
        shared.writes.store(1 + apart, SeqCst);
        Self { crowd: Crowd::over(shared, &habits, seed), servers }
    }

    fn now(&self) -> Nanos {
        self.crowd.shared.now()
    }

    /// Lets the clients wait, and waits until nobody calls; or lets them go on.
    async fn hold(&self, holds: bool) {
        self.crowd.shared.hold.store(holds, SeqCst);
        if holds {
            tokio::time::sleep(HOLD).await;
        }
    }

    /// Ends a server as an operator does, and starts it again with these settings after a while.
    async fn restart(&mut self, server: usize, down: Duration, settings: &[(&str, &str)]) {
        let binary = &mut self.servers[server];
        binary.signal("TERM");
        let code = block_in_place(|| binary.exit_code(Duration::from_secs(60)));
        assert_eq!(code, 0, "{}", tail(&binary.log()));
        tokio::time::sleep(down).await;
        binary.start_again_with(settings);
        binary.until_serving().await;
    }

    /// Waits until all servers use L1 as ever, and says how long that took.
    async fn until_all_use_l1(&self) -> Duration {
        let start = Instant::now();
        for server in 0..self.servers.len() {
            self.until_l1_is_used(server).await;
        }
        start.elapsed()
    }

    async fn until_l1_is_used(&self, server: usize) {
        let (start, binary) = (Instant::now(), &self.servers[server]);
        loop {
            let last = match tokio::time::timeout(Duration::from_secs(5), uses_l1(binary)).await {
                Ok(Ok(())) => return,
                Ok(Err(why)) => why,
                Err(_) => "no answer".to_owned(),
            };
            assert!(start.elapsed() < USED, "server {server} does not use its L1: {last}\n{}", tail(&binary.log()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the clients and judges what they were answered. `follower`: the server whose L1 is its own.
    async fn judge(self, name: &'static str, seed: u64, follower: Option<u8>) {
        let until = self.now();
        let Log { events, calls } = self.crowd.stop().await;
        // What an error says of L1 is not to be trusted while L1 changes.
        let window = Window { fault: name, class: Class::Linearizable, from: 0, until };
        let bounds = Bounds { follower, ..Bounds::default() };
        let verdict: Verdict = check(&events, &[window], bounds);
        let failed = calls.iter().filter(|call| call.has_failed()).count();
        let (confirmed, not_cached) = (count(&events, true), count(&events, false));
        println!(
            "{name}, seed {seed}: {} calls, {failed} failed, {} answers judged, writes cached {confirmed} and not \
             {not_cached}, hits {}, stale within the bounds {:?}",
            calls.len(),
            verdict.judged,
            events.iter().filter(|event| is_hit(event)).count(),
            verdict.stale,
        );
        assert!(confirmed > 0 && events.iter().any(is_hit), "L1 was never used");
        let logs = || self.servers.iter().map(|server| tail(&server.log())).collect::<Vec<_>>().join("\n--\n");
        assert!(verdict.violations.is_empty(), "{name}, seed {seed}:\n{}\n{}", explain(&verdict, &events), logs());
    }
}

/// A server with settings of every storm's.
fn server(settings: &[(&str, String)]) -> Binary {
    let mut all = vec![
        ("FEATURESTORE_L1_TIMEOUT", "2s"),
        ("FEATURESTORE_DEADLINES_WRITE", "3s"),
        ("FEATURESTORE_DEADLINES_STRONG", "3s"),
        ("FEATURESTORE_DRAIN_TIMEOUT", "5s"),
    ];
    all.extend(settings.iter().map(|(name, value)| (*name, value.as_str())));
    block_in_place(|| Binary::start(&all))
}

/// A write is cached, and a read of it a hit.
async fn uses_l1(server: &Binary) -> Result<(), String> {
    let told = |status: tonic::Status| status.to_string();
    let mut client = Client::connect(server.url()).await.map_err(|error| error.to_string())?;
    let written = client.upsert_features(api::upsert(api::record("probe", []))).await.map_err(told)?.into_inner();
    if !written.cached {
        return Err("a write is not cached".to_owned());
    }
    let read = client.get_features(api::get(["probe"])).await.map_err(told)?.into_inner();
    if read.degraded || read.rows[0].source() != Source::L1 {
        return Err(format!("no hit: {read:?}"));
    }
    Ok(())
}

fn is_hit(event: &Event) -> bool {
    matches!(event.answer, Answer::Row { from_l1: true, .. })
}

fn count(events: &[Event], is_cached: bool) -> usize {
    let is_one = |event: &&Event| matches!((&event.call, &event.answer), (Call::Write(_), Answer::Done { cached, .. }) if *cached == is_cached);
    events.iter().filter(is_one).count()
}
