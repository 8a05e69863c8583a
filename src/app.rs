//! Puts a server together from a configuration: the two tiers, the protocol over them, and the
//! service.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    access::{gate::Gate, reload::Reload},
    api::Api,
    cache::{Cache, Epoch, Probe, memory::MemoryCache},
    config::Config,
    record::Clock,
    server::{
        MAX_BULK_STREAMS, ServerSettings,
        tls::{Tls, TlsFiles},
    },
    store::{EpochState, Store, WriteRules, embedded::EmbeddedStore},
    tiered::{Settings, Tiered, repair::RepairSettings},
    trace::Traces,
};

pub use crate::server::App;

/// Why a server cannot be put together. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong (exit code 64).
    #[error("{0}")]
    Config(String),
    /// The machine does not allow it, for example a locked folder or a port in use (exit code 1).
    #[error("{0}")]
    Machine(String),
}

impl App {
    /// Puts a server together. Redis and MongoDB need not be reachable yet; the folder of the
    /// embedded store must be.
    pub async fn new(config: &Config) -> Result<Self, StartError> {
        Self::with_clock(config, Clock::system()).await
    }

    /// Like [`new`](Self::new), with this clock instead of the system's; for tests.
    pub async fn with_clock(config: &Config, clock: Clock) -> Result<Self, StartError> {
        let (gate, tls, cache) = (gate(config), tls(config), cache(config));
        // If the configuration is wrong, no folder is opened. A MongoDB URI is still checked, which
        // opens nothing, so that all errors are reported at once.
        let is_worth_it = config.mongodb.is_some() || (gate.is_ok() && tls.is_ok() && cache.is_ok());
        let store = is_worth_it.then(|| store(config, rules(config), &clock));
        let (gate, tls, cache, store) = match (gate, tls, cache, store) {
            (Ok(gate), Ok(tls), Ok(cache), Some(Ok(store))) => (gate, tls, cache, store),
            (gate, tls, cache, store) => {
                return Err(all_wrong([gate.err(), tls.err(), cache.err(), store.and_then(Result::err)]));
            }
        };
        if !cache.info().shared && !store.info().exclusive {
            tracing::warn!(
                ttl = ?config.l1_ttl,
                "L1 is in the memory of this process, but other servers may write to the same MongoDB. This server \
                 sees their writes a moment later, and over a standalone MongoDB only when l1.ttl ends (5 minutes at \
                 most). Configure Redis (redis.url) to see them at once"
            );
        }
        let settings = Settings {
            l1_ttl: config.l1_ttl,
            l1_timeout: config.l1_timeout,
            l1_slow: config.l1_slow,
            on_l1_loss: config.on_l1_loss,
            tombstone_ttl: config.tombstone_ttl,
            read_deadline: config.deadlines.read,
            write_deadline: config.deadlines.write,
            max_l2_reads: max_l2_reads(config, &*store),
            // Bulk streams are counted apart from the calls, and each writes one chunk at a time.
            max_writes: config.max_in_flight.saturating_add(MAX_BULK_STREAMS),
            repair: RepairSettings::default(),
        };
        let tiered = Tiered::new(cache, store, settings, clock);
        let (limits, deadlines) = (config.limits.clone(), config.deadlines.clone());
        let api = Api::new(tiered.clone(), limits, deadlines, config.default_ttl, gate.is_some());
        let settings = ServerSettings {
            reflection: config.reflection,
            max_in_flight: config.max_in_flight,
            max_bytes_in_flight: config.max_bytes_in_flight,
            max_connections: config.max_connections,
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
        };
        // The caller sets these after it has started the telemetry.
        let (traces, lost_lines, reload) = (Traces::default(), Arc::default(), Reload::never());
        Ok(Self { api, tiered, settings, gate, tls, traces, lost_lines, reload })
    }
}

/// All errors, one on each line. Errors of the configuration hide those of the machine, which may
/// follow from them.
fn all_wrong(errors: [Option<StartError>; 4]) -> StartError {
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    for error in errors.into_iter().flatten() {
        match error {
            StartError::Config(error) => wrong.push(error),
            StartError::Machine(error) => refused.push(error),
        }
    }
    if wrong.is_empty() { StartError::Machine(refused.join("\n")) } else { StartError::Config(wrong.join("\n")) }
}

