//! The configuration: flags > environment > TOML file > defaults.
//!
//! The defaults are a commented file, embedded in the binary, and that file is also the reference. All sources become
//! texts by key (`sources`), which are parsed once, here, so that every error is told at once and by the key's name.

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
/// What a time in L2 and on the wire can hold, which ends with the year 9999, is far beyond now and this.
const LONGEST_TTL: Duration = Duration::from_secs(365_250 * 24 * 3600);
/// L1's entries must be gone before the marker that vouches for them, which Redis keeps for 7 days.
const LONGEST_L1_TTL: Duration = Duration::from_secs(6 * 24 * 3600);
/// Shorter deadlines nothing can meet; longer ones nobody waits for.
const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(10)..=HOUR;
const CACHES: RangeInclusive<usize> = 64 << 10..=1 << 40;
/// Clients count a message's bytes in 31 bits.
const MESSAGES: RangeInclusive<usize> = 1 << 10..=1 << 30;

/// What the server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where the admin port is.
    pub admin_listen: SocketAddr,
    /// The folder of the embedded store.
    pub data_dir: PathBuf,
    /// Whether reflection is served.
    pub reflection: bool,
    /// Who may call, by their tokens; None: everybody, everything.
    pub tokens_file: Option<PathBuf>,
    /// TLS on the gRPC port; None: plaintext.
    pub tls: Option<Tls>,
    /// L1 in Redis; None: in this process.
    pub redis: Option<Redis>,
    /// L2 in MongoDB; None: embedded.
    pub mongodb: Option<Mongodb>,
    /// How long L1 keeps a record at most.
    pub l1_ttl: Duration,
    /// How long a call waits for L1.
    pub l1_timeout: Duration,
    /// When L1 is too slow for reads.
    pub l1_slow: Duration,
    /// How many of Redis's replicas must know that a value is old before L1 confirms it.
    pub l1_wait_replicas: u32,
    /// What becomes of writes that L1 does not confirm.
    pub on_l1_loss: OnL1Loss,
    /// Bytes of the L1 in this process.
    pub l1_memory: usize,
    /// How long L2 keeps tombstones.
    pub tombstone_ttl: Duration,
    /// Reads of L2 at once.
    pub max_l2_reads: usize,
    /// Bytes of the embedded store's cache.
    pub l2_cache: usize,
    /// For records that give no ttl.
    pub default_ttl: Duration,
    /// What a request may hold.
    pub limits: Limits,
    /// Calls at once, over all connections.
    pub max_in_flight: usize,
    /// Bytes of requests and answers at once, over all connections.
    pub max_bytes_in_flight: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// How long calls are taken after SIGTERM.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_timeout: Duration,
    /// Whether the log is JSON.
    pub json_log: bool,
    /// As in RUST_LOG.
    pub log_filter: String,
}

/// Where the certificates of the gRPC port are.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate, and what leads from it to a root.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Who may sign clients' certificates; None: clients need none.
    pub client_ca_file: Option<PathBuf>,
    /// How often the files are looked at.
    pub reload_interval: Duration,
}

/// How Redis is reached.
#[derive(Clone)]
pub struct Redis {
    /// May hold credentials and a database.
    pub url: String,
    /// A user beside the URL.
    pub username: Option<String>,
    /// A password beside the URL.
    pub password: Option<String>,
    /// A database beside the URL.
    pub database: Option<u16>,
    /// How many connections are shared.
    pub connections: usize,
    /// The certificates of who signed the server's; None: the system's.
    pub ca_file: Option<PathBuf>,
    /// A certificate of our own, and its key.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

/// How MongoDB is reached.
#[derive(Clone)]
pub struct Mongodb {
    /// With credentials.
    pub uri: String,
    /// The database, where one is configured; else the URI's path may name one.
    pub database: Option<String>,
    /// The database where nothing names one.
    pub default_database: String,
    /// Connections to each server at most.
    pub max_pool_size: Said<u32>,
    /// Connections opened at once.
    pub max_connecting: Said<u32>,
    /// How long an operation waits for a server.
    pub server_selection_timeout: Said<Duration>,
}

/// A setting that the URI may have as an option, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// What is configured, or the default.
    pub value: T,
    /// Whether somebody has set it, though perhaps to its default.
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

/// Everything that is wrong with the configuration, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// Reads all sources; `environment` is passed in so that tests can have their own.
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

/// The effective configuration as TOML lines, secrets redacted.
#[derive(Clone, Debug)]
pub struct Effective {
    shown: String,
    /// What is probably not as it was meant, a line each.
    pub warnings: Vec<String>,
    /// What was left out, and rightly so, a line each.
    pub notices: Vec<String>,
}

impl std::fmt::Display for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}
