//! The settings of TLS, Redis and MongoDB.

use std::{net::Ipv6Addr, path::PathBuf, time::Duration};

use super::{DAY, Mongodb, Redis, SECOND, Said, Tls, parse::Parser};

const OF_A_MONGODB: [&str; 3] = ["mongodb.max_pool_size", "mongodb.max_connecting", "mongodb.server_selection_timeout"];

pub(super) fn tls(p: &mut Parser) -> Option<Tls> {
    let reload_interval = p.duration("tls.reload_interval", Duration::from_millis(10)..=30 * DAY);
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
            if p.is_changed("tls.reload_interval") {
                let why = "is set, but there are no files to reload: set tls.cert_file and tls.key_file too";
                p.wrong("tls.reload_interval", why);
            }
            None
        }
    }
}

pub(super) fn redis(p: &mut Parser) -> Option<Redis> {
    let port = p.count("redis.port", 1..=u32::from(u16::MAX));
    let database = redis_database(p);
    let connections = p.count("redis.connections", 1..=1000);
    // Empty means "none": deployments without a password set them so, and nobody can log in with an
    // empty one.
    let (username, password) = (p.unless_empty("redis.username"), p.unless_empty("redis.password"));
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
    let (is_set, is_host_set) = (p.is_set("redis.url"), p.is_set("redis.host"));
    let url = match (p.optional("redis.url"), p.optional("redis.host")) {
        (Some(url), _) => {
            for key in ["redis.host", "redis.port"].into_iter().filter(|key| p.is_set(key)).collect::<Vec<_>>() {
                p.warn(format_args!("{key} is not used, because redis.url names the server"));
            }
            url
        }
        (None, Some(host)) => format!("redis://{}:{port}", host_of_url(p, &host)),
        (None, None) => {
            if !is_set && !is_host_set {
                refuse_without_redis(p);
            }
            return None;
        }
    };
    Some(Redis { url, username, password, database, connections, ca_file, client_files })
}

fn redis_database(p: &mut Parser) -> Option<u16> {
    let database = p.count("redis.db", 0..=u32::from(u16::MAX));
    if p.is_set("redis.db") { u16::try_from(database).ok() } else { None }
}

/// A host name or an IP address, in the form that a URL needs.
fn host_of_url(p: &mut Parser, host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() {
        return format!("[{host}]");
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = inner.map_or(!host.contains([':', '[', ']']), |inner| inner.parse::<Ipv6Addr>().is_ok());
    if !is_host || host.contains(['/', '@', '?', '#', ' ']) {
        // The value is not shown: it may be a whole URL with a password.
        p.wrong(
            "redis.host",
            "must be the name or the address of a host alone: a port belongs in redis.port, a URL in redis.url",
        );
        return "invalid".to_owned();
    }
    host.to_owned()
}

/// A setting that needs a Redis is rejected without one, because the operator who set it
/// believes that Redis is used.
fn refuse_without_redis(p: &mut Parser) {
    const OF_A_REDIS: [&str; 8] = [
        "redis.port",
        "redis.db",
        "redis.connections",
        "redis.username",
        "redis.password",
        "redis.ca_file",
        "redis.client_cert_file",
        "redis.client_key_file",
    ];
    for key in OF_A_REDIS.into_iter().filter(|key| p.is_changed(key)).collect::<Vec<_>>() {
        p.wrong(
            key,
            "is set, but the address of Redis is missing: set redis.url (REDIS_URL) or redis.host (REDIS_HOST) too",
        );
    }
}

pub(super) fn mongodb(p: &mut Parser) -> Option<Mongodb> {
    let default_database = p.text("mongodb.database");
    let database = p.is_set("mongodb.database").then(|| default_database.clone());
    let [is_pool_set, is_connecting_set, is_timeout_set] = OF_A_MONGODB.map(|key| p.is_set(key));
    let max_pool_size = p.count("mongodb.max_pool_size", 1..=10_000) as u32;
    let max_connecting = p.count("mongodb.max_connecting", 1..=1000) as u32;
    let timeouts = Duration::from_millis(10)..=60 * SECOND;
    let server_selection_timeout = p.duration("mongodb.server_selection_timeout", timeouts);
    if database.as_ref().is_some_and(|name| name.len() > 63 || name.contains(['/', '\\', '.', ' ', '"', '$', '\0'])) {
        p.wrong("mongodb.database", "may have 63 bytes and no space, /, \\, ., \" or $");
    }
    if database.as_ref().is_some_and(|name| ["admin", "config", "local"].contains(&name.as_str())) {
        p.wrong(
            "mongodb.database",
            "must not be admin, config or local: these are MongoDB's own, and local is not replicated",
        );
    }
    let is_uri_set = p.is_set("mongodb.uri");
    let Some(uri) = p.optional("mongodb.uri") else {
        for key in ["mongodb.database"].into_iter().chain(OF_A_MONGODB) {
            if !is_uri_set && p.is_changed(key) {
                p.wrong(key, "is set, but the address of MongoDB is missing: set mongodb.uri (MONGO_URI) too");
            }
        }
        return None;
    };
    Some(Mongodb {
        uri,
        database,
        default_database,
        max_pool_size: Said { value: max_pool_size, is_set: is_pool_set },
        max_connecting: Said { value: max_connecting, is_set: is_connecting_set },
        server_selection_timeout: Said { value: server_selection_timeout, is_set: is_timeout_set },
    })
}
