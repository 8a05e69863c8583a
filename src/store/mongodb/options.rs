//! Checks the options of a connection string at the start: what the driver would reject at its
//! first use, what would have no effect, and which database it names.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use mongodb::options::{
    Acknowledgment, AuthMechanism, ConnectionString, HostInfo, ReadConcernLevel, ReadPreference, Tls, TlsOptions,
};

use super::{
    MongoConfig,
    address::{self, InvalidUri},
};

/// The limit of the driver.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(500);
/// The limit of the server.
const LONGEST_APP_NAME: usize = 128;
/// The limit of the settings.
const LARGEST_POOL: u32 = 10_000;
const MOST_CONNECTING: u32 = 1000;
const SELECTION_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// MongoDB's own databases. `local` is not even replicated.
const OWN_DATABASES: [&str; 3] = ["admin", "config", "local"];

/// The value of a setting, and whether it was set explicitly.
pub(super) type Beside<T> = (T, bool);

impl MongoConfig {
    /// With the settings beside the URI: the size of the pool, connections opened at a time, and
    /// how long an operation waits for a primary. Options of the URI have priority. If both are set
    /// and differ, it is unclear which one is meant, so that is rejected.
    pub fn with_settings(
        self,
        max_pool: Beside<u32>,
        max_connecting: Beside<u32>,
        server_selection_timeout: Beside<Duration>,
    ) -> Result<Self, InvalidUri> {
        let uri = address::parse(&self.uri)?;
        let millis = |of: &Duration| of.as_millis().to_string();
        let timeout = uri.server_selection_timeout;
        let timeout_key = ["serverSelectionTimeoutMS", "mongodb.server_selection_timeout"];
        Ok(Self {
            max_pool: agreed(["maxPoolSize", "mongodb.max_pool_size"], uri.max_pool_size, max_pool, u32::to_string)?,
            max_connecting: agreed(
                ["maxConnecting", "mongodb.max_connecting"],
                uri.max_connecting,
                max_connecting,
                u32::to_string,
            )?,
            server_selection_timeout: agreed(timeout_key, timeout, server_selection_timeout, millis)?,
            ..self
        })
    }
}

/// The value from an option of the URI or a setting. They must not differ.
fn agreed<T: PartialEq>(
    [option, key]: [&str; 2],
    own: Option<T>,
    (beside, is_set): Beside<T>,
    shown: impl Fn(&T) -> String,
) -> Result<T, InvalidUri> {
    match own {
        Some(own) if is_set && own != beside => Err(InvalidUri::new(format!(
            "it has {option}={}, and {key} says {}: leave one of them out",
            shown(&own),
            shown(&beside)
        ))),
        Some(own) => Ok(own),
        None => Ok(beside),
    }
}

/// Dangerous options, with one warning each.
pub fn warnings(uri: &str) -> Result<Vec<String>, InvalidUri> {
    let uri = address::parse(uri)?;
    let is_blind = tls(&uri).is_some_and(|tls| tls.allow_invalid_certificates == Some(true));
    let warning = "tlsInsecure or tlsAllowInvalidCertificates is true, so any certificate is accepted as MongoDB's: \
                   anyone between can read and change everything, and learns the password; name the CA with tlsCAFile";
    Ok(is_blind.then(|| warning.to_owned()).into_iter().collect())
}

/// Rejects options that cannot work or would have no effect. `max_pool` is the size of the pool if
/// the URI has none.
pub(super) fn check(uri: &ConnectionString, max_pool: u32) -> Result<(), InvalidUri> {
    let wrong = impossible(uri, max_pool).or_else(|| contradicting(uri)).map(str::to_owned).or_else(|| files(uri));
    wrong.map_or(Ok(()), |why| Err(InvalidUri::new(why)))
}

