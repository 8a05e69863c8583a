//! The configuration. Flags win over the environment, the environment over a TOML file, and the
//! file over the defaults.
//!
//! The defaults are a commented file, which is part of the binary and also the reference. All
//! sources become texts by key (`sources`). They are parsed once, here, so that all errors are
//! reported at once and by the name of the key.

mod backends;
mod check;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod parse;
mod service_links;
mod sources;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::{
    api::{Deadlines, Limits},
    tiered::OnL1Loss,
};
use backends::{mongodb, redis, tls};
use parse::Parser;

pub use sources::{DEFAULTS, Flags};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// 1000 years. Times in L2 and in the protocol end with the year 9999, which is far beyond now and
/// this.
const LONGEST_TTL: Duration = Duration::from_secs(365_250 * 24 * 3600);
/// Below 7 days: entries of L1 must be gone before the marker in Redis that vouches for them, which
/// is kept for 7 days.
const LONGEST_L1_TTL: Duration = Duration::from_secs(6 * 24 * 3600);
/// Nothing can meet shorter deadlines, and no client waits for longer ones.
const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(10)..=HOUR;
const CACHES: RangeInclusive<usize> = 64 << 10..=1 << 40;
/// Clients count the bytes of a message in 31 bits.
const MESSAGES: RangeInclusive<usize> = 1 << 10..=1 << 30;

/// The settings of a server; `default.toml` explains each of them.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address of the gRPC port.
    pub listen: SocketAddr,
    /// The address of the admin port.
    pub admin_listen: SocketAddr,
    /// The folder of the embedded store.
    pub data_dir: PathBuf,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// The file of tokens and rights. None: everybody may call everything.
    pub tokens_file: Option<PathBuf>,
    /// TLS on the gRPC port. None: plaintext.
    pub tls: Option<Tls>,
    /// L1 in Redis. None: L1 is in this process.
    pub redis: Option<Redis>,
    /// L2 in MongoDB. None: L2 is embedded.
    pub mongodb: Option<Mongodb>,
    /// How long L1 keeps a record at most.
    pub l1_ttl: Duration,
    /// How long a call waits for L1, apart from the time for keys and bytes.
    pub l1_timeout: Duration,
    /// The time of a command of L1 from which on it counts as slow.
    pub l1_slow: Duration,
    /// How many replicas of Redis must know that a value is old before L1 confirms it.
    pub l1_wait_replicas: u32,
    /// What happens to writes that L1 does not confirm.
    pub on_l1_loss: OnL1Loss,
    /// Bytes of an L1 in this process.
    pub l1_memory: usize,
    /// How long L2 keeps tombstones and expired records.
    pub tombstone_ttl: Duration,
    /// Reads of L2 at the same time.
    pub max_l2_reads: usize,
    /// Bytes of the cache of the embedded store.
    pub l2_cache: usize,
    /// The ttl of records that give none.
    pub default_ttl: Duration,
    /// The limits of requests.
    pub limits: Limits,
    /// Calls at the same time over all connections.
    pub max_in_flight: usize,
    /// Bytes of requests and answers at the same time over all connections.
    pub max_bytes_in_flight: usize,
    /// Connections at the same time.
    pub max_connections: usize,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// How long calls are still accepted after SIGTERM.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_timeout: Duration,
    /// Whether the log is JSON.
    pub json_log: bool,
    /// What is logged, in the syntax of RUST_LOG.
    pub log_filter: String,
}

/// The files for TLS on the gRPC port, all PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate of the server and its chain.
    pub cert_file: PathBuf,
    /// The key of that certificate.
    pub key_file: PathBuf,
    /// The CAs that may sign client certificates. None: clients need no certificate.
    pub client_ca_file: Option<PathBuf>,
    /// How often the files are read again.
    pub reload_interval: Duration,
}

