//! The configuration: flags > environment > TOML file > defaults.
//!
//! The defaults are a commented file, embedded in the binary, and that file is also the reference. All sources become
//! texts by key (`sources`), which are parsed once, here, so that every error is told at once and by the key's name.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod parse;
mod sources;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    api::{CONNECTION_PART, Deadlines, Limits},
    tiered::OnL1Loss,
};
use parse::Parser;

pub use sources::{DEFAULTS, Flags};

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
    /// With credentials.
    pub url: String,
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
    /// The database.
    pub database: String,
    /// Connections to each server at most.
    pub max_pool_size: u32,
    /// Connections opened at once.
    pub max_connecting: u32,
    /// How long an operation waits for a server.
    pub server_selection_timeout: Duration,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Mongodb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mongodb").field("database", &self.database).finish_non_exhaustive()
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
        let (settings, errors, warnings) = sources::gather(flags, environment);
        let mut parser = Parser::new(settings, errors);
        let config = Self::parse(&mut parser);
        let effective = Effective { shown: parser.shown(), warnings };
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
            l1_ttl: p.duration("l1.ttl"),
            l1_timeout: p.duration("l1.timeout"),
            l1_slow: p.duration("l1.slow"),
            l1_wait_replicas: p.count_or_zero("l1.wait_replicas"),
            on_l1_loss: p.one_of("l1.on_loss", &[("accept", OnL1Loss::Accept), ("reject", OnL1Loss::Reject)]),
            l1_memory: p.size("l1.memory"),
            tombstone_ttl: p.duration("l2.tombstone_ttl"),
            max_l2_reads: p.count("l2.max_reads"),
            l2_cache: p.size("l2.cache"),
            default_ttl: p.duration("ttl.default"),
            limits: Limits {
                max_entities: p.count("limits.max_entities"),
                max_features: p.count("limits.max_features"),
                max_record_bytes: p.size("limits.max_record_bytes"),
                max_bulk_records: p.count("limits.max_bulk_records"),
                max_request_bytes: p.size("limits.max_request_bytes"),
                max_response_bytes: p.size("limits.max_response_bytes"),
                max_ttl: p.duration("limits.max_ttl"),
            },
            max_in_flight: p.count("limits.max_in_flight"),
            max_bytes_in_flight: p.size("limits.max_bytes_in_flight"),
            max_connections: p.count("limits.max_connections"),
            deadlines: Deadlines {
                read: p.duration("deadlines.read"),
                strong: p.duration("deadlines.strong"),
                write: p.duration("deadlines.write"),
            },
            drain_delay: p.duration_or_zero("drain.delay"),
            drain_timeout: p.duration("drain.timeout"),
            json_log: p.one_of("log.format", &[("human", false), ("json", true)]),
            log_filter: p.text("log.filter"),
        };
        config.check(p);
        config
    }

    /// What keeps strangers out where other machines reach the server, and those on the way from reading along, and is
    /// not configured.
    fn missing_protection(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.tls.is_none() {
            missing.push("TLS (tls.cert_file, tls.key_file)");
        }
        if self.tokens_file.is_none() {
            missing.push("tokens (auth.tokens_file)");
        }
        missing
    }

    /// What no key alone can tell.
    fn check(&self, p: &mut Parser) {
        let insecure = p.boolean("insecure_bind");
        let missing = self.missing_protection().join(" and ");
        for (key, address) in [("listen", self.listen), ("admin_listen", self.admin_listen)] {
            if !address.ip().is_loopback() && !insecure && !missing.is_empty() {
                p.wrong(
                    key,
                    format!(
                        "{address} can be reached from other machines, where anybody could read and write: configure \
                         {missing}, listen on 127.0.0.1, or allow it with --insecure-bind \
                         (FEATURESTORE_INSECURE_BIND=true)"
                    ),
                );
            }
        }
        let limits = &self.limits;
        let largest = limits.max_request_bytes.max(limits.max_response_bytes);
        if self.max_bytes_in_flight / CONNECTION_PART < largest {
            p.wrong(
                "limits.max_bytes_in_flight",
                format!(
                    "must be at least {CONNECTION_PART} times limits.max_request_bytes and limits.max_response_bytes, as \
                     a connection may have a part of 1/{CONNECTION_PART} of it"
                ),
            );
        }
        if limits.max_record_bytes >= limits.max_request_bytes {
            p.wrong("limits.max_record_bytes", "must be below limits.max_request_bytes, as a request holds a record");
        }
        if self.mongodb.is_some() && limits.max_record_bytes > 8 << 20 {
            p.wrong("limits.max_record_bytes", "may be 8MiB at most with MongoDB, whose documents may have 16 MiB");
        }
        if self.l1_ttl >= self.tombstone_ttl / 2 {
            p.wrong("l1.ttl", "must be below half of l2.tombstone_ttl, or L1 could outlive a deletion");
        }
        if self.l1_wait_replicas > 0 && self.redis.is_none() {
            p.wrong("l1.wait_replicas", "needs an L1 in Redis (redis.url), as only that has replicas");
        }
        if let Some(mongodb) = &self.mongodb
            && (mongodb.database.len() > 63 || mongodb.database.contains(['/', '\\', '.', ' ', '"', '$', '\0']))
        {
            p.wrong("mongodb.database", "may have 63 bytes and no space, /, \\, ., \" or $");
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log_filter) {
            p.wrong("log.filter", format!("{:?} is no filter: {error}", self.log_filter));
        }
        if self.default_ttl > limits.max_ttl {
            p.wrong("ttl.default", "must not be above limits.max_ttl");
        }
    }
}

