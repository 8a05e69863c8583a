//! Where Redis is: one server (`redis://`), the master that sentinels name (`redis-sentinel://`),
//! or a Redis Cluster (`redis-cluster://`). With `rediss` every connection uses TLS, also to
//! sentinels.

use std::{fmt, num::NonZeroUsize};

use deadpool_redis::redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, TlsCertificates};

use super::address;

const DEFAULT_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Why a Redis address was rejected. The text has no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRedisConfig(pub(super) String);

/// Where Redis is, and how it is reached.
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) place: Place,
    /// How every server is reached: credentials, database, TLS. The address is only one server's.
    pub(super) server: ConnectionInfo,
    /// The multiplexed connections to each server; all calls share them.
    pub(super) connections: NonZeroUsize,
    /// How many replicas must have a write to L1 before it counts.
    pub(super) wait_replicas: u32,
    /// The database that the address names.
    named_database: Option<u16>,
}

/// How the servers are found.
#[derive(Clone)]
pub(super) enum Place {
    /// There is one, `server`.
    One,
    /// More than half of the sentinels must name it.
    Sentinel { master: String, sentinels: Vec<ConnectionInfo> },
    /// The nodes name each other; these are asked first.
    Cluster { seeds: Vec<Address> },
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl RedisConfig {
    /// Reads
    /// `redis://[user[:password]@]host[:port][/database]` (or `?db=database`),
    /// `redis-sentinel://[user[:password]@]sentinel[:port],.../master[/database]` (all sentinels;
    /// `?sentinel_password=` and `sentinel_username=` if they require them) or
    /// `redis-cluster://[user[:password]@]host[:port],...`; `rediss` for TLS. Two connections.
    pub fn parse(url: &str) -> Result<Self, InvalidRedisConfig> {
        let (place, server, named_database) = address::parse(url)?;
        let redis = server.redis_settings().clone().set_db(i64::from(named_database.unwrap_or(0)));
        let (server, connections) = (server.set_redis_settings(redis), DEFAULT_CONNECTIONS);
        Self { place, server, connections, wait_replicas: 0, named_database }.checked()
    }

    /// Rejects what this kind of address cannot have.
    fn checked(self) -> Result<Self, InvalidRedisConfig> {
        let db = self.server.redis_settings().db();
        match self.place {
            Place::Cluster { .. } if db != 0 => invalid("a Redis Cluster has database 0 only"),
            _ => Ok(self),
        }
    }

    /// With the user, password and database of the settings. An address that has a different value
    /// is rejected, because it is unclear which one is meant.
    pub fn with_settings(
        mut self,
        username: Option<&str>,
        password: Option<&str>,
        database: Option<u16>,
    ) -> Result<Self, InvalidRedisConfig> {
        let own = self.server.redis_settings().clone();
        let mut redis = own.clone();
        if let Some(username) = agreed("user name", "redis.username", own.username(), username)? {
            redis = redis.set_username(username);
        }
        if let Some(password) = agreed("password", "redis.password", own.password(), password)? {
            redis = redis.set_password(password);
        }
        if redis.username().is_some() && redis.password().is_none() {
            return invalid("Redis has a user name and no password: set redis.password, or remove the user name");
        }
        if let Some(database) = agreed("database", "redis.db", self.named_database, database)? {
            redis = redis.set_db(i64::from(database));
        }
        self.server = self.server.set_redis_settings(redis);
        self.checked()
    }

    /// With this many connections to each server.
    pub fn with_connections(self, connections: NonZeroUsize) -> Self {
        Self { connections, ..self }
    }

    /// A MARK, a SETTLE that only removes, and a DEL count when this many replicas have them.
    pub fn with_wait_replicas(self, wait_replicas: u32) -> Self {
        Self { wait_replicas, ..self }
    }

    /// With these CA certificates in place of the system's, and with a client certificate and its
    /// key. All are PEM; for `rediss` only.
    pub fn with_certificates(
        mut self,
        ca: Option<Vec<u8>>,
        own: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, InvalidRedisConfig> {
        if !self.is_tls() {
            return invalid("certificates for Redis need TLS, so the Redis address must begin with rediss");
        }
        let client_tls = own.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: ca };
        let with = |server: &ConnectionInfo| match Client::build_with_tls(server.clone(), certificates.clone()) {
            Ok(client) => Ok(client.get_connection_info().clone()),
            Err(error) => invalid(&format!("the certificates for Redis cannot be used: {error}")),
        };
        self.server = with(&self.server)?;
        if let Place::Sentinel { sentinels, .. } = &mut self.place {
            *sentinels = sentinels.iter().map(with).collect::<Result<_, _>>()?;
        }
        Ok(self)
    }

    /// redis, redis-sentinel or redis-cluster.
    pub fn kind(&self) -> &'static str {
        match self.place {
            Place::One => "redis",
            Place::Sentinel { .. } => "redis-sentinel",
            Place::Cluster { .. } => "redis-cluster",
        }
    }

