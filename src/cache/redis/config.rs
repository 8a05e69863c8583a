//! Where Redis is: one server (`redis://`), the master that sentinels name (`redis-sentinel://`), or a Redis Cluster
//! (`redis-cluster://`). With `rediss` every connection is TLS, those to sentinels too.

use std::{fmt, num::NonZeroUsize};

use deadpool_redis::redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
};

const DEFAULT_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Why a Redis address was refused, without what may be secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRedisConfig(pub(super) String);

/// Where Redis is, and by how many connections it is used.
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) place: Place,
    /// How every server is reached, but for its address: credentials, database, TLS.
    pub(super) server: ConnectionInfo,
    /// Multiplexed connections to each server that all calls share.
    pub(super) connections: NonZeroUsize,
    /// How many replicas must have what a write tells L1 before it counts.
    pub(super) wait_replicas: u32,
}

/// How the servers are found.
#[derive(Clone)]
pub(super) enum Place {
    /// There is one, `server`.
    One,
    /// More than half of the sentinels name it.
    Sentinel { master: String, sentinels: Vec<ConnectionInfo> },
    /// They name each other; these are asked first.
    Cluster { seeds: Vec<Address> },
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl RedisConfig {
    /// Reads `redis://[user[:password]@]host[:port][/database]`,
    /// `redis-sentinel://[user[:password]@]sentinel[:port],.../master[/database]` (all sentinels; with
    /// `?sentinel_password=` and `sentinel_username=` where they ask for them) or `redis-cluster://[user[:password]@]host[:port],...`;
    /// `rediss` for TLS. Two connections.
    pub fn parse(url: &str) -> Result<Self, InvalidRedisConfig> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // Then a part of the password would be taken for something else, and be shown.
        let after_hosts = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
        if after_hosts.contains('@') || rest.contains('#') {
            return invalid(
                "a Redis address holds an @ or a # where none can be: percent-encode what is special in a user or a \
                 password (/ as %2F, ? as %3F, @ as %40, # as %23)",
            );
        }
        let tls = if scheme.starts_with("rediss") { "rediss" } else { "redis" };
        let (place, server) = match scheme {
            "redis" | "rediss" => (Place::One, read(url)?),
            "redis-sentinel" | "rediss-sentinel" => sentinel(tls, rest)?,
            "redis-cluster" | "rediss-cluster" => cluster(tls, rest)?,
            _ => {
                return invalid(
                    "a Redis address begins with redis://, redis-sentinel:// or redis-cluster:// (with TLS rediss://, \
                     rediss-sentinel://, rediss-cluster://)",
                );
            }
        };
        Ok(Self { place, server, connections: DEFAULT_CONNECTIONS, wait_replicas: 0 })
    }

    /// With this many connections to each server.
    pub fn with_connections(self, connections: NonZeroUsize) -> Self {
        Self { connections, ..self }
    }

    /// A MARK, a SETTLE that only removes, and a DEL count once this many replicas have them.
    pub fn with_wait_replicas(self, wait_replicas: u32) -> Self {
        Self { wait_replicas, ..self }
    }