fn tls(p: &mut Parser) -> Option<Tls> {
    let reload_interval = p.duration("tls.reload_interval");
    let [cert, key, client_ca] =
        ["tls.cert_file", "tls.key_file", "tls.client_ca_file"].map(|key| p.optional(key).map(PathBuf::from));
    match (cert, key) {
        (Some(cert_file), Some(key_file)) => {
            Some(Tls { cert_file, key_file, client_ca_file: client_ca, reload_interval })
        }
        (Some(_), None) => {
            p.wrong("tls.key_file", "must be set too: the key of the certificate in tls.cert_file");
            None
        }
        (None, Some(_)) => {
            p.wrong("tls.cert_file", "must be set too: the certificate of the key in tls.key_file");
            None
        }
        (None, None) => {
            if client_ca.is_some() {
                p.wrong(
                    "tls.client_ca_file",
                    "needs tls.cert_file and tls.key_file: without TLS no client shows a certificate",
                );
            }
            None
        }
    }
}

fn redis(p: &mut Parser) -> Option<Redis> {
    let (port, db, connections) = (p.count("redis.port"), p.text("redis.db"), p.count("redis.connections"));
    if port > usize::from(u16::MAX) {
        p.wrong("redis.port", "must be a port, from 1 to 65535");
    }
    let (username, password) = (p.optional("redis.username"), p.optional("redis.password"));
    let ca_file = p.optional("redis.ca_file").map(PathBuf::from);
    let client_files = match (p.optional("redis.client_cert_file"), p.optional("redis.client_key_file")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (certificate, _) => {
            let (here, other) = ("redis.client_cert_file", "redis.client_key_file");
            let (here, other) = if certificate.is_some() { (here, other) } else { (other, here) };
            p.wrong(here, format!("needs {other} too"));
            None
        }
    };
    let (url, host) = (p.optional("redis.url"), p.optional("redis.host"));
    let url = url.or_else(|| {
        let host = host?;
        if db.parse::<u16>().is_err() {
            p.wrong("redis.db", format!("{db:?} is not the number of a database"));
        }
        let escape = |text: Option<String>| text.map(|text| parse::percent_encode(&text)).unwrap_or_default();
        let user = match (&username, &password) {
            (None, None) => String::new(),
            _ => format!("{}:{}@", escape(username), escape(password)),
        };
        Some(format!("redis://{user}{host}:{port}/{db}"))
    })?;
    Some(Redis { url, connections, ca_file, client_files })
}

fn mongodb(p: &mut Parser) -> Option<Mongodb> {
    let database = p.text("mongodb.database");
    let (max_pool_size, max_connecting) = (p.count("mongodb.max_pool_size"), p.count("mongodb.max_connecting"));
    let server_selection_timeout = p.duration("mongodb.server_selection_timeout");
    let uri = p.optional("mongodb.uri")?;
    let (max_pool_size, max_connecting) = (max_pool_size as u32, max_connecting as u32);
    Some(Mongodb { uri, database, max_pool_size, max_connecting, server_selection_timeout })
}

/// The effective configuration as TOML lines, secrets redacted.
#[derive(Clone, Debug)]
pub struct Effective {
    shown: String,
    /// What is probably not as it was meant, a line each.
    pub warnings: Vec<String>,
}

