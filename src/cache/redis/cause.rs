//! Finds out why Redis cannot be connected to, if the library does not say it.

use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo};

use crate::peer;

/// Asks what answers at the address. None: nothing that explains the failure.
pub(super) async fn of_failure(server: &ConnectionInfo) -> Option<&'static str> {
    let (host, port, is_tls) = match server.addr() {
        ConnectionAddr::Tcp(host, port) => (host, *port, false),
        ConnectionAddr::TcpTls { host, port, .. } => (host, *port, true),
        _ => return None,
    };
    if is_tls && peer::speaks_tls(host, port).await {
        return None;
    }
    match peer::ask(host, port, b"PING\r\n").await {
        Some(answer) if answer.starts_with(b"-ERR max number of clients") => {
            Some("Redis accepts no more connections: maxclients is reached; find who opens them, or raise maxclients")
        }
        Some(answer) if answer.starts_with(b"-DENIED") => Some(
            "Redis is in protected mode and accepts connections from its own machine only: give it a password, or set \
             protected-mode no",
        ),
        Some(answer) if answer.starts_with(b"HTTP/") => {
            Some("an HTTP server answers at this address, not Redis: correct the address")
        }
        Some(answer) if is_tls && matches!(answer[0], b'+' | b'-') => Some(
            "Redis speaks plaintext there, not TLS: begin its address with redis (redis://), or name its port for TLS",
        ),
        Some(answer) if matches!(answer[0], b'+' | b'-') => None,
        _ if !is_tls && peer::speaks_tls(host, port).await => Some(
            "TLS is spoken there, not plaintext: begin the address with rediss (rediss://), or name its port for \
             plaintext",
        ),
        _ => None,
    }
}
