//! A server whose clock is an hour off: records expire by L2's clock, whatever it reads, and L1 is used all the same.

use std::time::{Duration, Instant};

use featurestore::{
    record::{Clock, Millis},
    tiered::trust::L1Use,
};

use crate::harness::{
    client::*,
    server::{Pair, Server, eventually},
};

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than an L1 in a process is used that does not keep up with the changes.
const FOLLOWED: Duration = Duration::from_secs(3);

/// This machine's clock, set wrongly.
fn off(ahead: bool) -> Clock {
    let (right, hour) = (Clock::system(), HOUR.as_millis() as i64);
    Clock::new(move || Millis(right.now().0 + if ahead { hour } else { -hour }))
}

async fn trusted(server: &Server) {
    eventually("L1 to be trusted", async || matches!(server.tiered.trust().l1(), L1Use::Trusted(_))).await;
}

fn living(id: &str, ttl: prost_types::Duration) -> FeatureRecord {
    FeatureRecord { ttl: Some(ttl), ..record(id, [("n", double(1.0))]) }
}

async fn statuses(client: &mut Client, id: &str) -> [RowStatus; 2] {
    [row(client, get([id])).await.status(), row(client, strong([id])).await.status()]
}

#[tokio::test(flavor = "multi_thread")]
async fn records_expire_by_l2s_clock_and_the_skew_is_shown() {
    for (redis, ahead) in [(false, true), (false, false), (true, true), (true, false)] {
        let pair = Pair::new(redis, true);
        let what = format!("{}, ahead: {ahead}", pair.name());
        let right = pair.serve().await;
        let server = Server::start_with_clock(&pair.settings(), off(ahead)).await;
        trusted(&server).await;
        let (mut client, mut other) = (server.client().await, right.client().await);
        let skew = server.metric("featurestore_clock_skew_seconds").await;
        let expected = if ahead { 3600.0 } else { -3600.0 };
        assert!((skew - expected).abs() < 5.0, "{what}: {skew}");
        assert!(right.metric("featurestore_clock_skew_seconds").await.abs() < 1.0, "{what}");

        // By its own clock the one would be gone at once, or the other would live an hour too long.
        put(&mut client, living("LONG", seconds(600))).await;
        put(&mut client, living("BRIEF", millis(300))).await;
        assert_eq!(statuses(&mut client, "LONG").await, [RowStatus::Found; 2], "{what}");
        eventually("the brief one to expire", async || {
            let here = statuses(&mut client, "BRIEF").await;
            assert!(here.iter().all(|status| matches!(status, RowStatus::Found | RowStatus::Expired)), "{here:?}");
            here == [RowStatus::Expired; 2]
        })
        .await;
        let gone = row(&mut other, strong(["BRIEF"])).await;
        assert_eq!(gone.status(), RowStatus::Expired, "{what}: it expired too soon");

        // L1 is filled and hit, also while another server writes, and changes are followed without a lag.
        let (mut written, end) = (0.0, Instant::now() + FOLLOWED);
        eventually("L1 to be used after a while of writes without a pause", async || {
            written += 1.0;
            put(&mut other, record("BUSY", [("n", double(written))])).await;
            row(&mut client, get(["BUSY"])).await;
            Instant::now() > end && matches!(server.tiered.trust().l1(), L1Use::Trusted(_))
        })
        .await;
        eventually("L1 to answer", async || row(&mut client, get(["LONG"])).await.source() == Source::L1).await;
        eventually("the other's write to be read", async || {
            row(&mut client, get(["BUSY"])).await.features == features([("n", double(written))])
        })
        .await;
        if let Some(redis) = &pair.redis {
            let key = redis.cli(&["KEYS", "*LONG"]);
            let ttl: i64 = redis.cli(&["TTL", &key]).parse().unwrap();
            assert!((60..=600).contains(&ttl), "{what}: {key:?} lives for {ttl} s");
        }
        for server in [&server, &right] {
            let lag = server.metric("featurestore_repair_lag_seconds").await;
            assert!(lag < 60.0, "{what}: a lag of {lag} s");
            assert!(
                matches!(server.tiered.trust().l1(), L1Use::Trusted(_)),
                "{what}: {:?}",
                server.tiered.trust().l1()
            );
        }
        server.stop().await;
        right.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_delete_is_remembered_is_judged_by_l2s_clock_too() {
    let now = Clock::system().now().0 * 1000;
    let settings = [("FEATURESTORE_L2_TOMBSTONE_TTL", "10min"), ("FEATURESTORE_L1_TTL", "1min")];
    for pair in [Pair::embedded(), Pair::new(false, true)] {
        for ahead in [true, false] {
            let what = format!("{}, ahead: {ahead}", pair.name());
            let server = Server::start_with_clock(&[&pair.settings()[..], &settings].concat(), off(ahead)).await;
            trusted(&server).await;
            let at_least = |revision| GetFeaturesRequest {
                min_revisions: [("GONE".to_owned(), revision)].into(),
                ..get(["GONE"])
            };
            let mut client = server.client().await;
            // What was deleted so long ago leaves nothing behind. The embedded store has the clock of
            // this machine.
            let its_now = now + if pair.mongod.is_some() { 0 } else { 3_600_000_000 * if ahead { 1 } else { -1 } };
            let [old, new] = [its_now - 20 * 60_000_000, its_now - 60_000_000];
            assert_eq!(row(&mut client, at_least(old)).await.status(), RowStatus::NotFound, "{what}");
            let row = row(&mut client, at_least(new)).await;
            assert_eq!(row.error.map(|error| error.reason).as_deref(), Some("REVISION_NOT_REACHED"), "{what}");
            server.stop().await;
        }
    }
}