    /// The address, without credentials.
    pub fn address(&self) -> String {
        let tls = if self.is_tls() { "rediss" } else { "redis" };
        let db = self.server.redis_settings().db();
        match &self.place {
            Place::One => format!("{tls}://{}/{db}", self.server.addr()),
            Place::Sentinel { master, sentinels } => {
                format!("{tls}-sentinel://{}/{master}/{db}", list(sentinels.iter().map(ConnectionInfo::addr)))
            }
            Place::Cluster { seeds } => format!("{tls}-cluster://{}", list(seeds)),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.server.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// How the server at an address is reached.
    pub(super) fn server_at(&self, address: &Address) -> ConnectionInfo {
        let (host, port) = (address.host.clone(), address.port);
        let addr = match self.server.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.server.clone().set_addr(addr)
    }
}

/// The value from the address or the setting. They must not differ.
fn agreed<T: PartialEq>(
    what: &str,
    key: &str,
    own: Option<T>,
    beside: Option<T>,
) -> Result<Option<T>, InvalidRedisConfig> {
    match (own, beside) {
        (Some(own), Some(beside)) if own != beside => {
            invalid(&format!("the {what} in the Redis address differs from {key}: leave one of them out"))
        }
        (own, beside) => Ok(beside.or(own)),
    }
}

fn list(all: impl IntoIterator<Item = impl fmt::Display>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}

pub(super) fn invalid<T>(why: &str) -> Result<T, InvalidRedisConfig> {
    Err(InvalidRedisConfig(why.to_owned()))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisConfig({} x {})", self.address(), self.connections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_credentials() {
        let config = RedisConfig::parse("rediss://user:secret@host:1234/3").unwrap();
        assert_eq!(config.address(), "rediss://host:1234/3");
        assert_eq!(format!("{config:?}"), "RedisConfig(rediss://host:1234/3 x 2)");
        for (url, shown) in [
            ("redis://host", "redis://host:6379/0"),
            ("redis-sentinel://:secret@a,[::1],b:1/main", "redis-sentinel://a:26379,::1:26379,b:1/main/0"),
            ("rediss-sentinel://a/main/2?sentinel_password=secret", "rediss-sentinel://a:26379/main/2"),
            ("redis-cluster://user:secret@a:7000,b", "redis-cluster://a:7000,b:6379"),
        ] {
            assert_eq!(RedisConfig::parse(url).unwrap().address(), shown);
        }
    }

    #[test]
    fn sentinels_have_credentials_of_their_own() {
        let config = RedisConfig::parse("redis-sentinel://me:p%40ss@a,b/main/2?sentinel_password=x%2Fy").unwrap();
        let Place::Sentinel { master, sentinels } = &config.place else { panic!("{config:?}") };
        assert_eq!((master.as_str(), sentinels.len()), ("main", 2));
        assert_eq!(sentinels[1].redis_settings().password(), Some("x/y"));
        let server = config.server_at(&Address { host: "there".to_owned(), port: 9 });
        assert_eq!(server.addr().to_string(), "there:9");
        let settings = server.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("me"), Some("p@ss"), 2));
    }

    #[test]
    fn a_database_is_named_by_the_path_an_option_or_a_setting() {
        for (url, beside, db) in [
            ("redis://h", None, 0),
            ("redis://h/3", None, 3),
            ("redis://h/3/", None, 3),
            ("redis://h?db=3", None, 3),
            ("redis://h/?db=3&protocol=2", None, 3),
            ("redis://h/3?db=3", Some(3), 3),
            ("redis://h", Some(3), 3),
            ("redis-sentinel://h/m?db=3", None, 3),
            ("redis-sentinel://h/m/3", Some(3), 3),
            ("redis-sentinel://h/m", Some(3), 3),
            ("redis-cluster://h?db=0", Some(0), 0),
        ] {
            let config = RedisConfig::parse(url).unwrap().with_settings(None, None, beside).unwrap();
            assert_eq!(config.server.redis_settings().db(), db, "{url} {beside:?}");
        }
        for (url, why) in
            [("redis://h/1", "leave one"), ("redis://h?db=1", "leave one"), ("redis-cluster://h", "0 only")]
        {
            let refused = RedisConfig::parse(url).unwrap().with_settings(None, None, Some(2)).unwrap_err();
            assert!(refused.to_string().contains(why), "{url}: {refused}");
        }
    }

    #[test]
    fn credentials_beside_an_address_are_used_and_must_not_contradict_it() {
        let with = |url: &str, username, password| {
            let config = RedisConfig::parse(url).unwrap().with_settings(username, password, None);
            config.map(|config| {
                let redis = config.server.redis_settings().clone();
                (redis.username().map(str::to_owned), redis.password().map(str::to_owned))
            })
        };
        let pair =
            |username: Option<&str>, password: &str| Ok((username.map(str::to_owned), Some(password.to_owned())));
        for url in ["redis://h", "rediss://h", "redis-sentinel://a,b/m", "redis-cluster://a,b"] {
            assert_eq!(with(url, None, Some("p@:/")), pair(None, "p@:/"), "{url}");
            assert_eq!(with(url, Some("me"), Some("p")), pair(Some("me"), "p"), "{url}");
        }
        assert_eq!(with("redis://me@h", None, Some("p")), pair(Some("me"), "p"));
        assert_eq!(with("redis://:p@h", Some("me"), None), pair(Some("me"), "p"));
        assert_eq!(with("redis://me:p@h", Some("me"), Some("p")), pair(Some("me"), "p"));
        for (url, username, password) in [
            ("redis://:secret@h", None, Some("canary")),
            ("redis://canary:secret@h", Some("me"), None),
            ("redis://canary@h", None, None),
            ("redis://h", Some("canary"), None),
        ] {
            let refused = with(url, username, password).unwrap_err().to_string();
            assert!(!refused.contains("secret") && !refused.contains("canary"), "{refused}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason_and_without_the_secret() {
        for (url, why) in [
            ("redis-sentinel://:secret@a,b", "name of the master"),
            ("redis-sentinel://:secret@a,b/m/0/1", "name of the master"),
            ("redis-sentinel://:secret@a,b/m?timeout=1", "does nothing here"),
            ("redis-sentinel://:secret@a,b/m?sentinel_username=me", "no sentinel_password"),
            ("redis://:secret@a?sentinel_password=x", "redis-sentinel:// address only"),
            ("redis://:secret@a?socket_timeout=5", "l1.timeout"),
            ("rediss://:secret@a?ssl_cert_reqs=none", "does nothing here"),
            ("redis://:secret@a?protocol=3", "protocol"),
            ("redis://:secret@a?db=1&db=1", "twice"),
            ("redis://:secret@a/1?db=2", "two databases"),
            ("redis://:secret@a?db=x", "cannot be read"),
            ("redis://:secret@a/-1", "cannot be read"),
            ("redis://:secret@a/65536", "cannot be read"),
            ("redis://:secret@a/1/2", "nothing else"),
            ("redis://:secret@a,b", "one host"),
            ("redis://:secret@a:0", "port 0"),
            ("redis-cluster://:secret@a?db=1", "database 0"),
            ("redis-sentinel://:secret@a,b/m/nine", "cannot be read"),
            ("redis-sentinel://:secret@a,,b/m", "empty host"),
            ("redis-cluster://:secret@", "empty host"),
            ("redis-cluster://:secret@a/1", "database 0"),
            ("redis-cluster://:secret@a?x=1", "does nothing here"),
            ("redis-cluster://:secret@a:port", "cannot be read"),
            ("http://:secret@host", "begins with"),
            ("secret@host", "begins with"),
            ("redis://:secret@host/nine", "cannot be read"),
            ("redis-sentinel://user:9/secret@a,b/m", "percent-encode"),
            ("redis://user:9/0?secret@host", "percent-encode"),
            ("redis://user:x@secret@#@host", "percent-encode"),
        ] {
            let error = RedisConfig::parse(url).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret@"), "{url}: {error}");
        }
    }
}