/// What the driver or the server would reject at its first use, or would never end.
fn impossible(uri: &ConnectionString, max_pool: u32) -> Option<&'static str> {
    let has_many_hosts = matches!(&uri.host_info, HostInfo::HostIdentifiers(hosts) if hosts.len() > 1);
    let (is_direct, is_balanced) = (uri.direct_connection == Some(true), uri.load_balanced == Some(true));
    let is_x509 = uri.credential.as_ref().is_some_and(|of| of.mechanism == Some(AuthMechanism::MongoDbX509));
    let has_certificate = tls(uri).is_some_and(|tls| tls.cert_key_file_path.is_some());
    let max_pool = uri.max_pool_size.unwrap_or(max_pool);
    let is_cr = uri.credential.as_ref().is_some_and(|of| of.mechanism == Some(AuthMechanism::MongoDbCr));
    let rules = [
        (is_direct && has_many_hosts, "directConnection=true needs exactly one host"),
        (is_balanced && has_many_hosts, "loadBalanced=true needs exactly one host"),
        (is_balanced && is_direct, "loadBalanced=true and directConnection=true exclude each other"),
        (is_balanced && uri.replica_set.is_some(), "loadBalanced=true and replicaSet exclude each other"),
        (uri.replica_set.as_deref() == Some(""), "replicaSet is empty: name the set, or leave it out"),
        (uri.max_pool_size == Some(0), "maxPoolSize=0 (no limit) is not possible: set a number"),
        (uri.max_pool_size.is_some_and(|max| max > LARGEST_POOL), "maxPoolSize may be 10000 at most"),
        (
            uri.max_connecting.is_some_and(|max| !(1..=MOST_CONNECTING).contains(&max)),
            "maxConnecting must be from 1 to 1000",
        ),
        (
            uri.min_pool_size.is_some_and(|min| min > max_pool),
            "minPoolSize must not be above maxPoolSize, which is mongodb.max_pool_size where the URI has none",
        ),
        (
            uri.heartbeat_frequency.is_some_and(|of| of < SHORTEST_HEARTBEAT),
            "heartbeatFrequencyMS must be at least 500",
        ),
        (
            uri.server_selection_timeout.is_some_and(|of| !SELECTION_TIMEOUTS.contains(&of)),
            "serverSelectionTimeoutMS must be from 10 to 60000",
        ),
        (uri.connect_timeout.is_some_and(|of| of.is_zero()), "connectTimeoutMS=0 (no limit) is not possible"),
        (uri.app_name.as_ref().is_some_and(|of| of.len() > LONGEST_APP_NAME), "appName may have 128 bytes at most"),
        (
            lacks_password(uri),
            "it has a user and no password: with its authMechanism nobody can log in without one; give it as \
             mongodb://user:password@host, or leave the user out",
        ),
        (is_cr, "authMechanism=MONGODB-CR is no longer supported by MongoDB: leave it out"),
        (is_x509 && !has_certificate, "authMechanism=MONGODB-X509 needs tls=true and tlsCertificateKeyFile"),
    ];
    rules.into_iter().find_map(|(is_wrong, why)| is_wrong.then_some(why))
}

/// Whether a user needs a password and has none. An empty one counts as none.
fn lacks_password(uri: &ConnectionString) -> bool {
    let needs_one = |mechanism: Option<&AuthMechanism>| match mechanism {
        None => true,
        Some(mechanism) => matches!(
            mechanism,
            AuthMechanism::ScramSha1 | AuthMechanism::ScramSha256 | AuthMechanism::Plain | AuthMechanism::MongoDbCr
        ),
    };
    uri.credential.as_ref().is_some_and(|of| {
        of.username.is_some() && of.password.as_deref().unwrap_or("").is_empty() && needs_one(of.mechanism.as_ref())
    })
}