/// How to connect to Redis.
#[derive(Clone)]
pub struct Redis {
    /// The URL, which may have credentials and a database.
    pub url: String,
    /// The user, if it is not in the URL.
    pub username: Option<String>,
    /// The password, if it is not in the URL.
    pub password: Option<String>,
    /// The database, if it is not in the URL.
    pub database: Option<u16>,
    /// Connections that all calls share, for each kind of command.
    pub connections: usize,
    /// The CAs that may have signed the certificate of Redis. None: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The files of the client certificate and its key.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

/// How to connect to MongoDB.
#[derive(Clone)]
pub struct Mongodb {
    /// The URI, with credentials.
    pub uri: String,
    /// The database, if it is set. Otherwise the path of the URI may name one.
    pub database: Option<String>,
    /// The database if neither names one.
    pub default_database: String,
    /// The most connections to each node for calls.
    pub max_pool_size: Said<u32>,
    /// How many connections may be opened at the same time.
    pub max_connecting: Said<u32>,
    /// How long an operation waits for a node that can execute it.
    pub server_selection_timeout: Said<Duration>,
}

/// A setting that may also be an option of the URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// The configured value, or the default.
    pub value: T,
    /// Whether it was set, even to its default.
    pub is_set: bool,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Mongodb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let database = self.database.as_ref().unwrap_or(&self.default_database);
        f.debug_struct("Mongodb").field("database", database).finish_non_exhaustive()
    }
}

/// All errors of the configuration, one on each line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// Reads and checks all sources. `environment` is a parameter, so that tests can have their
    /// own.
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Effective), ConfigErrors> {
        let mut parser = Parser::new(sources::gather(flags, environment));
        let config = Self::parse(&mut parser);
        let (warnings, notices) = (parser.warnings(), parser.notices());
        let effective = Effective { shown: parser.shown(), warnings, notices };
        parser.finish()?;
        Ok((config, effective))
    }

    fn parse(p: &mut Parser) -> Self {
        let config = Self {
            listen: p.address("listen"),
            admin_listen: p.address("admin_listen"),
            data_dir: p.text("data_dir").into(),
            reflection: p.boolean("reflection"),
            tokens_file: p.optional("auth.tokens_file").map(PathBuf::from),
            tls: tls(p),
            redis: redis(p),
            mongodb: mongodb(p),
            l1_ttl: p.duration("l1.ttl", SECOND..=LONGEST_L1_TTL),
            l1_timeout: p.duration("l1.timeout", MS..=60 * SECOND),
            l1_slow: p.duration("l1.slow", MS..=60 * SECOND),
            l1_wait_replicas: p.count("l1.wait_replicas", 0..=100) as u32,
            on_l1_loss: p.one_of("l1.on_loss", &[("accept", OnL1Loss::Accept), ("reject", OnL1Loss::Reject)]),
            l1_memory: p.size("l1.memory", CACHES),
            tombstone_ttl: p.duration("l2.tombstone_ttl", SECOND..=LONGEST_TTL),
            max_l2_reads: p.count("l2.max_reads", 1..=100_000),
            l2_cache: p.size("l2.cache", CACHES),
            default_ttl: p.duration("ttl.default", SECOND..=LONGEST_TTL),
            limits: Limits {
                max_entities: p.count("limits.max_entities", 1..=20_000),
                max_features: p.count("limits.max_features", 1..=100_000),
                max_record_bytes: p.size("limits.max_record_bytes", 1..=64 << 20),
                max_bulk_records: p.count("limits.max_bulk_records", 1..=100_000),
                max_request_bytes: p.size("limits.max_request_bytes", MESSAGES),
                max_response_bytes: p.size("limits.max_response_bytes", MESSAGES),
                max_ttl: p.duration("limits.max_ttl", SECOND..=LONGEST_TTL),
            },
            max_in_flight: p.count("limits.max_in_flight", 1..=1_000_000),
            max_bytes_in_flight: p.size("limits.max_bytes_in_flight", 4 << 10..=1 << 40),
            max_connections: p.count("limits.max_connections", 1..=1_000_000),
            deadlines: Deadlines {
                read: p.duration("deadlines.read", DEADLINES),
                strong: p.duration("deadlines.strong", DEADLINES),
                write: p.duration("deadlines.write", DEADLINES),
            },
            drain_delay: p.duration("drain.delay", Duration::ZERO..=DAY),
            drain_timeout: p.duration("drain.timeout", MS..=DAY),
            json_log: p.one_of("log.format", &[("human", false), ("json", true)]),
            log_filter: p.text("log.filter"),
        };
        check::check(&config, p);
        config
    }
}

/// The configuration in effect as lines of TOML, with secrets redacted.
#[derive(Clone, Debug)]
pub struct Effective {
    shown: String,
    /// Settings that probably do not do what was meant, one on each line.
    pub warnings: Vec<String>,
    /// Settings that are not used, for a good reason, one on each line.
    pub notices: Vec<String>,
}

impl std::fmt::Display for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}
