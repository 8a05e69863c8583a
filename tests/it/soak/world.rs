//! What the soak runs over: two servers with everything on, one Redis, a MongoDB set of three, a collector of traces.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    access::{TokensFile, entry},
    harness::{
        binary::{Binary, SERVICE},
        client::{self as api, Bearer, Source},
        collector::Collector,
        mongod_set::MongodSet,
        redis::RedisServer,
        tls::{Authority, Secret},
    },
    history::world::tail,
};

const SERVERS: usize = 2;
const TOKEN: &str = "the-token-of-the-soak";
const RECOVERY: Duration = Duration::from_secs(120);

pub struct World {
    pub redis: RedisServer,
    pub set: MongodSet,
    pub servers: Vec<Binary>,
    pub authority: Authority,
    /// The certificate of both servers.
    pub secret: Secret,
    pub bearer: Bearer,
    pub collector: Collector,
    _tokens: TokensFile,
}

impl World {
    pub async fn start() -> Self {
        let redis = block_in_place(RedisServer::start);
        let set = block_in_place(MongodSet::start);
        let database = block_in_place(|| set.settled_database());
        let (authority, collector) = (Authority::new(), Collector::start().await);
        let signed = authority.sign();
        let secret = Secret::new(&signed.cert, &signed.key);
        let all = "read = [\"*\"]\nwrite = [\"*\"]\ndelete = [\"*\"]";
        let tokens = TokensFile::new(&[entry("soak", &[TOKEN], all)]);
        let mut settings = vec![
            ("REDIS_URL", redis.url()),
            ("MONGO_URI", set.uri()),
            ("MONGO_DB", database),
            ("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path()),
            // What the checker of the history reckons with.
            ("FEATURESTORE_DEADLINES_WRITE", "3s".to_owned()),
            ("FEATURESTORE_DEADLINES_STRONG", "3s".to_owned()),
            ("FEATURESTORE_DRAIN_DELAY", "5s".to_owned()),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
            ("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()),
        ];
        settings.extend(collector.settings());
        settings.push(("OTEL_BSP_SCHEDULE_DELAY", "1000".to_owned()));
        settings.extend(secret.settings());
        settings.push(("FEATURESTORE_TLS_RELOAD_INTERVAL", "1s".to_owned()));
        if !cfg!(debug_assertions) {
            // As they are by default, which a debug build is too slow for.
            settings.push(("FEATURESTORE_L1_TIMEOUT", "50ms".to_owned()));
            settings.push(("FEATURESTORE_L1_SLOW", "20ms".to_owned()));
        }
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let servers = (0..SERVERS).map(|_| block_in_place(|| Binary::start(&settings))).collect();
        let bearer = Bearer::new(TOKEN);
        let world = Self { redis, set, servers, authority, secret, bearer, collector, _tokens: tokens };
        world.until_all_normal().await;
        world
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.servers.iter().map(|server| self.authority.endpoint(server.port, None)).collect()
    }

    /// Waits until this server confirms writes, answers from L1, and says that all is well.
    pub async fn until_normal(&self, server: usize) {
        let (start, mut last) = (Instant::now(), String::new());
        while start.elapsed() < RECOVERY {
            let probing = tokio::time::timeout(Duration::from_secs(5), self.is_normal(server)).await;
            match probing.unwrap_or(Err("no answer".to_owned())) {
                Ok(()) => return,
                Err(what) => last = what,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("server {server} is not normal after {RECOVERY:?}: {last}\n{}", tail(&self.servers[server].log()));
    }

    pub async fn until_all_normal(&self) {
        futures_util::future::join_all((0..SERVERS).map(|server| self.until_normal(server))).await;
    }

    async fn is_normal(&self, server: usize) -> Result<(), String> {
        let binary = &self.servers[server];
        let mut client = api::caller(&self.authority.endpoint(binary.port, None), &self.bearer);
        let id = format!("probe{server}");
        let written = client.upsert_features(api::upsert(api::record(&id, []))).await;
        let written = written.map_err(|status| format!("a write: {status}"))?.into_inner();
        let read = client.get_features(api::get([&id])).await;
        let read = read.map_err(|status| format!("a read: {status}"))?.into_inner();
        if !written.cached || read.degraded || read.rows[0].source() != Source::L1 {
            return Err(format!("{read:?} after {written:?}"));
        }
        for name in ["", SERVICE, "l1", "l2"] {
            if binary.admin_health(name).await != Some(ServingStatus::Serving) {
                return Err(format!("health of {name:?}"));
            }
        }
        Ok(())
    }
}