/// Options that ask for another behaviour than the fixed one.
fn contradicting(uri: &ConnectionString) -> Option<&'static str> {
    let concern = uri.write_concern.as_ref();
    let w = concern.and_then(|concern| concern.w.as_ref());
    let level = uri.read_concern.as_ref().map(|concern| &concern.level);
    let is_primary = uri.read_preference.as_ref().is_none_or(|of| matches!(of, ReadPreference::Primary));
    #[allow(deprecated, reason = "the driver parses it, and does nothing with it")]
    let has_socket_timeout = uri.socket_timeout.is_some();
    let rules = [
        (
            w.is_some_and(|w| *w != Acknowledgment::Majority),
            "w must be majority or left out: every write waits for a majority",
        ),
        (
            concern.is_some_and(|of| of.journal == Some(false)),
            "journal must be true or left out: every write is journaled",
        ),
        (concern.is_some_and(|of| of.w_timeout.is_some()), "wtimeoutMS has no effect: deadlines.write bounds writes"),
        (!is_primary, "readPreference must be primary or left out: every read goes to the primary"),
        (
            level.is_some_and(|of| *of != ReadConcernLevel::Majority),
            "readConcernLevel must be majority or left out: every read sees what a majority has, and strong reads are \
             linearizable besides",
        ),
        (has_socket_timeout, "socketTimeoutMS has no effect: deadlines.* bound operations"),
        (uri.wait_queue_timeout().is_some(), "waitQueueTimeoutMS has no effect: deadlines.* bound operations"),
    ];
    rules.into_iter().find_map(|(is_wrong, why)| is_wrong.then_some(why))
}

fn tls(uri: &ConnectionString) -> Option<&TlsOptions> {
    match &uri.tls {
        Some(Tls::Enabled(options)) => Some(options),
        _ => None,
    }
}

/// Files that the driver would read at its first use.
fn files(uri: &ConnectionString) -> Option<String> {
    let tls = tls(uri)?;
    let wrong = |option: &str, path: &Path, wanted: &[&str]| match std::fs::read(path) {
        Err(error) => Some(format!("{option}: {} cannot be read: {error}", path.display())),
        Ok(pem) => {
            let pem = String::from_utf8_lossy(&pem);
            let missing = wanted.iter().find(|wanted| !pem.contains(**wanted))?;
            Some(format!("{option}: {} has no {missing} in PEM", path.display()))
        }
    };
    let ca = tls.ca_file_path.as_ref().and_then(|path| wrong("tlsCAFile", path, &["CERTIFICATE"]));
    let own = tls.cert_key_file_path.as_ref();
    ca.or_else(|| own.and_then(|path| wrong("tlsCertificateKeyFile", path, &["CERTIFICATE", "PRIVATE KEY"])))
}

