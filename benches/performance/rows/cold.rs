//! A server that has just started, an idle one, and one of whom everybody wants the same thing that L1 lacks.

use std::{sync::Arc, time::Duration};

use crate::{
    backends::{Mongod, Redis},
    bench::Bench,
    compare::Spread,
    data::{Ask, Set, Shape},
    load::Call as _,
    pb::Source,
    report::{Outcome, Row},
    server::{Server, Settings},
    usage::resident_mib,
};

const SET: Set = Set { view: "cold", shape: Shape::Doubles(20), entities: 5_000 };
const CALLERS: usize = 1_000;
/// No connection takes more than 256 calls at once.
const CONNECTIONS: u32 = 8;

const IDLE: &str = "idle memory";

pub(crate) fn names() -> Vec<String> {
    ["memory + embedded", "redis + embedded", "redis + mongodb"]
        .iter()
        .flat_map(|tiers| [storm_name(tiers), format!("{IDLE}, {tiers}")])
        .collect()
}

fn storm_name(tiers: &str) -> String {
    format!("1000 cold reads of a key, {tiers}")
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let (redis, mongod) = (Redis::start(&bench.folder()?, &[]).await?, Mongod::start(&bench.folder()?).await?);
    let redis = redis.map(|redis| (("REDIS_URL", redis.url()), redis));
    let mongod = mongod.map(|mongod| (("MONGO_URI", mongod.uri()), mongod));
    let redis_setting = redis.as_ref().map(|(setting, _)| setting.clone());
    let both = redis_setting.clone().zip(mongod.as_ref().map(|(setting, _)| setting.clone()));
    let tiers: [(&str, Option<Settings>); 3] = [
        ("memory + embedded", Some(Vec::new())),
        ("redis + embedded", redis_setting.map(|redis| vec![redis])),
        ("redis + mongodb", both.map(|(redis, mongodb)| vec![redis, mongodb])),
    ];
    for (tiers, settings) in tiers {
        let names = [storm_name(tiers), format!("{IDLE}, {tiers}")];
        let Some(settings) = settings else {
            bench.leave_out(&names, "redis-server or mongod is missing");
            continue;
        };
        if !names.iter().any(|name| bench.args.wants(name)) {
            continue;
        }
        let server = Server::start(&bench.folder()?.join("data"), settings).await?;
        let start = server.start.as_secs_f64() * 1e3;
        bench
            .row(Row::new(&names[1]).target("< 40 MB"), async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let resident = resident_mib(server.pid())?;
                Ok(Outcome::Told(vec![
                    ("resident".to_owned(), resident, "MiB"),
                    ("start to SERVING, new database".to_owned(), start, "ms"),
                ]))
            })
            .await;
        bench.row(Row::new(&names[0]).target("1 L2 read"), storm(&bench, &server)).await;
    }
    Ok(())
}

async fn storm(bench: &Bench, server: &Server) -> Result<Outcome, String> {
    server.load(&SET, 0..SET.entities, false).await?;
    server.until_answered_by(Source::L1, &Set { entities: 1, ..SET }).await?;
    let mut reads = Vec::new();
    for round in 0..bench.args.rounds {
        let key = 1 + u64::from(round);
        let request = Ask::rows(1).request(SET.view, &[key]);
        let wire = Arc::new(server.wire("GetFeatures", CONNECTIONS, &[request]).await?);
        let answered = async || Ok::<_, String>(server.info().await?.l2.map_or(0, |l2| l2.hits + l2.misses));
        let before = answered().await?;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CALLERS {
            let wire = wire.clone();
            calls.spawn(async move { wire.call().await });
        }
        for answer in calls.join_all().await {
            answer?;
        }
        reads.push((answered().await? - before) as f64);
    }
    let reads = Spread::of(reads);
    Ok(Outcome::Told(vec![("L2 reads".to_owned(), reads.median, ""), ("at most".to_owned(), reads.max, "")]))
}
