//! The sources of settings. Each becomes texts by key, and a later source wins.
//!
//! Blanks and line ends around a value are ignored in every source: Secrets that were made with
//! `echo` end with a line end. A control character inside is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::service_links::is_service_link;

/// The commented default file: the reference, and the source that every other one wins over.
pub const DEFAULTS: &str = include_str!("default.toml");

/// Keys without a default, which the default file shows in comments.
pub(super) const OPTIONAL: [&str; 12] = [
    "auth.tokens_file",
    "redis.url",
    "redis.host",
    "redis.username",
    "redis.password",
    "redis.ca_file",
    "redis.client_cert_file",
    "redis.client_key_file",
    "mongodb.uri",
    "tls.cert_file",
    "tls.key_file",
    "tls.client_ca_file",
];

/// Keys that are or may contain secrets: they are never shown, and never taken from the command
/// line.
const SECRET: [&str; 3] = ["redis.url", "redis.password", "mongodb.uri"];

/// Names that deployments of Redis and MongoDB already use.
const ALIASES: [(&str, &str); 10] = [
    ("REDIS_URL", "redis.url"),
    ("REDIS_HOST", "redis.host"),
    ("REDIS_PORT", "redis.port"),
    ("REDIS_DB", "redis.db"),
    ("REDIS_USERNAME", "redis.username"),
    ("REDIS_PASSWORD", "redis.password"),
    ("REDIS_TTL", "l1.ttl"),
    ("MONGO_URI", "mongodb.uri"),
    ("MONGO_DB", "mongodb.database"),
    ("RUST_LOG", "log.filter"),
];

/// The flags. clap prints these comments as help.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// A TOML file with any of the keys that `featurestore config --defaults` shows
    #[arg(long, global = true, value_name = "FILE", env = "FEATURESTORE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The address of the gRPC port [default: 127.0.0.1:50051]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The address of the admin port: /livez, /readyz, /metrics and grpc.health.v1 in plaintext
    /// [default: 127.0.0.1:9464]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub admin_listen: Option<String>,
    /// The folder of the embedded store [default: ./data]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub data_dir: Option<String>,
    /// Allow addresses beyond loopback without TLS and tokens, where anybody can read and write
    #[arg(long, global = true)]
    pub insecure_bind: bool,
    /// Serve gRPC over TLS with this certificate and its chain (PEM); needs --tls-key-file
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_cert_file: Option<String>,
    /// The key of that certificate (PEM)
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_key_file: Option<String>,
    /// Serve only clients whose certificate one of these CAs signed (PEM)
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_client_ca_file: Option<String>,
    /// Set any other key, as in --set limits.max_entities=500; repeatable
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Values as texts, by key.
pub(super) type Settings = BTreeMap<String, Setting>;

/// A value and where it comes from, for error messages.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) text: String,
    pub(super) source: String,
}

/// Whether the value of a key must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    SECRET.contains(&key)
}

pub(super) const THE_DEFAULTS: &str = "the defaults";

pub(super) struct Gathered {
    pub(super) settings: Settings,
    pub(super) defaults: Settings,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Settings that are not used, for a good reason.
    pub(super) notices: Vec<String>,
}

