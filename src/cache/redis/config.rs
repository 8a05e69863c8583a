//! Where Redis is. Reads `redis://` and `rediss://` (TLS); Sentinel and Cluster are named, and refused for now.

use std::{fmt, num::NonZeroUsize};

use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

const DEFAULT_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Why a Redis address was refused, without what may be secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRedisConfig(pub(super) String);

/// Where Redis is, and by how many connections it is used.
#[derive(Clone)]
pub struct RedisConfig {
    pub(super) server: ConnectionInfo,
    /// Multiplexed connections that all calls share.
    pub(super) connections: NonZeroUsize,
}

impl RedisConfig {
    /// Reads `redis[s]://[user[:password]@]host[:port][/database]`; `rediss` is TLS. Two connections.
    pub fn parse(url: &str) -> Result<Self, InvalidRedisConfig> {
        let invalid = |why: &str| Err(InvalidRedisConfig(why.to_owned()));
        match url.split_once("://") {
            Some(("redis" | "rediss", _)) => {}
            // Their place is here: the same cache over another kind of connection.
            Some(("redis-sentinel" | "redis-cluster", _)) => {
                return invalid(
                    "redis-sentinel:// and redis-cluster:// are not supported yet; name one server, redis://host:port",
                );
            }
            _ => return invalid("a Redis address begins with redis:// or rediss://"),
        }
        // The library's own text may repeat the password.
        let Ok(server) = url.into_connection_info() else { return invalid("the Redis address cannot be read") };
        let tcp = server.tcp_settings().clone().set_nodelay(true);
        Ok(Self { server: server.set_tcp_settings(tcp), connections: DEFAULT_CONNECTIONS })
    }

    /// With this many connections.
    pub fn with_connections(self, connections: NonZeroUsize) -> Self {
        Self { connections, ..self }
    }

    /// Where it is, without credentials.
    pub fn address(&self) -> String {
        let scheme = if matches!(self.server.addr(), ConnectionAddr::TcpTls { .. }) { "rediss" } else { "redis" };
        format!("{scheme}://{}/{}", self.server.addr(), self.server.redis_settings().db())
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
        assert_eq!(RedisConfig::parse("redis://host").unwrap().address(), "redis://host:6379/0");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason_and_without_the_secret() {
        for (url, why) in [
            ("redis-sentinel://:secret@a,b/mymaster", "not supported yet"),
            ("redis-cluster://:secret@a", "not supported yet"),
            ("http://:secret@host", "begins with"),
            ("secret@host", "begins with"),
            ("redis://:secret@host/nine", "cannot be read"),
        ] {
            let error = RedisConfig::parse(url).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret@"), "{url}: {error}");
        }
    }
}
