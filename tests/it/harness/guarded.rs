//! A Redis and a MongoDB that ask who comes, shared by the tests that come with the right and the wrong passwords.

use std::sync::OnceLock;

use bson::doc;

use super::{
    certificates::{Certificates, text},
    mongod::{Access, Mongod},
    process::{free_port, temp_dir},
    redis::RedisServer,
};

pub const REDIS_PASSWORD: &str = "canary-redis-password";
pub const MONGODB_PASSWORD: &str = "canary-mongodb-password";
const DATABASE: &str = "guarded";

pub struct Guarded {
    redis: RedisServer,
    tls_port: u16,
    /// What Redis has and asks for, over TLS.
    pub certificates: Certificates,
    mongod: Mongod,
}

impl Guarded {
    /// The one that tests share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Guarded> = OnceLock::new();
        SHARED.get_or_init(|| std::thread::scope(|scope| scope.spawn(Self::start).join().unwrap()))
    }

    fn start() -> Self {
        let (certificates, tls_port) = (Certificates::new(), free_port());
        let port = tls_port.to_string();
        let (ca, certificate, key) = (certificates.ca(), certificates.certificate(), certificates.key());
        let tls =
            ["--tls-ca-cert-file", text(&ca), "--tls-cert-file", text(&certificate), "--tls-key-file", text(&key)];
        let redis = RedisServer::start_with(&[&["--tls-port", &port, "--tls-auth-clients", "yes"], &tls[..]].concat());
        redis.cli(&["CONFIG", "SET", "requirepass", REDIS_PASSWORD]);
        let mongod = guarded_mongod();
        mongod.block_on(|admin| async move {
            let roles = ["readWrite", "dbAdmin"];
            let user = doc! { "createUser": "user", "pwd": MONGODB_PASSWORD, "roles": roles.to_vec() };
            admin.client().database(DATABASE).run_command(user).await.unwrap();
        });
        Self { redis, tls_port, certificates, mongod }
    }

    /// Redis with this password.
    pub fn redis_url(&self, password: &str) -> String {
        format!("redis://:{password}@{}", self.redis.address())
    }

    /// The same over TLS, where a certificate is asked for.
    pub fn rediss_url(&self, password: &str) -> String {
        format!("rediss://:{password}@127.0.0.1:{}", self.tls_port)
    }

    /// Redis without one.
    pub fn open_redis_url(&self) -> String {
        self.redis.url()
    }

    /// MongoDB with this password, and the database to name beside it.
    pub fn mongodb(&self, password: &str) -> (String, &'static str) {
        let uri = self.mongod.uri().replace("mongodb://", &format!("mongodb://user:{password}@"));
        (uri + "&authSource=" + DATABASE, DATABASE)
    }
}

/// A replica set of one node that asks who comes; `boss` may do everything.
pub fn guarded_mongod() -> Mongod {
    let folder = temp_dir();
    let key = folder.path().join("key");
    std::fs::write(&key, "bm90IGEgc2VjcmV0IGtleQ==").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let options = vec!["--auth".to_owned(), "--keyFile".to_owned(), text(&key).to_owned()];
    // It reads the file when it starts, and not again.
    Mongod::replica_set_with(Access { options, login: Some(("boss", "boss-password")), ca_file: None })
}
