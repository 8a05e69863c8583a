//! Reads the address of a Redis, of sentinels, or of a cluster. Every part of an address is used or
//! rejected; none is ignored.

use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use super::config::{Address, InvalidRedisConfig, Place, invalid};

/// How the servers are found, how each is reached, and the database if one is named.
pub(super) fn parse(url: &str) -> Result<(Place, ConnectionInfo, Option<u16>), InvalidRedisConfig> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    // Otherwise a part of the password could be read as something else, and be logged.
    let after_hosts = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    if after_hosts.contains('@') || rest.contains('#') {
        return invalid(
            "the Redis address has an @ or a # in a wrong place: percent-encode special characters of a user or \
             password (/ as %2F, ? as %3F, @ as %40, # as %23)",
        );
    }
    let tls = if scheme.starts_with("rediss") { "rediss" } else { "redis" };
    let kind: Kind = match scheme {
        "redis" | "rediss" => one,
        "redis-sentinel" | "rediss-sentinel" => sentinel,
        "redis-cluster" | "rediss-cluster" => cluster,
        _ => {
            return invalid(
                "the Redis address is invalid: it begins with redis://, redis-sentinel:// or redis-cluster:// \
                 (with TLS rediss://, rediss-sentinel://, rediss-cluster://)",
            );
        }
    };
    let (rest, options) = Options::split(rest)?;
    let (place, server, path) = kind(tls, rest, &options)?;
    Ok((place, server, options.database(path)?))
}

/// What follows the `?` of an address.
struct Options<'a>(Vec<(&'a str, &'a str)>);

/// The sentinels have a user of their own.
const OF_SENTINELS: [&str; 2] = ["sentinel_username", "sentinel_password"];

impl<'a> Options<'a> {
    /// The address without its options, and the options.
    fn split(rest: &'a str) -> Result<(&'a str, Self), InvalidRedisConfig> {
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = options.split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        for (at, (name, value)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return invalid("the Redis address has an option twice");
            }
            match (*name, *value) {
                ("db", _) | ("protocol", "2" | "resp2") => {}
                (name, _) if OF_SENTINELS.contains(&name) => {}
                ("protocol", _) => return invalid("the option protocol of the Redis address must be 2"),
                // The error does not repeat the name, which may be a part of a password.
                _ => {
                    return invalid(
                        "the Redis address has an option after its ? that does nothing here: there are db, and for \
                         sentinels sentinel_username and sentinel_password; timeouts and TLS have settings of their \
                         own (l1.timeout, redis.ca_file, rediss://)",
                    );
                }
            }
        }
        Ok((rest, Self(pairs)))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    /// The database that the path or an option names.
    fn database(&self, path: Option<&str>) -> Result<Option<u16>, InvalidRedisConfig> {
        let number = |text: &str| match text.parse::<u16>() {
            Ok(number) => Ok(number),
            Err(_) => invalid("the database of the Redis address cannot be read: it must be a number from 0 to 65535"),
        };
        let [path, option] = [path, self.get("db")].map(|text| text.map(number).transpose());
        match (path?, option?) {
            (Some(path), Some(option)) if path != option => {
                invalid("the Redis address names two databases, one in its path and one as db: leave one of them out")
            }
            (path, option) => Ok(path.or(option)),
        }
    }
}

/// An address of several hosts that share everything else.
struct Several<'a> {
    /// With the final `@`; empty: there are none.
    credentials: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
}

impl<'a> Several<'a> {
    fn split(rest: &'a str) -> Result<Self, InvalidRedisConfig> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.iter().any(|host| host.is_empty()) {
            return invalid(
                "the Redis address names an empty host: separate hosts by single commas, host1:port,host2:port",
            );
        }
        Ok(Self { credentials, hosts, path: path.split('/').filter(|part| !part.is_empty()).collect() })
    }
}

/// How servers are found, how one is reached, and the database in the path.
type Found<'a> = (Place, ConnectionInfo, Option<&'a str>);

