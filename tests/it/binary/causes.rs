//! Why a backend cannot be reached, as the log says it: the cause by its name, and what to do about it.

use super::*;
use crate::harness::{
    certificates::{Certificates, text},
    mongod::{Access, Mongod},
    redis::RedisServer,
};

/// Starts a server with this setting and waits until its log says why the backend cannot be reached: the first line of that
/// kind has these words.
async fn says(setting: (&str, &str), words: &[&str]) {
    let server = Binary::start(&[setting]);
    let first = || server.log().lines().find(|line| line.contains("cannot be reached")).map(str::to_owned);
    eventually(&format!("{setting:?} not to be reached"), async || first().is_some()).await;
    assert!(words.iter().all(|word| first().unwrap().contains(word)), "{words:?}: {}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_more_connections_or_speaks_otherwise_is_named() {
    let redis = RedisServer::start_with(&["--maxclients", "1"]);
    let _only = tokio::net::TcpStream::connect(redis.address()).await.unwrap();
    says(("REDIS_URL", &redis.url()), &["maxclients is reached"]).await;

    let (certificates, tls_port) = (Certificates::new(), free_port());
    let (ca, certificate, key) = (certificates.ca(), certificates.certificate(), certificates.key());
    let port = tls_port.to_string();
    let options = ["--tls-port", &port, "--tls-ca-cert-file", text(&ca), "--tls-cert-file", text(&certificate)];
    let redis = RedisServer::start_with(&[&options[..], &["--tls-key-file", text(&key)]].concat());
    says(("REDIS_URL", &redis.url().replace("redis://", "rediss://")), &["plaintext", "not TLS", "redis://"]).await;
    let plain = format!("redis://127.0.0.1:{tls_port}");
    says(("REDIS_URL", &plain), &["TLS is spoken", "not plaintext", "rediss://"]).await;
    // Where TLS is spoken and the certificate is the trouble, that is said.
    says(("REDIS_URL", &plain.replace("redis://", "rediss://")), &["certificate"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongodb_that_speaks_otherwise_or_is_not_the_set_that_was_named_is_named() {
    let standalone = Mongod::shared_standalone();
    let uri = |port: u16, options: &str| format!("mongodb://127.0.0.1:{port}/?{options}");
    says(("MONGO_URI", &uri(standalone.port(), "tls=true")), &["speaks plaintext", "not TLS"]).await;
    says(("MONGO_URI", &uri(standalone.port(), "replicaSet=rs0")), &["no member of a replica set", "rs0"]).await;
    let set = Mongod::shared_replica_set();
    says(("MONGO_URI", &uri(set.port(), "replicaSet=other")), &["the replica set rs0", "replicaSet=other"]).await;
    let ghost = Mongod::not_initiated();
    for options in ["", "replicaSet=rs0"] {
        says(("MONGO_URI", &uri(ghost.port(), options)), &["not initiated", "rs.initiate()"]).await;
    }

    let certificates = Certificates::new();
    let (ca, certificate) = (certificates.ca(), certificates.both());
    let options = ["--tlsMode", "requireTLS", "--tlsCAFile", text(&ca), "--tlsCertificateKeyFile", text(&certificate)];
    let options = options.map(str::to_owned).into_iter().chain(["--tlsAllowConnectionsWithoutCertificates".to_owned()]);
    let access = Access { options: options.collect(), login: None, ca_file: Some(ca.clone()) };
    let mongod = Mongod::replica_set_with(access);
    says(("MONGO_URI", &uri(mongod.port(), "replicaSet=rs0")), &["TLS is spoken", "tls=true"]).await;
}