    /// With the certificates of who signed the servers' in place of the system's, and with a certificate and key of our own,
    /// all as PEM; for `rediss` only.
    pub fn with_certificates(
        mut self,
        ca: Option<Vec<u8>>,
        own: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, InvalidRedisConfig> {
        if !self.is_tls() {
            return invalid("certificates are for TLS, so the Redis address must begin with rediss");
        }
        let client_tls = own.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: ca };
        let with = |server: &ConnectionInfo| match Client::build_with_tls(server.clone(), certificates.clone()) {
            Ok(client) => Ok(client.get_connection_info().clone()),
            Err(error) => invalid(&format!("the certificates cannot be used: {error}")),
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

    /// Where it is, without credentials.
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

/// An address whose several hosts share the rest.
struct Several<'a> {
    /// With its `@`; empty: there is none.
    credentials: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    query: Vec<(&'a str, &'a str)>,
}

impl<'a> Several<'a> {
    fn split(rest: &'a str) -> Result<Self, InvalidRedisConfig> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.iter().any(|host| host.is_empty()) {
            return invalid(
                "the Redis address names an empty host: separate hosts by single commas, host1:port,host2:port",
            );
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Ok(Self {
            credentials,
            hosts,
            path: path.split('/').filter(|part| !part.is_empty()).collect(),
            query: pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect(),
        })
    }
}

fn sentinel(tls: &str, rest: &str) -> Result<(Place, ConnectionInfo), InvalidRedisConfig> {
    let url = Several::split(rest)?;
    let (master, db) = match url.path[..] {
        [master] => (master, "0"),
        [master, db] => (master, db),
        _ => {
            return invalid(
                "a redis-sentinel:// address lists all sentinels, as more than half must agree, and ends with the name of \
                 the master as they know it, and perhaps a database: \
                 redis-sentinel://host1:26379,host2:26379,host3:26379/mymaster/0",
            );
        }
    };
    let (mut username, mut password) = ("", "");
    for (name, value) in &url.query {
        match *name {
            "sentinel_username" => username = value,
            "sentinel_password" => password = value,
            _ => {
                return invalid(
                    "a redis-sentinel:// address takes sentinel_username and sentinel_password after its ?",
                );
            }
        }
    }
    let own = if password.is_empty() { String::new() } else { format!("{username}:{password}@") };
    let port = |host: &str| if has_port(host) { "" } else { ":26379" };
    let sentinels = url.hosts.iter().map(|host| read(&format!("{tls}://{own}{host}{}", port(host))));
    let sentinels = sentinels.collect::<Result<Vec<_>, _>>()?;
    let server = read(&format!("{tls}://{}{}/{db}", url.credentials, url.hosts[0]))?;
    Ok((Place::Sentinel { master: master.to_owned(), sentinels }, server))
}

fn cluster(tls: &str, rest: &str) -> Result<(Place, ConnectionInfo), InvalidRedisConfig> {
    let url = Several::split(rest)?;
    if !matches!(url.path[..], [] | ["0"]) {
        return invalid("a Redis Cluster has database 0 only: a redis-cluster:// address ends with its hosts");
    }
    if !url.query.is_empty() {
        return invalid("a redis-cluster:// address takes nothing after a ?");
    }
    let servers = url.hosts.iter().map(|host| read(&format!("{tls}://{}{host}", url.credentials)));
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let seeds = servers.iter().filter_map(|server| match server.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some(Address { host: host.clone(), port: *port })
        }
        _ => None,
    });
    let (seeds, server) = (seeds.collect(), servers[0].clone());
    Ok((Place::Cluster { seeds }, server))
}

/// Reads the address of one server.
fn read(url: &str) -> Result<ConnectionInfo, InvalidRedisConfig> {
    // The library's own text may repeat the password.
    let Ok(server) = url.into_connection_info() else { return invalid("the Redis address cannot be read") };
    let tcp = server.tcp_settings().clone().set_nodelay(true);
    // Naming the library would be one right more that the user needs.
    let redis = server.redis_settings().clone().set_skip_set_lib_name();
    Ok(server.set_tcp_settings(tcp).set_redis_settings(redis))
}

/// Beyond the brackets of an IPv6 address.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|rest| rest.contains(':'))
}

fn list(all: impl IntoIterator<Item = impl fmt::Display>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}

fn invalid<T>(why: &str) -> Result<T, InvalidRedisConfig> {
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
    fn what_cannot_be_used_is_refused_with_the_reason_and_without_the_secret() {
        for (url, why) in [
            ("redis-sentinel://:secret@a,b", "name of the master"),
            ("redis-sentinel://:secret@a,b/m/0/1", "name of the master"),
            ("redis-sentinel://:secret@a,b/m?db=1", "sentinel_password"),
            ("redis-sentinel://:secret@a,b/m/nine", "cannot be read"),
            ("redis-sentinel://:secret@a,,b/m", "empty host"),
            ("redis-cluster://:secret@", "empty host"),
            ("redis-cluster://:secret@a/1", "database 0"),
            ("redis-cluster://:secret@a?x=1", "nothing after"),
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