pub(super) fn gather(flags: &Flags, environment: impl IntoIterator<Item = (String, String)>) -> Gathered {
    let mut errors = Vec::new();
    let mut defaults = from_toml(DEFAULTS, THE_DEFAULTS, &mut errors);
    // A section whose keys are all optional is empty there, and not a key.
    defaults.retain(|key, _| !OPTIONAL.iter().any(|optional| is_within(optional, key)));
    let mut settings = defaults.clone();
    let known: Vec<String> = settings.keys().cloned().chain(OPTIONAL.map(str::to_owned)).collect();
    // It may also come from the environment, with blanks around it.
    let config =
        flags.config.as_ref().map(|path| path.to_str().map_or_else(|| path.clone(), |path| trimmed(path).into()));
    if let Some(path) = config {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let file = from_toml(&text, &path.display().to_string(), &mut errors);
                settings.extend(only_known(file, &known, &mut errors));
            }
            Err(error) => errors.push(format!("--config: {} cannot be read: {error}", path.display())),
        }
    }
    let mut unknown = Unknown::default();
    settings.extend(from_environment(environment, &known, &mut errors, &mut unknown));
    let flags = from_flags(flags, &mut errors);
    settings.extend(only_known(flags, &known, &mut errors));
    for (key, Setting { text, source }) in &settings {
        if text.chars().any(char::is_control) {
            // The value is not shown: it may be a secret.
            errors.push(format!("{key}: must not hold a control character such as a line end (in {source})"));
        }
    }
    let (warnings, notices) = unknown.report();
    Gathered { settings, defaults, errors, warnings, notices }
}

/// A text without the blanks and line ends around it, and without the byte order mark that some
/// editors write.
fn trimmed(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
}

/// Variables that are not settings, although their names look like it.
#[derive(Default)]
struct Unknown {
    misspelt: BTreeSet<String>,
    others: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Unknown {
    fn note(&mut self, name: &str) {
        const NOT_SETTINGS: [&str; 2] = ["TEST_", "BUILD_"];
        match name.strip_prefix("FEATURESTORE_") {
            Some("CONFIG") => {}
            Some(rest) if NOT_SETTINGS.iter().any(|prefix| rest.starts_with(prefix)) => {}
            Some(_) => _ = self.misspelt.insert(name.to_owned()),
            None if ["REDIS_", "MONGO_", "MONGODB_"].iter().any(|prefix| name.starts_with(prefix)) => {
                self.others.insert(name.to_owned());
            }
            None => {}
        }
    }

    fn report(self) -> (Vec<String>, Vec<String>) {
        let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
        let misspelt = |name: String| {
            format!("{name} is not a setting of this server and has no effect; see `featurestore config --defaults`")
        };
        let mut warnings: Vec<String> = self.misspelt.into_iter().map(misspelt).collect();
        if !self.others.is_empty() {
            let names = list(self.others);
            warnings.push(format!(
                "these variables are not settings of this server and have no effect: {names}; see `featurestore config \
                 --defaults`"
            ));
        }
        let links = (!self.links.is_empty())
            .then(|| format!("these variables are service links of Kubernetes, and are ignored: {}", list(self.links)));
        (warnings, links.into_iter().collect())
    }
}

fn only_known(settings: Settings, known: &[String], errors: &mut Vec<String>) -> Settings {
    let is_known = |key: &String, setting: &Setting, errors: &mut Vec<String>| {
        let is_known = known.contains(key);
        if !is_known {
            errors.push(format!(
                "{key}: there is no such key (in {}); see `featurestore config --defaults`",
                setting.source
            ));
        }
        is_known
    };
    let is_empty_section =
        |key: &String, setting: &Setting| setting.text.is_empty() && known.iter().any(|known| is_within(known, key));
    let settings = settings.into_iter().filter(|(key, setting)| !is_empty_section(key, setting));
    settings.filter(|(key, setting)| is_known(key, setting, errors)).collect()
}

fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn from_toml(text: &str, source: &str, errors: &mut Vec<String>) -> Settings {
    let mut settings = Settings::new();
    match text.parse::<toml::Table>() {
        Ok(table) => flatten("", table, source, &mut settings),
        Err(error) => errors.push(format!("{source}: {}", syntax_error(text, &error))),
    }
    settings
}

/// The place and the reason, without the line itself, which may contain a secret.
fn syntax_error(text: &str, error: &toml::de::Error) -> String {
    let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message().replace('\n', ", "))
}

