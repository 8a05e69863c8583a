//! What a storm rages over: two of our servers as processes, each with lines of its own to one Redis and one MongoDB,
//! which tests can break. Over a set of three nodes the lines to MongoDB are direct.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    binary::{Binary, SERVICE},
    client::{self as api, Client, Source},
    mongod::Mongod,
    mongod_set::MongodSet,
    proxy::Proxy,
    redis::RedisServer,
};

pub const SERVERS: usize = 2;
/// How long a server may take from the end of all faults until it uses both tiers as ever.
pub const RECOVERY: Duration = Duration::from_secs(120);

/// Which backends a storm has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiers {
    /// Redis over a replica set of one node, with lines that break.
    OneNode,
    /// Redis over a MongoDB without a replica set. It has no changes to follow, so no server repairs L1.
    Standalone,
    /// Redis over a replica set of three nodes.
    ThreeNodes,
    /// The pair that lives in one process.
    Embedded,
}

pub enum Mongo {
    None,
    One(Mongod),
    Three(MongodSet),
}

pub struct World {
    pub redis: Option<RedisServer>,
    pub mongo: Mongo,
    /// The name of MongoDB's.
    pub database: String,
    pub redis_lines: Vec<Proxy>,
    pub mongo_lines: Vec<Proxy>,
    pub servers: Vec<Binary>,
}

impl World {
    pub async fn start(tiers: Tiers) -> Self {
        Self::start_with(tiers, &[]).await
    }

    /// The same with more settings.
    pub async fn start_with(tiers: Tiers, more: &[(&'static str, &str)]) -> Self {
        let redis = (tiers != Tiers::Embedded).then(|| block_in_place(RedisServer::start));
        let mongo = match tiers {
            Tiers::OneNode => Mongo::One(block_in_place(Mongod::replica_set)),
            Tiers::Standalone => Mongo::One(block_in_place(Mongod::standalone)),
            Tiers::ThreeNodes => Mongo::Three(block_in_place(MongodSet::start)),
            Tiers::Embedded => Mongo::None,
        };
        let database = match &mongo {
            Mongo::None => String::new(),
            Mongo::One(mongod) => block_in_place(|| mongod.settled_database()),
            Mongo::Three(set) => block_in_place(|| set.settled_database()),
        };
        let (redis_lines, mongo_lines) = (Vec::new(), Vec::new());
        let mut world = Self { redis, mongo, database, redis_lines, mongo_lines, servers: Vec::new() };
        for _ in 0..if tiers == Tiers::Embedded { 1 } else { SERVERS } {
            let mut settings = vec![
                ("FEATURESTORE_L1_TIMEOUT", "500ms".to_owned()),
                ("FEATURESTORE_DEADLINES_WRITE", "3s".to_owned()),
                ("FEATURESTORE_DEADLINES_STRONG", "3s".to_owned()),
                ("FEATURESTORE_DRAIN_TIMEOUT", "5s".to_owned()),
            ];
            if let Some(redis) = &world.redis {
                let line = Proxy::to(redis.port()).await;
                settings.push(("REDIS_URL", format!("redis://127.0.0.1:{}", line.port())));
                world.redis_lines.push(line);
            }
            match &world.mongo {
                Mongo::None => {}
                Mongo::One(mongod) => {
                    let line = Proxy::to(mongod.port()).await;
                    // Direct, as the set's only member would tell another address than the line's.
                    settings.push(("MONGO_URI", format!("mongodb://127.0.0.1:{}/?directConnection=true", line.port())));
                    world.mongo_lines.push(line);
                }
                Mongo::Three(set) => settings.push(("MONGO_URI", set.uri())),
            }
            if !world.database.is_empty() {
                settings.push(("MONGO_DB", world.database.clone()));
            }
            // The last one of a name wins.
            settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
            let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
            world.servers.push(block_in_place(|| Binary::start(&settings)));
        }
        for server in &world.servers {
            server.until_serving().await;
        }
        for server in 0..world.servers.len() {
            world.until_normal(server).await;
        }
        world
    }

    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Binary::url).collect()
    }

    pub fn redis(&mut self) -> &mut RedisServer {
        self.redis.as_mut().unwrap()
    }

    /// Waits until this server answers from L1, confirms writes, and says that all is well.
    pub async fn until_normal(&self, server: usize) {
        let (binary, start) = (&self.servers[server], Instant::now());
        let (mut last, before) = (String::new(), l1_errors(binary).await);
        while start.elapsed() < RECOVERY {
            match self.is_normal(binary, server).await {
                Ok(()) => return,
                Err(what) => last = what,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let errors = (before, l1_errors(binary).await);
        let log = tail(&binary.log());
        panic!("server {server} is not normal {RECOVERY:?} after the faults: {last}; L1 errors {errors:?}\n{log}");
    }

    /// Waits for all of them, at the same time.
    pub async fn until_all_normal(&self) {
        let waiting = (0..self.servers.len()).map(|server| self.until_normal(server));
        futures_util::future::join_all(waiting).await;
    }

    async fn is_normal(&self, binary: &Binary, server: usize) -> Result<(), String> {
        let connecting = tokio::time::timeout(Duration::from_secs(1), Client::connect(binary.url())).await;
        let Ok(Ok(mut client)) = connecting else { return Err("no connection".to_owned()) };
        let id = format!("probe{server}");
        let probing = async {
            let written = client.upsert_features(api::upsert(api::record(&id, []))).await;
            let written = written.map_err(|status| format!("a write: {status}"))?.into_inner();
            if !written.cached {
                return Err("a write is not cached".to_owned());
            }
            let read = client.get_features(api::get([&id])).await;
            let read = read.map_err(|status| format!("a read: {status}"))?.into_inner();
            if read.degraded || read.rows[0].source() != Source::L1 || read.rows[0].revision < written.revision {
                return Err(format!("{read:?} after {written:?}"));
            }
            for name in ["", SERVICE, "l1", "l2"] {
                if binary.health(name).await != Some(ServingStatus::Serving) {
                    return Err(format!("health of {name:?}"));
                }
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(5), probing).await.unwrap_or(Err("no answer".to_owned()))
    }
}

/// How many commands to L1 failed since start, if the server tells.
async fn l1_errors(server: &Binary) -> Option<u64> {
    let asking = async {
        let mut client = Client::connect(server.url()).await.ok()?;
        Some(client.info(api::InfoRequest {}).await.ok()?.into_inner().l1?.errors)
    };
    tokio::time::timeout(Duration::from_secs(1), asking).await.ok().flatten()
}

/// The last words of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
