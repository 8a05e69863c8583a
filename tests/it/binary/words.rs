//! What the server says: in its log, and on the admin port.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use super::*;

/// Status and body.
pub(super) fn http(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_probes_and_shows_what_the_tiers_did() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut client = server.client().await;
    client.upsert_features(upsert(record("a", [("n", double(1.0))]))).await.unwrap();
    for _ in 0..3 {
        client.get_features(get(["a"])).await.unwrap();
    }
    client.get_features(get(["nobody"])).await.unwrap();
    assert_eq!(http(server.admin_port, "/livez").unwrap().0, 200);
    assert_eq!(http(server.admin_port, "/readyz").unwrap().0, 200);
    assert_eq!(http(server.admin_port, "/nowhere").unwrap().0, 404);
    let (status, metrics) = http(server.admin_port, "/metrics").unwrap();
    assert_eq!(status, 200);
    for line in [
        "# TYPE featurestore_tier_hits_total counter",
        "featurestore_tier_hits_total{tier=\"l1\"} 3",
        "featurestore_tier_misses_total{tier=\"l1\"} 1",
        "featurestore_tier_misses_total{tier=\"l2\"} 1",
        "featurestore_tier_errors_total{tier=\"l1\"} 0",
        "featurestore_tier_up{tier=\"l1\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_waits_for_l2_and_says_when_it_drains() {
    let uri = format!("mongodb://127.0.0.1:{}/", free_port());
    let server = Binary::start(&[("MONGO_URI", &uri)]);
    eventually("it to be up", async || server.health("").await.is_some()).await;
    assert_eq!(http(server.admin_port, "/livez").unwrap().0, 200);
    assert_eq!(http(server.admin_port, "/readyz").unwrap().0, 503);

    let server = Binary::start(&[("FEATURESTORE_DRAIN_DELAY", "5s")]);
    server.until_serving().await;
    server.signal("TERM");
    eventually("readyz to say so", async || http(server.admin_port, "/readyz").is_some_and(|(code, _)| code == 503))
        .await;
    assert_eq!(http(server.admin_port, "/livez").unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_debug_log_tells_each_lookup_as_a_person_would() {
    // A cache that soon forgets.
    let server = Binary::start(&[("RUST_LOG", "featurestore=debug"), ("FEATURESTORE_L1_TTL", "1s")]);
    server.until_serving().await;
    let mut client = server.client().await;
    client.upsert_features(upsert(record("CUST12345", [("n", double(1.0))]))).await.unwrap();
    client.get_features(get(["CUST12345"])).await.unwrap();
    eventually("L1 to forget", async || {
        let answer = client.get_features(get(["CUST12345"])).await.unwrap().into_inner();
        answer.rows[0].source() == Source::L2
    })
    .await;
    client.get_features(get(["nobody"])).await.unwrap();
    client.get_features(get(["nobody"])).await.unwrap();
    let strong = GetFeaturesRequest { consistency: Consistency::Strong.into(), ..get(["CUST12345"]) };
    client.get_features(strong).await.unwrap();
    for words in [
        "cache HIT CUST12345 (L1)",
        "MISS L1, HIT L2 CUST12345",
        "MISS L1, MISS L2 nobody",
        "cache HIT nobody (L1, negative entry)",
        "L1 skipped, HIT L2 CUST12345",
    ] {
        eventually(words, async || server.log().contains(words)).await;
    }
    let log = server.log();
    let line = log.lines().find(|line| line.contains("cache HIT CUST12345")).unwrap();
    assert!(line.contains("feature_view") && line.contains("default") && line.contains("revision"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_json_where_that_is_wanted() {
    let server = Binary::start(&[("FEATURESTORE_LOG_FORMAT", "json")]);
    server.until_serving().await;
    let log = server.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"level\":"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_never_reach_the_log_whatever_goes_wrong() {
    let (redis, mongod) = (free_port(), free_port());
    let (redis, mongod) = (
        format!("redis://user:canary-redis@127.0.0.1:{redis}/0"),
        format!("mongodb://user:canary-mongo@127.0.0.1:{mongod}/?authSource=admin"),
    );
    let settings = [("REDIS_URL", redis.as_str()), ("MONGO_URI", &mongod), ("RUST_LOG", "trace,h2=info,hyper=info")];
    let mut server = Binary::start(&settings);
    eventually("it to be up", async || server.health("").await.is_some()).await;
    let mut client = server.client().await;
    let mut answers = vec![format!("{:?}", client.info(InfoRequest {}).await.unwrap())];
    answers.push(format!("{:?}", client.get_features(get(["a"])).await.unwrap_err()));
    answers.push(format!("{:?}", client.upsert_features(upsert(record("a", []))).await.unwrap_err()));
    answers.push(http(server.admin_port, "/metrics").unwrap().1);
    drop(client);
    server.signal("TERM");
    assert_eq!(server.exit_code(Duration::from_secs(60)), 0, "{}", server.log());
    let log = server.log();
    assert!(log.contains("L2 cannot be reached"), "{log}");
    answers.push(log);
    for answer in answers {
        assert!(!answer.contains("canary"), "{}", answer.lines().find(|line| line.contains("canary")).unwrap());
    }
}