/// Reads what follows the scheme.
type Kind = for<'a> fn(&str, &'a str, &Options<'_>) -> Result<Found<'a>, InvalidRedisConfig>;

fn one<'a>(tls: &str, rest: &'a str, options: &Options<'_>) -> Result<Found<'a>, InvalidRedisConfig> {
    without_sentinels(options)?;
    let url = Several::split(rest)?;
    let database = match url.path[..] {
        [] => None,
        [database] => Some(database),
        _ => return invalid("the path of a redis:// address must be the number of a database and nothing else"),
    };
    if url.hosts.len() > 1 {
        return invalid(
            "a redis:// address names one host: for several use redis-cluster:// (a cluster) or redis-sentinel://",
        );
    }
    Ok((Place::One, read(&format!("{tls}://{}{}", url.credentials, url.hosts[0]))?, database))
}

fn without_sentinels(options: &Options<'_>) -> Result<(), InvalidRedisConfig> {
    match OF_SENTINELS.into_iter().any(|name| options.get(name).is_some()) {
        true => invalid("sentinel_username and sentinel_password are for a redis-sentinel:// address only"),
        false => Ok(()),
    }
}

fn sentinel<'a>(tls: &str, rest: &'a str, options: &Options<'_>) -> Result<Found<'a>, InvalidRedisConfig> {
    let url = Several::split(rest)?;
    let (master, db) = match url.path[..] {
        [master] => (master, None),
        [master, db] => (master, Some(db)),
        _ => {
            return invalid(
                "a redis-sentinel:// address lists all sentinels, as more than half must agree, and ends with the name \
                 of the master as they know it, and perhaps a database: \
                 redis-sentinel://host1:26379,host2:26379,host3:26379/mymaster/0",
            );
        }
    };
    let own = match OF_SENTINELS.map(|name| options.get(name).filter(|value| !value.is_empty())) {
        [None, None] => String::new(),
        [Some(_), None] => {
            return invalid("the Redis address has a sentinel_username and no sentinel_password: add it");
        }
        [username, Some(password)] => format!("{}:{password}@", username.unwrap_or_default()),
    };
    let port = |host: &str| if has_port(host) { "" } else { ":26379" };
    let sentinels = url.hosts.iter().map(|host| read(&format!("{tls}://{own}{host}{}", port(host))));
    let sentinels = sentinels.collect::<Result<Vec<_>, _>>()?;
    let server = read(&format!("{tls}://{}{}", url.credentials, url.hosts[0]))?;
    Ok((Place::Sentinel { master: master.to_owned(), sentinels }, server, db))
}

fn cluster<'a>(tls: &str, rest: &'a str, options: &Options<'_>) -> Result<Found<'a>, InvalidRedisConfig> {
    without_sentinels(options)?;
    let url = Several::split(rest)?;
    if !matches!(url.path[..], [] | ["0"]) {
        return invalid("a Redis Cluster has database 0 only: a redis-cluster:// address ends with its hosts");
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
    Ok((Place::Cluster { seeds }, server, None))
}

/// Reads the address of one server.
fn read(url: &str) -> Result<ConnectionInfo, InvalidRedisConfig> {
    // The error text of the library may repeat the password, so it is not used.
    let Ok(server) = url.into_connection_info() else { return invalid("the Redis address cannot be read") };
    if let ConnectionAddr::Tcp(_, 0) | ConnectionAddr::TcpTls { port: 0, .. } = server.addr() {
        return invalid("the Redis address names port 0, on which no server can listen");
    }
    let tcp = server.tcp_settings().clone().set_nodelay(true);
    // CLIENT SETINFO, which names the library, would be one more right that the user needs.
    let redis = server.redis_settings().clone().set_skip_set_lib_name();
    Ok(server.set_tcp_settings(tcp).set_redis_settings(redis))
}

/// The colons in the brackets of an IPv6 address do not count.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|rest| rest.contains(':'))
}
