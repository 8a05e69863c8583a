//! Settings as deployments have them, on real backends.

use super::*;
use crate::harness::{mongod::Mongod, redis::RedisServer};

/// A write and a read, from L1 and from L2.
async fn serves(settings: &[(&str, &str)]) -> Binary {
    let server = Binary::start(settings);
    server.until_serving().await;
    let mut client = server.client().await;
    let write = upsert(record("a", [("n", double(1.0))]));
    eventually("a write", async || client.clone().upsert_features(write.clone()).await.is_ok()).await;
    let is_found = async |client: &mut Client| {
        let answer = client.get_features(get(["a"])).await;
        answer.is_ok_and(|answer| answer.into_inner().rows[0].status() == RowStatus::Found)
    };
    eventually("a read", async || is_found(&mut client.clone()).await).await;
    assert!(is_found(&mut client).await, "{settings:?}");
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_and_the_most_of_every_setting_of_the_embedded_pair_serve() {
    let least = [
        ("FEATURESTORE_L1_TTL", "1s"),
        ("FEATURESTORE_L2_TOMBSTONE_TTL", "2001ms"),
        ("FEATURESTORE_L1_SLOW", "1ms"),
        ("FEATURESTORE_L1_MEMORY", "64KiB"),
        ("FEATURESTORE_L2_CACHE", "64KiB"),
        ("FEATURESTORE_L2_MAX_READS", "1"),
        ("FEATURESTORE_TTL_DEFAULT", "1min"),
        ("FEATURESTORE_LIMITS_MAX_TTL", "1min"),
        ("FEATURESTORE_LIMITS_MAX_ENTITIES", "1"),
        ("FEATURESTORE_LIMITS_MAX_BULK_RECORDS", "1"),
        ("FEATURESTORE_LIMITS_MAX_FEATURES", "1"),
        ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "1KiB"),
        ("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "2KiB"),
        ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "2KiB"),
        ("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "8KiB"),
        ("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1"),
        ("FEATURESTORE_DEADLINES_READ", "10ms"),
        ("FEATURESTORE_DEADLINES_STRONG", "10ms"),
        ("FEATURESTORE_DEADLINES_WRITE", "10ms"),
        ("FEATURESTORE_L1_TIMEOUT", "1ms"),
        ("FEATURESTORE_DRAIN_DELAY", "0s"),
        ("FEATURESTORE_DRAIN_TIMEOUT", "1ms"),
    ];
    serves(&least).await;
    // One connection serves whoever has it. It is the tests' own, so nothing else is asked meanwhile.
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "1")]);
    eventually("a write by the only connection", async || {
        let Ok(mut client) = Client::connect(server.url()).await else { return false };
        client.upsert_features(upsert(record("a", [("n", double(1.0))]))).await.is_ok()
    })
    .await;
    let most = [
        ("FEATURESTORE_L1_TTL", "6days"),
        ("FEATURESTORE_L1_TIMEOUT", "1min"),
        ("FEATURESTORE_L1_SLOW", "1min"),
        ("FEATURESTORE_L2_TOMBSTONE_TTL", "1000years"),
        ("FEATURESTORE_L1_MEMORY", "1TiB"),
        ("FEATURESTORE_L2_CACHE", "1TiB"),
        ("FEATURESTORE_L2_MAX_READS", "100000"),
        ("FEATURESTORE_TTL_DEFAULT", "1000years"),
        ("FEATURESTORE_LIMITS_MAX_TTL", "1000years"),
        ("FEATURESTORE_LIMITS_MAX_ENTITIES", "20000"),
        ("FEATURESTORE_LIMITS_MAX_BULK_RECORDS", "100000"),
        ("FEATURESTORE_LIMITS_MAX_FEATURES", "100000"),
        ("FEATURESTORE_LIMITS_MAX_RECORD_BYTES", "64MiB"),
        ("FEATURESTORE_LIMITS_MAX_REQUEST_BYTES", "1GiB"),
        ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "1GiB"),
        ("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "1TiB"),
        ("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1000000"),
        ("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "1000000"),
        ("FEATURESTORE_DEADLINES_READ", "1h"),
        ("FEATURESTORE_DEADLINES_STRONG", "1h"),
        ("FEATURESTORE_DEADLINES_WRITE", "1h"),
        ("FEATURESTORE_DRAIN_DELAY", "1day"),
        ("FEATURESTORE_DRAIN_TIMEOUT", "1day"),
    ];
    let server = serves(&most).await;
    assert!(server.memory() < 512 << 20, "a large bound is not memory: {}", server.memory());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_and_the_most_of_every_setting_of_redis_and_mongodb_serve() {
    let (redis, mongod) = (RedisServer::start(), Mongod::shared_replica_set());
    let uri = mongod.uri();
    for (database, [connections, pool, connecting, timeout]) in
        [("0", ["1", "1", "1", "200ms"]), ("15", ["1000", "10000", "1000", "1min"])]
    {
        let (name, port) = (Mongod::database_name(), redis.port().to_string());
        let settings = [
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", port.as_str()),
            ("REDIS_DB", database),
            ("FEATURESTORE_REDIS_CONNECTIONS", connections),
            ("MONGO_URI", uri.as_str()),
            ("MONGO_DB", name.as_str()),
            ("FEATURESTORE_MONGODB_MAX_POOL_SIZE", pool),
            ("FEATURESTORE_MONGODB_MAX_CONNECTING", connecting),
            ("FEATURESTORE_MONGODB_SERVER_SELECTION_TIMEOUT", timeout),
        ];
        let server = serves(&settings).await;
        let log = server.log();
        assert!(log.lines().any(|line| line.contains("INFO") && line.contains("data_dir is not used")), "{log}");
    }
}

#[test]
fn settings_that_contradict_the_uri_or_that_nothing_uses_end_the_start() {
    for (settings, words) in [
        (
            &[("MONGO_URI", "mongodb://h/?maxPoolSize=10"), ("FEATURESTORE_MONGODB_MAX_POOL_SIZE", "20")][..],
            ["mongodb.uri: ", "maxPoolSize=10", "mongodb.max_pool_size says 20"],
        ),
        (&[("MONGO_URI", "mongodb://canary@h/")], ["mongodb.uri: ", "no password", "mongodb://user:password@host"]),
        (
            &[("MONGO_URI", "mongodb://h/?compressors=zstd")],
            ["mongodb.uri: ", "compression is not supported", "compressors"],
        ),
        (
            &[("FEATURESTORE_REDIS_CONNECTIONS", "4")],
            ["redis.connections: ", "REDIS_URL", "FEATURESTORE_REDIS_CONNECTIONS"],
        ),
    ] {
        let output = run(&["serve"], &[settings, &[("FEATURESTORE_LISTEN", "127.0.0.1:0")]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(words.iter().all(|word| said.contains(word)) && !said.contains("canary"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongodb_whose_certificate_nobody_looks_at_is_a_warning() {
    let uri = format!("mongodb://u:canary@127.0.0.1:{}/?tls=true&tlsInsecure=true", free_port());
    let server = Binary::start(&[("MONGO_URI", &uri)]);
    let told = |log: &str| log.lines().any(|line| line.contains("WARN") && line.contains("mongodb.uri: tlsInsecure"));
    eventually("it to be told", async || told(&server.log())).await;
    assert!(!server.log().contains("canary"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_beside_an_address_and_in_its_path_is_used() {
    let (redis, mongod) = (RedisServer::start(), Mongod::shared_replica_set());
    redis.cli(&["CONFIG", "SET", "requirepass", "p"]);
    let (database, port) = (Mongod::database_name(), mongod.port());
    let uri = format!("mongodb://127.0.0.1:{port}/{database}?replicaSet=rs0\n");
    let url = format!("{}?db=3\n", redis.url());
    let server = serves(&[("REDIS_URL", &url), ("REDIS_PASSWORD", "p\n"), ("MONGO_URI", &uri)]).await;
    eventually("L1 to be trusted", async || server.log().contains("L1 is trusted")).await;
    let keys = redis.cli(&["-a", "p", "-n", "3", "DBSIZE"]);
    assert_ne!(keys.lines().last().unwrap(), "0", "{keys}");
    let found = mongod.database(&database).await.list_collection_names().await.unwrap();
    assert!(found.contains(&"features".to_owned()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_links_are_one_line_of_the_log() {
    let settings = [
        ("FEATURESTORE_REDIS_SERVICE_HOST", "10.96.0.12"),
        ("FEATURESTORE_REDIS_SERVICE_PORT", "6379"),
        ("FEATURESTORE_REDIS_PORT", "tcp://10.96.0.12:6379"),
        ("FEATURESTORE_REDIS_PORT_6379_TCP", "tcp://10.96.0.12:6379"),
        ("FEATURESTORE_REDIS_PORT_6379_TCP_ADDR", "10.96.0.12"),
    ];
    let server = serves(&settings).await;
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("FEATURESTORE_REDIS")).collect();
    assert!(lines.len() == 1 && lines[0].contains("are ignored") && lines[0].contains("INFO"), "{lines:?}");
}

#[test]
fn an_empty_address_is_named_with_its_variable() {
    for name in ["REDIS_URL", "MONGO_URI"] {
        let output = run(&["serve"], &[(name, "")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(64) && said.contains(name) && said.contains("is empty"), "{said}");
    }
}
