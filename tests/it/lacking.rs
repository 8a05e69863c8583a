//! A Redis that cannot do what L1 needs, or is set up badly: the log says so at start and whenever it is found, by the name
//! of what is missing; health, mode and metrics are truthful; nothing is answered wrongly, no new epoch is made because of
//! it, and it is used once it has been mended.

mod blocked;
mod rights;
mod settings;

use std::time::{Duration, Instant};

use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{binary::Binary, client::*, redis::RedisServer, server::eventually};

const UNSUITABLE: &str = "featurestore_l1_problem{problem=\"unsuitable\"}";

/// The lines of a log that have all of these words.
fn lines(server: &Binary, words: &[&str]) -> usize {
    server.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// One of the metrics, by its name and labels.
async fn metric(server: &Binary, name: &str) -> f64 {
    let text = server.metrics().await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The real binary over this Redis and the embedded store.
fn serve(url: &str) -> Binary {
    serve_with(url, &[])
}

fn serve_with(url: &str, more: &[(&str, &str)]) -> Binary {
    Binary::start(&[&[("REDIS_URL", url)], more].concat())
}

/// Waits until the log has these words, and checks that L1 is left alone and everything else goes on.
async fn until_bypassed(server: &Binary, words: &[&str]) {
    server.until_serving().await;
    until_logged(server, words, 1).await;
    let before = new_epochs(server);
    assert_eq!(server.health("l1").await, Some(ServingStatus::NotServing), "{words:?}");
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
    assert_eq!(metric(server, "featurestore_tier_up{tier=\"l1\"}").await, 0.0);
    assert_eq!(metric(server, "featurestore_tier_mode{tier=\"l1\",mode=\"healthy\"}").await, 0.0);
    let mut client = server.client().await;
    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    assert!(matches!(info.l1.unwrap().state(), TierState::Bypassed | TierState::Probing), "{words:?}");
    assert!(!put(&mut client, record("a", [("n", double(1.0))])).await.cached);
    let read = client.get_features(get(["a"])).await.unwrap().into_inner();
    assert!(read.degraded && read.rows[0].source() == Source::L2, "{words:?}: {read:?}");
    // Some probes later.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(new_epochs(server), before, "{words:?}: {}", server.log());
}

/// Waits until so many lines of the log have all of these words.
async fn until_logged(server: &Binary, words: &[&str], count: usize) {
    let start = Instant::now();
    while lines(server, words) < count {
        assert!(start.elapsed() < Duration::from_secs(60), "not {count} times {words:?}: {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until L1 is used for everything.
async fn until_used(server: &Binary) {
    server.until_serving().await;
    let mut client = server.client().await;
    eventually("writes to be cached", async || put(&mut client, record("b", [("n", double(1.0))])).await.cached).await;
    eventually("reads to come from L1", async || {
        let read = client.get_features(get(["b"])).await.unwrap().into_inner();
        !read.degraded && read.rows[0].source() == Source::L1
    })
    .await;
    assert_eq!(server.health("l1").await, Some(ServingStatus::Serving));
    assert_eq!(metric(server, UNSUITABLE).await, 0.0);
}

/// How many new epochs a server made. The first one is that in which it uses this L1 for the first time. The embedded store
/// has no repairer, so a write that L1 did not see costs another one when L1 is used again.
fn new_epochs(server: &Binary) -> usize {
    lines(server, &["new epoch, L1 starts cold"])
}
