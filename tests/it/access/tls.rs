//! Redis and MongoDB over TLS, with a CA of one's own; and nothing else where the certificate is not to be trusted.

use std::{path::Path, time::Duration};

use featurestore::{
    app::App,
    cache::{
        Cache as _, Epoch,
        redis::{RedisCache, RedisConfig},
    },
    config::{Config, Flags},
    store::{
        Store as _,
        mongodb::{MongoConfig, MongoStore},
    },
    tiered::trust::L1Use,
};
use tokio::time::Instant;

use super::*;
use crate::{
    harness::{
        certificates::{Certificates, text},
        mongod::{Access, Mongod},
        process::free_port,
        redis::RedisServer,
    },
    store_contract::fixture,
};

/// A Redis with TLS on a second port, that asks for certificates of the same CA.
fn redis(certificates: &Certificates) -> (RedisServer, String) {
    let port = free_port().to_string();
    let (ca, certificate, key) = (certificates.ca(), certificates.certificate(), certificates.key());
    let redis = RedisServer::start_with(&[
        "--tls-port",
        &port,
        "--tls-ca-cert-file",
        text(&ca),
        "--tls-cert-file",
        text(&certificate),
        "--tls-key-file",
        text(&key),
        "--tls-auth-clients",
        "yes",
    ]);
    (redis, port)
}