impl std::fmt::Display for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Config, String> {
        load_with(&Flags::default(), environment)
    }

    fn load_with(flags: &Flags, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(flags, environment).map(|(config, _)| config).map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_default_file_is_a_whole_configuration_for_the_embedded_pair() {
        let config = load(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
        assert_eq!(config.limits.max_record_bytes, 1 << 20);
        assert_eq!(config.default_ttl, Duration::from_secs(7 * 24 * 3600));
        assert!(config.redis.is_none() && config.mongodb.is_none());
    }

    #[test]
    fn names_that_deployments_already_have_work_as_they_are() {
        let config = load(&[
            ("REDIS_HOST", "cache"),
            ("REDIS_PORT", "6380"),
            ("REDIS_DB", "2"),
            ("REDIS_PASSWORD", "p@ss/word"),
            ("REDIS_TTL", "90"),
            ("MONGO_URI", "mongodb://db"),
            ("MONGO_DB", "risk"),
            ("RUST_LOG", "debug"),
        ]);
        let config = config.unwrap();
        assert_eq!(config.redis.unwrap().url, "redis://:p%40ss%2Fword@cache:6380/2");
        assert_eq!(config.l1_ttl, Duration::from_secs(90));
        assert_eq!(config.mongodb.unwrap().database, "risk");
        assert_eq!(config.log_filter, "debug");
        let both = [("REDIS_URL", "redis://there"), ("REDIS_HOST", "cache")];
        assert_eq!(load(&both).unwrap().redis.unwrap().url, "redis://there");
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("featurestore.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\n[limits]\nmax_entities = 5\nmax_features = 6\n").unwrap();
        let set = vec!["limits.max_features=8".to_owned()];
        let flags = Flags { config: Some(file), set, ..Flags::default() };
        let environment = [("FEATURESTORE_LIMITS_MAX_FEATURES", "7"), ("FEATURESTORE_LISTEN", "127.0.0.1:2")];
        let config = load_with(&flags, &environment).unwrap();
        assert_eq!((config.limits.max_entities, config.limits.max_features), (5, 8));
        assert_eq!(config.listen.port(), 2);
    }

    #[test]
    fn every_error_is_told_at_once_with_the_keys_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("featurestore.toml");
        std::fs::write(&file, "lisen = \"x\"\n[l1]\ntimeout = 50\n").unwrap();
        let flags = Flags { config: Some(file), ..Flags::default() };
        let environment = [("FEATURESTORE_LIMITS_MAX_ENTITIES", "0"), ("FEATURESTORE_LISTEN", "0.0.0.0:1")];
        let errors = load_with(&flags, &environment).unwrap_err();
        for part in ["lisen", "l1.timeout", "50ms", "limits.max_entities", "listen", "--insecure-bind"] {
            assert!(errors.contains(part), "{part} in {errors}");
        }
    }

    fn load_file(text: &str) -> Result<(Config, Effective), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("featurestore.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&Flags { config: Some(file), ..Flags::default() }, []).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_by_its_line_and_without_its_text() {
        let told = load_file("[redis]\npassword = \"canary\nport = 1\n").unwrap_err();
        assert!(told.contains("featurestore.toml: line 2, column ") && !told.contains("canary"), "{told}");
    }

    #[test]
    fn a_section_without_keys_must_be_one_of_ours_too() {
        assert!(load_file("[limits]\n[l1]\n").is_ok());
        let told = load_file("listen = {}\n[limit]\n").unwrap_err();
        assert!(told.contains("listen: must not be empty") && told.contains("limit: there is no such key"), "{told}");
    }

    #[test]
    fn what_is_in_effect_is_shown_as_toml_that_gives_the_same() {
        let (config, effective) = load_file("data_dir = \"a\\u0001\\\"b\\n\"\n[l1]\nttl = \"2h\"\n").unwrap();
        let (again, _) = load_file(&effective.to_string()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
    }

    #[test]
    fn what_no_clock_counts_and_no_filter_are_told_with_the_rest() {
        let told =
            load(&[("FEATURESTORE_DEADLINES_READ", "1000000000years"), ("RUST_LOG", "a=b=c"), ("REDIS_PORT", "x")]);
        let told = told.unwrap_err();
        for key in ["deadlines.read: may be 10000 years", "log.filter: \"a=b=c\"", "redis.port"] {
            assert!(told.contains(key), "{key} in {told}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_are_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("uri");
        std::fs::write(&file, "mongodb://me:canary@db\n").unwrap();
        let environment = [
            ("MONGO_URI_FILE".to_owned(), file.display().to_string()),
            ("REDIS_URL".to_owned(), "redis://:canary@cache".to_owned()),
        ];
        let (config, effective) = Config::load(&Flags::default(), environment).unwrap();
        assert_eq!(config.mongodb.clone().unwrap().uri, "mongodb://me:canary@db");
        assert!(!effective.to_string().contains("canary") && !format!("{config:?}").contains("canary"));
        let set = vec!["redis.url=redis://:canary@cache".to_owned()];
        let refused = load_with(&Flags { set, ..Flags::default() }, &[]).unwrap_err();
        assert!(refused.contains("REDIS_URL") && !refused.contains("canary"), "{refused}");
    }

    #[test]
    fn what_kubernetes_puts_into_the_environment_does_no_harm() {
        let environment = [("REDIS_PORT", "tcp://10.0.0.1:6379"), ("FEATURESTORE_SERVICE_HOST", "10.0.0.2")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (_, effective) = Config::load(&Flags::default(), environment).unwrap();
        assert!(effective.warnings.is_empty(), "{:?}", effective.warnings);
    }

    #[test]
    fn a_misspelt_name_is_told() {
        let environment = [("FEATURESTORE_L1_TIMEOT".to_owned(), "1ms".to_owned())];
        let (_, effective) = Config::load(&Flags::default(), environment).unwrap();
        assert!(effective.warnings[0].contains("FEATURESTORE_L1_TIMEOT"), "{:?}", effective.warnings);
    }

    #[test]
    fn waiting_for_replicas_needs_a_redis() {
        let wait = ("FEATURESTORE_L1_WAIT_REPLICAS", "2");
        assert_eq!(load(&[wait, ("REDIS_URL", "redis://there")]).unwrap().l1_wait_replicas, 2);
        let told = load(&[wait]).unwrap_err();
        assert!(told.contains("l1.wait_replicas") && told.contains("redis.url"), "{told}");
        assert_eq!(load(&[]).unwrap().l1_wait_replicas, 0);
    }

    #[test]
    fn tls_needs_both_files() {
        let (cert, key) = (("FEATURESTORE_TLS_CERT_FILE", "/c"), ("FEATURESTORE_TLS_KEY_FILE", "/k"));
        let ca = ("FEATURESTORE_TLS_CLIENT_CA_FILE", "/a");
        let tls = load(&[cert, key, ca]).unwrap().tls.unwrap();
        assert_eq!((tls.cert_file, tls.client_ca_file), ("/c".into(), Some("/a".into())));
        for (given, missing) in [(cert, "tls.key_file"), (key, "tls.cert_file"), (ca, "tls.cert_file")] {
            let told = load(&[given]).unwrap_err();
            assert!(told.contains(missing), "{told}");
        }
    }

    #[test]
    fn beyond_loopback_it_listens_with_tls_and_tokens_or_when_it_is_told_to() {
        let open = ("FEATURESTORE_LISTEN", "0.0.0.0:1");
        let told = load(&[open]).unwrap_err();
        assert!(told.contains("tls.cert_file") && told.contains("--insecure-bind"), "{told}");
        load(&[open, ("FEATURESTORE_INSECURE_BIND", "true")]).unwrap();
        let (cert, key) = (("FEATURESTORE_TLS_CERT_FILE", "/c"), ("FEATURESTORE_TLS_KEY_FILE", "/k"));
        let told = load(&[open, cert, key]).unwrap_err();
        assert!(told.contains("auth.tokens_file") && !told.contains("tls.cert_file"), "{told}");
        load(&[open, cert, key, ("FEATURESTORE_AUTH_TOKENS_FILE", "/t")]).unwrap();
    }

    #[test]
    fn a_connections_part_of_the_bytes_in_flight_holds_the_largest_answer() {
        let told = load(&[("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "63MiB")]).unwrap_err();
        assert!(told.contains("limits.max_bytes_in_flight"), "{told}");
        load(&[("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "64MiB")]).unwrap();
    }

    #[test]
    fn seconds_are_whole_seconds() {
        for wrong in ["5m", "abc", ""] {
            let told = load(&[("REDIS_TTL", wrong)]).unwrap_err();
            assert!(told.contains("l1.ttl") && told.contains("REDIS_TTL"), "{told}");
        }
    }
}