fn gate(config: &Config) -> Result<Option<Arc<Gate>>, StartError> {
    let Some(path) = &config.tokens_file else { return Ok(None) };
    let wrong = |error: String| {
        let line = |line: &str| format!("auth.tokens_file: {}: {line}", path.display());
        StartError::Config(error.lines().map(line).collect::<Vec<_>>().join("\n"))
    };
    Gate::open(path).map(Some).map_err(wrong)
}

/// The configured number, but at most three quarters of the connections to MongoDB: the others are
/// for writes.
fn max_l2_reads(config: &Config, store: &dyn Store) -> usize {
    let Some(connections) = store.pool().map(|pool| pool.max) else { return config.max_l2_reads };
    let most = (connections / 4 * 3).max(1);
    if config.max_l2_reads > most {
        tracing::info!(
            "l2.max_reads is {}, but only {most} is used: three quarters of the {connections} connections to MongoDB \
             (mongodb.max_pool_size, or maxPoolSize in the URI)",
            config.max_l2_reads
        );
    }
    config.max_l2_reads.min(most)
}

/// Makes a new epoch in the configured L2, whatever is there, so that every L1 starts cold. The
/// epoch names the configured Redis, whichever was named before. If L1 is in the process or cannot
/// be reached, the epoch names none, and the first L1 that a server names will be used.
pub async fn new_epoch(config: &Config) -> Result<EpochState, StartError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const L1_PATIENCE: Duration = Duration::from_secs(5);
    let machine = |error: &dyn std::fmt::Display| StartError::Machine(format!("no new epoch was made: {error}"));
    if config.mongodb.is_none() && !config.data_dir.exists() {
        let dir = config.data_dir.display();
        return Err(machine(&format!("data_dir: there is no store in the folder {dir}")));
    }
    let store = store(config, rules(config), &Clock::system()).map_err(|error| match error {
        StartError::Machine(error) => {
            machine(&format!("{error} (a server over an embedded store must be stopped first)"))
        }
        error @ StartError::Config(_) => error,
    })?;
    let cache = cache(config)?;
    let l1 = match cache.info().shared {
        // The probe needs an epoch, and no entry is verified here, so any will do.
        true => match cache.probe(Epoch(0), None, Instant::now() + L1_PATIENCE).await {
            Ok(Probe::Another { found, .. }) => Some(found),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, address = cache.info().address, "L1 cannot be reached, so the new epoch names none");
                None
            }
        },
        false => None,
    };
    let made = store.new_epoch(l1.as_ref(), Instant::now() + PATIENCE).await;
    store.close().await;
    made.map_err(|error| machine(&error))
}

fn tls(config: &Config) -> Result<Option<Tls>, StartError> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let files = TlsFiles {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        client_ca_file: tls.client_ca_file.clone(),
        reload_interval: tls.reload_interval,
    };
    Tls::load(files).map(Some).map_err(|error| StartError::Config(error.to_string()))
}

fn rules(config: &Config) -> WriteRules {
    WriteRules {
        default_ttl: config.default_ttl,
        tombstone_ttl: config.tombstone_ttl,
        max_features: config.limits.max_features,
        max_record_bytes: config.limits.max_record_bytes,
    }
}

fn cache(config: &Config) -> Result<Arc<dyn Cache>, StartError> {
    let Some(redis) = &config.redis else {
        return Ok(Arc::new(MemoryCache::new(config.l1_memory as u64)));
    };
    #[cfg(feature = "redis")]
    {
        use crate::cache::redis::{RedisCache, RedisConfig};
        let wrong = |error: &dyn std::fmt::Display| StartError::Config(format!("redis.url: {error}"));
        let connections = redis.connections.try_into().unwrap_or(std::num::NonZeroUsize::MIN);
        let parsed = RedisConfig::parse(&redis.url).map_err(|error| wrong(&error))?.with_connections(connections);
        let beside = (redis.username.as_deref(), redis.password.as_deref(), redis.database);
        let parsed = parsed.with_settings(beside.0, beside.1, beside.2).map_err(|error| wrong(&error))?;
        let parsed = certificates(redis, parsed.with_wait_replicas(config.l1_wait_replicas))?;
        Ok(Arc::new(RedisCache::new(&parsed).map_err(|error| wrong(&error))?))
    }
    #[cfg(not(feature = "redis"))]
    {
        let _ = redis;
        Err(StartError::Config("redis.url: this binary was built without Redis (feature redis)".to_owned()))
    }
}