fn mongod(certificates: &Certificates) -> Mongod {
    let (ca, both) = (certificates.ca(), certificates.both());
    let options = ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", text(&both), "--tlsCAFile", text(&ca)];
    let options = options.iter().chain(&["--tlsAllowConnectionsWithoutCertificates"]).map(|&option| option.to_owned());
    Mongod::replica_set_with(Access { options: options.collect(), ca_file: Some(ca), login: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tiers_work_over_tls_with_a_ca_of_ones_own_and_with_no_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let (redis, port) = redis(&certificates);
    let started = std::thread::scope(|scope| scope.spawn(|| mongod(&certificates)).join().unwrap());
    let mongod = started;
    let uri = |ca: &Path| format!("{}&tls=true&tlsCAFile={}", mongod.uri(), text(ca));
    let (ca, own, key, their_ca) = (certificates.ca(), certificates.certificate(), certificates.key(), others.ca());
    let url = format!("rediss://127.0.0.1:{port}");
    let certified = [
        ("FEATURESTORE_REDIS_CA_FILE", text(&ca)),
        ("FEATURESTORE_REDIS_CLIENT_CERT_FILE", text(&own)),
        ("FEATURESTORE_REDIS_CLIENT_KEY_FILE", text(&key)),
    ];
    let mongo_uri = uri(&ca);
    let database = mongod.settled_database();
    let pair = [("REDIS_URL", url.as_str()), ("MONGO_URI", &mongo_uri), ("MONGO_DB", &database)];
    let server = Server::start(&[&pair[..], &certified[..]].concat()).await;
    let mut client = server.client().await;
    eventually("a write to be cached", async || put(&mut client, record("a", [("n", double(1.0))])).await.cached).await;
    let read = row(&mut client, get(["a"])).await;
    assert_eq!((read.source(), read.features), (Source::L1, features([("n", double(1.0))])));
    assert_eq!(row(&mut client, strong(["a"])).await.status(), RowStatus::Found);
    let many: Vec<String> = (0..200).map(|at| format!("many-{at}")).collect();
    let (answers, _) = bulk(&mut client, [chunk(1, many.iter().map(|id| record(id, [("n", double(1.0))])))]).await;
    assert_eq!(answers[0].written, 200);
    eventually("all to be hits", async || {
        rows(&mut client, get(many.clone())).await.iter().all(|row| row.source() == Source::L1)
    })
    .await;
    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    assert!(info.l1.unwrap().address.starts_with("rediss://"));
    // MGET goes through the library here, and every command over TLS.
    assert!(redis.calls("mget") > 0);
    server.stop().await;

    // Redis: the CA of somebody else, no certificate of our own, and no TLS at all.
    let (ca_pem, their_pem) = (std::fs::read(&ca).unwrap(), std::fs::read(&their_ca).unwrap());
    let identity = || Some((std::fs::read(&own).unwrap(), std::fs::read(&key).unwrap()));
    let parsed = |url: &str| RedisConfig::parse(url).unwrap();
    for (config, told) in [
        (parsed(&url).with_certificates(Some(their_pem), identity()).unwrap(), "UnknownIssuer"),
        (parsed(&url), "UnknownIssuer"),
        (parsed(&url).with_certificates(Some(ca_pem), None).unwrap(), ""),
        (parsed(&format!("redis://127.0.0.1:{port}")), ""),
    ] {
        let cache = RedisCache::new(&config).unwrap();
        let error =
            cache.probe(Epoch(1), None, Instant::now() + Duration::from_secs(10)).await.unwrap_err().to_string();
        println!("{error}");
        assert!(error.contains(told) && error.starts_with("L1 is unavailable"), "{error}");
    }
    // MongoDB likewise.
    for (uri, told) in [(uri(&their_ca), "UnknownIssuer"), (mongod.uri(), "")] {
        let store = MongoStore::new(MongoConfig::new(uri, "featurestore", fixture::rules())).unwrap();
        let error = store.ping(Instant::now() + Duration::from_secs(10)).await.unwrap_err().to_string();
        println!("{error}");
        assert!(error.contains(told) && error.starts_with("L2 is unavailable"), "{error}");
        store.close().await;
    }
    // A server goes on without L1, in plain sight.
    let wrong = [&pair[..], &[("FEATURESTORE_REDIS_CA_FILE", text(&their_ca))]].concat();
    let server = Server::start_at_once(&wrong).await;
    let mut client = server.client().await;
    eventually("it to serve", async || {
        client.get_features(get(["a"])).await.is_ok_and(|answer| answer.get_ref().rows[0].status() == RowStatus::Found)
    })
    .await;
    assert!(!matches!(server.tiered.trust().l1(), L1Use::Trusted(_)));
    assert!(!put(&mut client, record("a", [])).await.cached);
    server.stop().await;
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_told_by_their_keys() {
    let (certificates, folder) = (Certificates::new(), temp_dir());
    let (ca, own, key) = (certificates.ca(), certificates.certificate(), certificates.key());
    let (nowhere, empty) = (folder.path().join("nowhere"), folder.path().join("empty"));
    std::fs::write(&empty, "").unwrap();
    const CA: &str = "FEATURESTORE_REDIS_CA_FILE";
    const OWN: &str = "FEATURESTORE_REDIS_CLIENT_CERT_FILE";
    const KEY: &str = "FEATURESTORE_REDIS_CLIENT_KEY_FILE";
    for (url, files, told) in [
        ("rediss://h", vec![(CA, &nowhere)], "redis.ca_file: "),
        ("rediss://h", vec![(CA, &empty)], "holds no BEGIN CERTIFICATE"),
        ("redis://h", vec![(CA, &ca)], "must begin with rediss"),
        ("rediss://h", vec![(OWN, &own)], "needs redis.client_key_file too"),
        ("rediss://h", vec![(KEY, &key)], "needs redis.client_cert_file too"),
        ("rediss://h", vec![(OWN, &own), (KEY, &own)], "redis.client_key_file: "),
    ] {
        let mut environment = vec![("REDIS_URL".to_owned(), url.to_owned())];
        environment.extend(files.into_iter().map(|(name, path)| (name.to_owned(), text(path).to_owned())));
        let data = folder.path().join("data").display().to_string();
        environment.push(("FEATURESTORE_DATA_DIR".to_owned(), data));
        let error = match Config::load(&Flags::default(), environment) {
            Err(errors) => errors.to_string(),
            Ok((config, _)) => App::new(&config).await.err().unwrap().to_string(),
        };
        assert!(error.contains(told) && error.starts_with("redis."), "{told}: {error}");
    }
}
