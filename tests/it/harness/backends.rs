//! A Redis and a MongoDB of one test's own, to be stopped, frozen and started again.

use super::{mongod::Mongod, redis::RedisServer, server::Server};

pub struct Backends {
    pub redis: RedisServer,
    pub mongod: Mongod,
    settings: [(&'static str, String); 2],
}

impl Backends {
    pub fn start() -> Self {
        // Its starter blocks, and a test is inside a runtime.
        let mongod = std::thread::spawn(Mongod::replica_set).join().unwrap();
        let redis = RedisServer::start();
        let settings = [("REDIS_URL", redis.url()), ("MONGO_URI", mongod.uri())];
        Self { redis, mongod, settings }
    }

    /// What a server over them needs to be told.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// A server over them, with L1 trusted.
    pub async fn serve(&self, more: &[(&str, &str)]) -> Server {
        Server::start(&[&self.settings()[..], more].concat()).await
    }
}
