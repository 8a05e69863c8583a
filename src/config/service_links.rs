//! The variables that Kubernetes sets for each Service of a namespace. A Service named
//! featurestore-redis gives FEATURESTORE_REDIS_PORT=tcp://10.96.0.12:6379, which is also the name
//! of a setting. So these variables are recognized by their form.

use std::net::{IpAddr, SocketAddr};

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether a variable is one of the eight that Kubernetes sets for a Service, by name and value.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    let is_port = || value.parse::<u16>().is_ok();
    let is_address = |address: &str| address.parse::<IpAddr>().is_ok();
    if name.ends_with("_SERVICE_HOST") {
        return is_address(value);
    }
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return is_port();
    }
    // NAME_PORT, NAME_PORT_6379_TCP, and the three parts of the latter.
    if name.ends_with("_PORT") && is_url(value) {
        return true;
    }
    let parts = ["_PROTO", "_PORT", "_ADDR"].into_iter().find_map(|part| Some((name.strip_suffix(part)?, part)));
    match parts.filter(|(name, _)| is_of_a_port(name)) {
        Some((_, "_PROTO")) => PROTOCOLS.iter().any(|protocol| value.eq_ignore_ascii_case(protocol)),
        Some((_, "_PORT")) => is_port(),
        Some(_) => is_address(value),
        None => is_of_a_port(name) && is_url(value),
    }
}

/// NAME_PORT_6379_TCP.
fn is_of_a_port(name: &str) -> bool {
    let Some((rest, protocol)) = name.rsplit_once('_') else { return false };
    let Some((rest, port)) = rest.rsplit_once('_') else { return false };
    PROTOCOLS.contains(&protocol) && port.parse::<u16>().is_ok() && rest.ends_with("_PORT")
}

/// tcp://10.96.0.12:6379
fn is_url(value: &str) -> bool {
    value.split_once("://").is_some_and(|(protocol, address)| {
        PROTOCOLS.iter().any(|known| protocol.eq_ignore_ascii_case(known)) && address.parse::<SocketAddr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_known_by_name_and_value() {
        for (name, value) in [
            ("X_SERVICE_HOST", "10.96.0.12"),
            ("X_SERVICE_HOST", "fd00::12"),
            ("X_SERVICE_PORT", "6379"),
            ("X_SERVICE_PORT_REDIS_TLS", "6379"),
            ("X_PORT", "tcp://10.96.0.12:6379"),
            ("X_PORT", "udp://[fd00::12]:53"),
            ("X_PORT_6379_TCP", "tcp://10.96.0.12:6379"),
            ("X_PORT_6379_TCP_PROTO", "tcp"),
            ("X_PORT_6379_TCP_PORT", "6379"),
            ("X_PORT_6379_TCP_ADDR", "10.96.0.12"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("X_PORT", "6379"),
            ("X_PORT", "redis://10.96.0.12:6379"),
            ("X_PORT", "tcp://redis:6379"),
            ("X_SERVICE_HOST", "redis"),
            ("X_SERVICE_PORT", "tcp://10.96.0.12:6379"),
            ("X_PORT_A_TCP", "tcp://10.96.0.12:6379"),
            ("X_PORT_6379_TCP_ADDR", "soon"),
            ("X_ADDR", "10.96.0.12"),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }
}
