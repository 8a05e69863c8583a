//! Finds out why no server can be reached, if the driver only says that there is none.

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use mongodb::options::{ConnectionString, HostInfo, ServerAddress, Tls};

use crate::peer;

const DEFAULT_PORT: u16 = 27017;
/// The most hosts that are asked.
const MAX_HOSTS: usize = 3;
/// OP_QUERY, which every server answers before a login.
const QUERY: i32 = 2004;
/// The bytes before the document in its answer.
const REPLY_HEAD: usize = 36;

/// Asks the hosts of a URI. None: nothing explains the failure.
pub(super) async fn of_failure(uri: &ConnectionString) -> Option<String> {
    let HostInfo::HostIdentifiers(hosts) = &uri.host_info else { return None };
    let is_tls = matches!(uri.tls, Some(Tls::Enabled(_)));
    let asked = hosts.iter().take(MAX_HOSTS).filter_map(|host| match host {
        ServerAddress::Tcp { host, port } => Some(of_host(host, port.unwrap_or(DEFAULT_PORT), is_tls, uri)),
        _ => None,
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().next()
}

async fn of_host(host: &str, port: u16, is_tls: bool, uri: &ConnectionString) -> Option<String> {
    if is_tls && peer::speaks_tls(host, port).await {
        return None;
    }
    let Some(answer) = peer::ask(host, port, &hello()).await else {
        let is_cause = !is_tls && peer::speaks_tls(host, port).await;
        return is_cause.then(|| {
            format!(
                "TLS is spoken at {host}:{port}, not plaintext: add tls=true to mongodb.uri (and tlsCAFile for a CA of \
                 your own)"
            )
        });
    };
    if answer.starts_with(b"HTTP/") {
        return Some(format!("an HTTP server answers at {host}:{port}, not MongoDB: correct mongodb.uri"));
    }
    let server = answer.get(REPLY_HEAD..).and_then(|document| RawDocument::from_bytes(document).ok())?;
    if is_tls {
        return Some(format!(
            "MongoDB speaks plaintext at {host}:{port}, not TLS: remove tls=true from mongodb.uri, or configure TLS \
             there"
        ));
    }
    of_set(host, port, server, uri.replica_set.as_deref())
}

/// Compares what a server says of its replica set with what is wanted.
fn of_set(host: &str, port: u16, server: &RawDocument, wanted: Option<&str>) -> Option<String> {
    if server.get_bool("isreplicaset").unwrap_or(false) {
        return Some(format!(
            "the server at {host}:{port} was started as a member of a replica set, and the set was not initiated: run \
             rs.initiate() on it"
        ));
    }
    let wanted = wanted?;
    match server.get_str("setName") {
        Ok(name) if name == wanted => None,
        Ok(name) => Some(format!(
            "the server at {host}:{port} is a member of the replica set {}, and mongodb.uri asks for \
             replicaSet={wanted}",
            name.escape_debug()
        )),
        Err(_) => Some(format!(
            "the server at {host}:{port} is no member of a replica set, but mongodb.uri asks for \
             replicaSet={wanted}: remove that option, or start the server with --replSet"
        )),
    }
}

/// The oldest way to ask a server what it is.
fn hello() -> Vec<u8> {
    let command: RawDocumentBuf = rawdoc! { "isMaster": 1 };
    let body: Vec<u8> =
        [&0i32.to_le_bytes()[..], b"admin.$cmd\0", &0i32.to_le_bytes(), &(-1i32).to_le_bytes(), command.as_bytes()]
            .concat();
    let length = i32::try_from(16 + body.len()).unwrap_or(0);
    let head = [length, 1, 0, QUERY].map(i32::to_le_bytes).concat();
    [head, body].concat()
}
