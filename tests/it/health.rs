//! grpc.health.v1: each name tells the truth about its own thing, and changes when that does.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest,
    health_check_response::ServingStatus::{self, NotServing, ServiceUnknown, Serving},
    health_client::HealthClient,
};

use crate::harness::{
    backends::Backends,
    binary::SERVICE,
    client::*,
    process::free_port,
    server::{Server, eventually},
    tools,
};

const NAMES: [&str; 4] = ["", SERVICE, "l1", "l2"];

/// Follows all names by Watch.
struct Watched {
    told: tokio::sync::watch::Receiver<BTreeMap<&'static str, Vec<ServingStatus>>>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Watched {
    async fn new(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let (tell, told) = tokio::sync::watch::channel(BTreeMap::new());
        let mut tasks = tokio::task::JoinSet::new();
        for name in NAMES {
            let (mut client, tell) = (HealthClient::new(channel.clone()), tell.clone());
            tasks.spawn(async move {
                let request = HealthCheckRequest { service: name.to_owned() };
                let mut changes = client.watch(request).await.unwrap().into_inner();
                while let Ok(Some(change)) = changes.message().await {
                    tell.send_modify(|told: &mut BTreeMap<_, Vec<_>>| {
                        told.entry(name).or_default().push(change.status())
                    });
                }
            });
        }
        Self { told, _tasks: tasks }
    }

    /// Waits until the names say this, in the order of `NAMES`.
    async fn until(&mut self, expected: [ServingStatus; 4]) {
        let is_so =
            |told: &BTreeMap<&str, Vec<_>>| NAMES.map(|name| told.get(name)?.last().copied()) == expected.map(Some);
        let waited = tokio::time::timeout(Duration::from_secs(20), self.told.wait_for(is_so)).await.is_ok();
        assert!(waited, "not {expected:?}: {:?}", self.told.borrow());
    }

    /// All that a name has said.
    fn history(&self, name: &str) -> Vec<ServingStatus> {
        self.told.borrow()[name].clone()
    }
}

/// A server over addresses where nobody listens yet.
async fn early(redis: u16, mongod: u16, more: &[(&str, &str)]) -> Server {
    let (redis, mongod) = (format!("redis://127.0.0.1:{redis}"), format!("mongodb://127.0.0.1:{mongod}/"));
    Server::start_at_once(&[&[("REDIS_URL", redis.as_str()), ("MONGO_URI", mongod.as_str())], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_follows_its_own_tier_and_the_service_only_its_first_reach_of_l2() {
    let mut backends = Backends::start();
    let port = backends.mongod.port();
    tokio::task::block_in_place(|| backends.mongod.kill());
    let server = early(backends.redis.port(), port, &[]).await;
    let mut health = Watched::new(server.address).await;
    // Before L2 was ever reached the epoch is not known, so L1 cannot be used either.
    health.until([Serving, NotServing, NotServing, NotServing]).await;
    let status = server.client().await.get_features(get(["a"])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    tokio::task::block_in_place(|| backends.mongod.restart());
    health.until([Serving; 4]).await;
    backends.redis.kill();
    health.until([Serving, Serving, NotServing, Serving]).await;
    backends.redis.start_again();
    health.until([Serving; 4]).await;
    backends.redis.freeze();
    health.until([Serving, Serving, NotServing, Serving]).await;
    backends.redis.thaw();
    health.until([Serving; 4]).await;
    tokio::task::block_in_place(|| backends.mongod.kill());
    health.until([Serving, Serving, Serving, NotServing]).await;
    tokio::task::block_in_place(|| backends.mongod.restart());
    health.until([Serving; 4]).await;

    assert_eq!(health.history(""), [Serving], "the process was up all the time");
    assert_eq!(health.history(SERVICE), [NotServing, Serving], "no outage makes all replicas unready at once");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_server_says_so_and_still_takes_calls() {
    let settings = [("FEATURESTORE_DRAIN_DELAY", "2s")];
    let server = Server::start(&settings).await;
    let mut health = Watched::new(server.address).await;
    health.until([Serving; 4]).await;
    let mut client = server.client().await;
    server.begin_shutdown();
    health.until([NotServing, NotServing, Serving, Serving]).await;
    client.upsert_features(upsert(record("a", [("n", double(1.0))]))).await.unwrap();
    assert!(client.info(InfoRequest {}).await.unwrap().into_inner().draining);
    // Who watches does not hold up the end, for which calls have 20 s.
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_ours_is_not_found_by_check_and_can_be_watched_until_the_server_ends() {
    let server = Server::start(&[("FEATURESTORE_DRAIN_DELAY", "1s")]).await;
    let channel = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let request = || HealthCheckRequest { service: "l3".to_owned() };
    assert_eq!(client.check(request()).await.unwrap_err().code(), Code::NotFound);
    let mut watched = client.watch(request()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServiceUnknown);
    // Neither what changes of other names nor the drain's beginning is a change of this one.
    server.begin_shutdown();
    let silent = tokio::time::timeout(Duration::from_millis(500), watched.message()).await;
    assert!(silent.is_err(), "{silent:?}");
    let (last, ()) = tokio::join!(watched.message(), server.stop());
    assert!(matches!(last, Ok(None)), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_a_delay_is_told_before_a_watch_ends() {
    let server = Server::start(&[("FEATURESTORE_DRAIN_DELAY", "0s")]).await;
    let mut health = Watched::new(server.address).await;
    health.until([Serving; 4]).await;
    server.stop().await;
    health.until([NotServing, NotServing, Serving, Serving]).await;
    for name in ["", SERVICE] {
        assert_eq!(health.history(name), [Serving, NotServing], "{name:?}: no status is told twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_from_outside_see_the_same() {
    // Nobody is at either address, which is all that these need.
    let server = early(free_port(), free_port(), &[("FEATURESTORE_DRAIN_DELAY", "5s")]).await;
    let target = server.address.to_string();
    let expected = [
        ("", "SERVING"),
        (SERVICE, "NOT_SERVING"),
        ("l1", "NOT_SERVING"),
        ("l2", "NOT_SERVING"),
        ("l3", "SERVICE_UNKNOWN"),
    ];
    for (name, status) in expected {
        for how in [&[][..], &["--watch", "--until", status][..]] {
            if let Some(told) = tools::python("health_watch.py", &[&["--target", &target], how, &[name]].concat()).await
            {
                assert_eq!(told.unwrap().trim(), status, "{name:?} {how:?}");
            }
        }
        let probe = tools::health_probe(&["-addr", &target, "-service", name]).await;
        if let Some(probe) = probe {
            assert_eq!(probe.success, status == "SERVING", "{name:?}: {probe:?}");
            assert!(probe.errors.contains(status) || status == "SERVICE_UNKNOWN", "{name:?}: {probe:?}");
        }
    }
    server.begin_shutdown();
    let watch = ["--target", &target, "--watch", "--until", "NOT_SERVING", ""];
    if let Some(told) = tools::python("health_watch.py", &watch).await {
        assert_eq!(told.unwrap().lines().last(), Some("NOT_SERVING"));
    }
    if tools::health_probe(&["-version"]).await.is_some() {
        eventually("the probe to see the drain", async || {
            !tools::health_probe(&["-addr", &target]).await.unwrap().success
        })
        .await;
    }
    server.stop().await;
}