/// The database: that of the setting, else that of the URI's path, else the default. A path that
/// differs from the setting is allowed only if it is used for the login.
pub fn choose_database(uri: &str, configured: Option<&str>, default: &str) -> Result<String, InvalidUri> {
    let parsed = address::parse(uri)?;
    let options = uri.rsplit_once('?').map_or("", |(_, options)| options).to_lowercase();
    let is_source_named = options.split('&').any(|option| option.starts_with("authsource="));
    // MongoDB's tools use the path of a URI with a user also as the database that knows the user.
    let is_for_login = parsed.credential.is_some() && !is_source_named;
    let database = match (parsed.default_database.as_deref().filter(|path| !path.is_empty()), configured) {
        (None, configured) => configured.unwrap_or(default),
        (Some(path), Some(configured)) if path == configured || is_for_login => configured,
        (Some(path), Some(configured)) => {
            return Err(InvalidUri::new(format!(
                "its path names the database {path:?}, and mongodb.database (MONGO_DB) is {configured:?}: leave one of \
                 them out"
            )));
        }
        (Some("admin"), None) if is_for_login => default,
        (Some(path), None) => path,
    };
    if OWN_DATABASES.contains(&database) {
        return Err(InvalidUri::new(format!(
            "the database must not be {database}: it is MongoDB's own{}; name another in its path or in mongodb.database \
             (MONGO_DB)",
            if database == "local" { ", and is not replicated" } else { "" }
        )));
    }
    if database.len() > 63 || database.contains(['/', '\\', '.', ' ', '"', '$', '\0']) {
        return Err(InvalidUri::new(
            "the database in its path may have 63 bytes and no space, /, \\, ., \" or $".to_owned(),
        ));
    }
    Ok(database.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(uri: &str) -> String {
        let checked = address::parse(uri).and_then(|uri| check(&uri, 64));
        checked.map_or_else(|error| error.to_string(), |()| "taken".to_owned())
    }

    #[test]
    fn options_that_cannot_work_are_refused_by_name() {
        for (options, name) in [
            ("directConnection=true", "directConnection"),
            ("loadBalanced=true", "loadBalanced"),
            ("replicaSet=", "replicaSet"),
            ("maxPoolSize=0", "maxPoolSize"),
            ("maxPoolSize=10001", "maxPoolSize"),
            ("maxPoolSize=3&minPoolSize=4", "minPoolSize"),
            ("minPoolSize=65", "minPoolSize"),
            ("maxConnecting=0", "maxConnecting"),
            ("maxConnecting=1001", "maxConnecting"),
            ("heartbeatFrequencyMS=499", "heartbeatFrequencyMS"),
            ("serverSelectionTimeoutMS=0", "serverSelectionTimeoutMS"),
            ("serverSelectionTimeoutMS=9", "serverSelectionTimeoutMS"),
            ("serverSelectionTimeoutMS=60001", "serverSelectionTimeoutMS"),
            ("connectTimeoutMS=0", "connectTimeoutMS"),
            ("w=1", "w must"),
            ("w=0", "w must"),
            ("journal=false", "journal"),
            ("wtimeoutMS=5", "wtimeoutMS"),
            ("readPreference=secondary", "readPreference"),
            ("readPreference=nearest&maxStalenessSeconds=90", "readPreference"),
            ("readConcernLevel=local", "readConcernLevel"),
            ("readConcernLevel=available", "readConcernLevel"),
            ("readConcernLevel=linearizable", "readConcernLevel"),
            ("readConcernLevel=snapshot", "readConcernLevel"),
            ("socketTimeoutMS=5", "socketTimeoutMS"),
            ("waitQueueTimeoutMS=5", "waitQueueTimeoutMS"),
            ("tlsCAFile=/nowhere/ca.pem", "/nowhere/ca.pem"),
            ("tlsCAFile=/dev/null", "no CERTIFICATE"),
            ("tlsCertificateKeyFile=/nowhere/own.pem", "/nowhere/own.pem"),
        ] {
            let told = refused(&format!("mongodb://a,b/?{options}"));
            assert!(told.contains(name), "{options}: {told}");
        }
        for (options, name) in [
            ("loadBalanced=true&directConnection=true", "exclude each other"),
            ("loadBalanced=true&replicaSet=rs0", "exclude each other"),
            ("authMechanism=MONGODB-X509&tls=true", "tlsCertificateKeyFile"),
        ] {
            let told = refused(&format!("mongodb://a/?{options}"));
            assert!(told.contains(name), "{options}: {told}");
        }
        let name = refused(&format!("mongodb://a/?appName={}", "x".repeat(129)));
        assert!(name.contains("appName"), "{name}");
        for options in [
            "replicaSet=rs0&retryWrites=true&w=majority&journal=true&readPreference=primary&readConcernLevel=majority",
            "maxPoolSize=5&minPoolSize=5&maxConnecting=1&heartbeatFrequencyMS=500&serverSelectionTimeoutMS=10&appName=x",
            "tls=true&connectTimeoutMS=100&retryReads=false&localThresholdMS=5&maxIdleTimeMS=5",
            "minPoolSize=64",
            "maxPoolSize=65&minPoolSize=65",
        ] {
            assert_eq!(refused(&format!("mongodb://a,b/?{options}")), "taken", "{options}");
        }
        assert_eq!(refused("mongodb://a/?directConnection=true"), "taken");
    }

    #[test]
    fn a_user_has_a_password_or_a_mechanism_that_needs_none() {
        for uri in [
            "mongodb://canary@h/",
            "mongodb://canary:@h/",
            "mongodb://canary@h/?authMechanism=SCRAM-SHA-256",
            "mongodb://canary@h/?authMechanism=PLAIN",
        ] {
            let told = refused(uri);
            assert!(told.to_lowercase().contains("no password") && !told.contains("canary"), "{uri}: {told}");
        }
        assert!(refused("mongodb://u:p@h/?authMechanism=MONGODB-CR").contains("MONGODB-CR"));
        assert_eq!(refused("mongodb://u:p@h/"), "taken");
        let x509 = refused("mongodb://u@h/?authMechanism=MONGODB-X509&tls=true");
        assert!(x509.contains("tlsCertificateKeyFile"), "{x509}");
    }

    #[test]
    fn what_the_uri_and_the_settings_beside_it_say_is_the_same_or_refused() {
        let rules = crate::store::WriteRules {
            default_ttl: Duration::from_secs(1),
            tombstone_ttl: Duration::from_secs(1),
            max_features: 1,
            max_record_bytes: 1,
        };
        let with = |options: &str, is_set: bool| {
            let config = MongoConfig::new(format!("mongodb://u:canary@h/?{options}"), "db", rules.clone());
            config.with_settings((64, is_set), (8, is_set), (Duration::from_secs(2), is_set)).map_err(|e| e.to_string())
        };
        let said = |options, is_set| {
            with(options, is_set)
                .map(|config| (config.max_pool, config.max_connecting, config.server_selection_timeout.as_millis()))
        };
        let all = "maxPoolSize=20&maxConnecting=3&serverSelectionTimeoutMS=500";
        assert_eq!(said("", false), Ok((64, 8, 2000)));
        assert_eq!(said(all, false), Ok((20, 3, 500)));
        assert_eq!(said("maxPoolSize=64&maxConnecting=8&serverSelectionTimeoutMS=2000", true), Ok((64, 8, 2000)));
        for (option, key) in [
            ("maxPoolSize=20", "mongodb.max_pool_size says 64"),
            ("maxConnecting=3", "mongodb.max_connecting says 8"),
            ("serverSelectionTimeoutMS=500", "mongodb.server_selection_timeout says 2000"),
        ] {
            let told = said(option, true).unwrap_err();
            assert!(told.contains(option) && told.contains(key) && !told.contains("canary"), "{told}");
        }
    }

    #[test]
    fn a_certificate_that_nobody_looks_at_is_a_warning() {
        for (options, count) in [
            ("tls=true", 0),
            ("tls=true&tlsInsecure=false", 0),
            ("tls=true&tlsInsecure=true", 1),
            ("tls=true&tlsAllowInvalidCertificates=true", 1),
        ] {
            assert_eq!(warnings(&format!("mongodb://h/?{options}")).unwrap().len(), count, "{options}");
        }
    }

    #[test]
    fn the_database_of_the_path_is_used_or_refused() {
        let choose = |uri: &str, configured| match choose_database(uri, configured, "featurestore") {
            Ok(database) => database,
            Err(error) => format!("refused: {error}"),
        };
        assert_eq!(choose("mongodb://h", None), "featurestore");
        assert_eq!(choose("mongodb://h/", Some("risk")), "risk");
        assert_eq!(choose("mongodb://h/credit", None), "credit");
        assert_eq!(choose("mongodb://u:p@h/credit", None), "credit");
        assert_eq!(choose("mongodb://h/credit", Some("credit")), "credit");
        // This is the database that knows the user.
        assert_eq!(choose("mongodb://u:p@h/admin", None), "featurestore");
        assert_eq!(choose("mongodb://u:p@h/users", Some("risk")), "risk");
        for (uri, configured, why) in [
            ("mongodb://h/credit", Some("risk"), "leave one"),
            ("mongodb://u:p@h/credit?authSource=admin", Some("risk"), "leave one"),
            ("mongodb://h/admin", None, "MongoDB's own"),
            ("mongodb://h/local", None, "not replicated"),
            ("mongodb://h", Some("config"), "MongoDB's own"),
            ("mongodb://u:p@h/local", None, "not replicated"),
            ("mongodb://h/a.b", None, "database"),
        ] {
            let told = choose(uri, configured);
            assert!(told.starts_with("refused") && told.contains(why), "{uri} {configured:?}: {told}");
        }
    }
}
