//! Checks over several settings: contradictions, and settings that are missing or have no effect.

use super::{Config, parse::Parser};
use crate::api::CONNECTION_PART;

/// Bytes that a message needs besides its record: names, times, a request id.
const AROUND_A_RECORD: usize = 1 << 10;

pub(super) fn check(config: &Config, p: &mut Parser) {
    check_addresses(config, p);
    check_limits(config, p);
    check_times(config, p);
    check_embedded(config, p);
    if config.l1_wait_replicas > 0 && config.redis.is_none() {
        p.wrong("l1.wait_replicas", "needs an L1 in Redis (redis.url): an L1 in this process has no replicas");
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log_filter) {
        p.wrong("log.filter", format!("{:?} is not a valid filter: {error}", config.log_filter));
    }
}

/// The protections that are not configured and are needed where other machines can reach the
/// server: TLS against reading along, tokens against foreign callers.
fn missing_protection(config: &Config) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if config.tls.is_none() {
        missing.push("TLS (tls.cert_file, tls.key_file)");
    }
    if config.tokens_file.is_none() {
        missing.push("tokens (auth.tokens_file)");
    }
    missing
}

fn check_addresses(config: &Config, p: &mut Parser) {
    let insecure = p.boolean("insecure_bind");
    let missing = missing_protection(config).join(" and ");
    for (key, address) in [("listen", config.listen), ("admin_listen", config.admin_listen)] {
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
    if config.listen == config.admin_listen && config.listen.port() != 0 {
        p.wrong("admin_listen", "must not be the same address and port as listen");
    }
}

/// Settings of a tier in this process, while the tier is elsewhere.
fn check_embedded(config: &Config, p: &mut Parser) {
    if config.redis.is_some() && p.is_changed("l1.memory") {
        p.wrong(
            "l1.memory",
            "is set, but L1 is in Redis: leave it out, or leave out redis.url and redis.host (Redis has maxmemory)",
        );
    }
    if config.mongodb.is_none() {
        return;
    }
    if p.is_changed("l2.cache") {
        p.wrong("l2.cache", "is set, but L2 is in MongoDB: leave it out, or leave out mongodb.uri");
    }
    // The container image always sets it.
    if p.is_set("data_dir") {
        p.note("data_dir is not used, because L2 is in MongoDB (mongodb.uri)");
    }
}

fn check_limits(config: &Config, p: &mut Parser) {
    let limits = &config.limits;
    let largest = limits.max_request_bytes.max(limits.max_response_bytes);
    if config.max_bytes_in_flight / CONNECTION_PART < largest {
        p.wrong(
            "limits.max_bytes_in_flight",
            format!(
                "must be at least {CONNECTION_PART} times limits.max_request_bytes and limits.max_response_bytes: \
                 one connection may have 1/{CONNECTION_PART} of it"
            ),
        );
    }
    for (key, bytes) in [
        ("limits.max_request_bytes", limits.max_request_bytes),
        ("limits.max_response_bytes", limits.max_response_bytes),
    ] {
        if limits.max_record_bytes.saturating_add(AROUND_A_RECORD) > bytes {
            let why = format!("must be at least 1KiB below {key}, otherwise the largest records could not be sent");
            p.wrong("limits.max_record_bytes", why);
        }
    }
    if config.mongodb.is_some() && limits.max_record_bytes > 8 << 20 {
        p.wrong("limits.max_record_bytes", "may be 8MiB at most with MongoDB, whose documents may have 16 MiB");
    }
}

fn check_times(config: &Config, p: &mut Parser) {
    if config.l1_ttl >= config.tombstone_ttl / 2 {
        let why = "must be below half of l2.tombstone_ttl, or L1 could keep a record after L2 forgot its deletion";
        p.wrong("l1.ttl", why);
    }
    if config.default_ttl > config.limits.max_ttl {
        p.wrong("ttl.default", "must not be above limits.max_ttl");
    }
    if config.l1_slow >= config.l1_timeout {
        p.note(format_args!(
            "l1.slow ({:?}) has no effect, because it is not below l1.timeout ({:?}): no call waits that long for L1",
            config.l1_slow, config.l1_timeout
        ));
    }
}