#[cfg(feature = "redis")]
fn certificates(
    redis: &crate::config::Redis,
    parsed: crate::cache::redis::RedisConfig,
) -> Result<crate::cache::redis::RedisConfig, StartError> {
    let read = |key: &str, path: &std::path::Path, what: &str| {
        let wrong = |why: String| StartError::Config(format!("{key}: {} {why}", path.display()));
        let pem = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        match String::from_utf8_lossy(&pem).contains(what) {
            true => Ok(pem),
            false => Err(wrong(format!("holds no {what} in PEM"))),
        }
    };
    const CERTIFICATE: &str = "BEGIN CERTIFICATE";
    let ca = redis.ca_file.as_ref().map(|path| read("redis.ca_file", path, CERTIFICATE)).transpose()?;
    let own = match &redis.client_files {
        Some((certificate, key)) => Some((
            read("redis.client_cert_file", certificate, CERTIFICATE)?,
            read("redis.client_key_file", key, "PRIVATE KEY")?,
        )),
        None => None,
    };
    if ca.is_none() && own.is_none() {
        return Ok(parsed);
    }
    let key = if ca.is_some() { "redis.ca_file" } else { "redis.client_cert_file" };
    parsed.with_certificates(ca, own).map_err(|error| StartError::Config(format!("{key}: {error}")))
}

fn store(config: &Config, rules: WriteRules, clock: &Clock) -> Result<Arc<dyn Store>, StartError> {
    let Some(mongodb) = &config.mongodb else {
        let store = EmbeddedStore::open(&config.data_dir, config.l2_cache as u64, rules, clock.clone());
        return Ok(Arc::new(store.map_err(|error| StartError::Machine(format!("data_dir: {error}")))?));
    };
    #[cfg(feature = "mongodb")]
    {
        use crate::store::mongodb::{MongoConfig, MongoStore, choose_database, warnings};
        let wrong = |error: &dyn std::fmt::Display| StartError::Config(format!("mongodb.uri: {error}"));
        let database = choose_database(&mongodb.uri, mongodb.database.as_deref(), &mongodb.default_database);
        let database = database.map_err(|error| wrong(&error))?;
        let pool = (mongodb.max_pool_size.value, mongodb.max_pool_size.is_set);
        let connecting = (mongodb.max_connecting.value, mongodb.max_connecting.is_set);
        let timeout = (mongodb.server_selection_timeout.value, mongodb.server_selection_timeout.is_set);
        let settings = MongoConfig::new(&mongodb.uri, &database, rules).with_settings(pool, connecting, timeout);
        let store = MongoStore::new(settings.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        for warning in warnings(&mongodb.uri).map_err(|error| wrong(&error))? {
            tracing::warn!("mongodb.uri: {warning}");
        }
        Ok(Arc::new(store))
    }
    #[cfg(not(feature = "mongodb"))]
    {
        let _ = mongodb;
        Err(StartError::Config("mongodb.uri: this binary was built without MongoDB (feature mongodb)".to_owned()))
    }
}

#[cfg(all(test, feature = "mongodb"))]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn open(uri: &str, settings: &[(&str, &str)]) -> Result<(Config, Arc<dyn Store>), String> {
        let settings = settings.iter().copied().chain([("MONGO_URI", uri)]);
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (config, _) = Config::load(&Flags::default(), settings).unwrap();
        let store = store(&config, rules(&config), &Clock::system()).map_err(|error| error.to_string())?;
        Ok((config, store))
    }

    #[tokio::test]
    async fn reads_of_l2_leave_a_quarter_of_the_pool_whichever_place_names_its_size() {
        const SIZE: &str = "FEATURESTORE_MONGODB_MAX_POOL_SIZE";
        for (options, settings, reads) in [
            ("", &[][..], 48),
            ("maxPoolSize=8", &[], 6),
            ("", &[(SIZE, "8")], 6),
            ("maxPoolSize=8", &[(SIZE, "8")], 6),
            ("maxPoolSize=1", &[], 1),
            ("maxPoolSize=8", &[("FEATURESTORE_L2_MAX_READS", "5")], 5),
        ] {
            let (config, store) = open(&format!("mongodb://h/?{options}"), settings).unwrap();
            assert_eq!(max_l2_reads(&config, &*store), reads, "{options} {settings:?}");
        }
        let told = open("mongodb://h/?maxPoolSize=8", &[(SIZE, "64")]).err().unwrap();
        assert!(told.contains("maxPoolSize=8") && told.contains("mongodb.max_pool_size says 64"), "{told}");
    }
}
