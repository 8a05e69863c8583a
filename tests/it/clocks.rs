//! A server whose clock is an hour off: records expire by L2's clock, whatever it reads, and L1 is used all the same.

use std::time::Duration;

use featurestore::{
    record::{Clock, Millis},
    tiered::trust::L1Use,
};

use crate::harness::{
    client::*,
    server::{Pair, Server, eventually},
};

const HOUR: Duration = Duration::from_secs(3600);

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
        for n in 0..20 {
            put(&mut other, record("BUSY", [("n", double(f64::from(n)))])).await;
            row(&mut client, get(["BUSY"])).await;
        }
        eventually("L1 to answer", async || row(&mut client, get(["LONG"])).await.source() == Source::L1).await;
        eventually("the other's write to be read", async || {
            row(&mut client, get(["BUSY"])).await.features == features([("n", double(19.0))])
        })
        .await;
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