fn flatten(prefix: &str, table: toml::Table, source: &str, settings: &mut Settings) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(table) if !table.is_empty() => flatten(&key, table, source, settings),
            // Its key must be a known section too.
            toml::Value::Table(_) => {
                settings.insert(key, Setting { text: String::new(), source: source.to_owned() });
            }
            toml::Value::String(text) => {
                let text = trimmed(&text).to_owned();
                settings.insert(key, Setting { text, source: source.to_owned() });
            }
            other => {
                settings.insert(key, Setting { text: other.to_string(), source: source.to_owned() });
            }
        }
    }
}

fn from_environment(
    environment: impl IntoIterator<Item = (String, String)>,
    known: &[String],
    errors: &mut Vec<String>,
    unknown: &mut Unknown,
) -> Settings {
    let own = |key: &String| (format!("FEATURESTORE_{}", key.replace('.', "_").to_uppercase()), key.clone());
    let mut names: BTreeMap<String, String> = ALIASES.map(|(name, key)| (name.to_owned(), key.to_owned())).into();
    names.extend(known.iter().map(own));
    let mut settings = Settings::new();
    let mut given: Vec<(String, String)> = environment.into_iter().collect();
    // Our own names come after the general ones, so that they win.
    given.sort_by_key(|(name, _)| (name.starts_with("FEATURESTORE_"), name.clone()));
    for (name, text) in given {
        let text = trimmed(&text).to_owned();
        if is_service_link(&name, &text) {
            if name.starts_with("FEATURESTORE_") || names.contains_key(&name) {
                unknown.links.insert(name);
            }
            continue;
        }
        let (key, text) = match (names.get(&name), name.strip_suffix("_FILE").and_then(|name| names.get(name))) {
            (Some(key), _) => (key, text),
            (None, Some(key)) if is_secret(key) => match std::fs::read_to_string(&text) {
                Ok(secret) => (key, trimmed(&secret).to_owned()),
                Err(error) => {
                    errors.push(format!("{key}: {name} names the file {text}, which cannot be read: {error}"));
                    continue;
                }
            },
            _ => {
                unknown.note(&name);
                continue;
            }
        };
        let text = match name.as_str() {
            "REDIS_TTL" if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("{text}s"),
            "REDIS_TTL" => {
                errors.push(format!(
                    "{key}: {text:?} is not a number of whole seconds, for example 300 (in the environment, {name})"
                ));
                continue;
            }
            _ => text,
        };
        settings.insert(key.clone(), Setting { text, source: format!("the environment, {name}") });
    }
    settings
}

fn from_flags(flags: &Flags, errors: &mut Vec<String>) -> Settings {
    let mut settings = Settings::new();
    let named = [
        ("listen", &flags.listen),
        ("admin_listen", &flags.admin_listen),
        ("data_dir", &flags.data_dir),
        ("tls.cert_file", &flags.tls_cert_file),
        ("tls.key_file", &flags.tls_key_file),
        ("tls.client_ca_file", &flags.tls_client_ca_file),
    ];
    for (key, text) in named {
        if let Some(text) = text {
            let source = format!("--{}", key.replace(['_', '.'], "-"));
            settings.insert(key.to_owned(), Setting { text: trimmed(text).to_owned(), source });
        }
    }
    if flags.insecure_bind {
        settings.insert("insecure_bind".to_owned(), Setting { text: "true".to_owned(), source: "a flag".to_owned() });
    }
    for set in &flags.set {
        match set.split_once('=') {
            Some((key, _)) if is_secret(trimmed(key)) => {
                let names: Vec<&str> =
                    ALIASES.iter().filter(|(_, of)| *of == trimmed(key)).map(|(name, _)| *name).collect();
                errors.push(format!(
                    "{key}: a secret must not be on the command line, where every process can read it: use {0} or \
                     {0}_FILE",
                    names.join(", ")
                ));
            }
            Some((key, text)) => {
                let text = trimmed(text).to_owned();
                settings.insert(trimmed(key).to_owned(), Setting { text, source: "--set".to_owned() });
            }
            None => errors.push("--set: must be KEY=VALUE, for example --set limits.max_entities=500".to_owned()),
        }
    }
    settings
}
