//! Calls beyond the bound are shed before any work; the health service never is.

use std::time::Duration;

use h2::client::Builder;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    client::*,
    raw,
    server::{Server, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_the_bound_is_shed_with_when_to_try_again_and_health_is_still_told() {
    let server = Server::start(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]).await;
    let mut client = server.client().await;
    let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
    for is_abandoned in [false, true] {
        // A call keeps the only place from its beginning, however slowly its message arrives.
        let raw = raw::connect(server.address.port(), &Builder::new()).await;
        let (answer, mut body, last) = loop {
            let begun = raw.begin_only("UpsertFeatures", &upsert(record("A", []))).await;
            // A call that asks whether the place is taken could take it itself.
            tokio::time::sleep(Duration::from_millis(100)).await;
            if client.info(InfoRequest {}).await.is_err() {
                break begun;
            }
        };

        let busy = [
            client.get_features(get(["A"])).await.unwrap_err(),
            client.upsert_features(upsert(record("LEFT", []))).await.unwrap_err(),
            client.delete_features(delete(["A"])).await.unwrap_err(),
        ];
        for status in busy {
            let refused = Refusal::of(&status);
            assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "TOO_BUSY"));
            assert!(refused.retry, "{status:?}");
        }
        let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
        health.expect("health is never shed");

        if is_abandoned {
            drop((answer, body));
        } else {
            body.send_data(last, true).unwrap();
            assert_eq!(raw::finish(answer).await.unwrap().0, Code::Ok);
        }
        let is_taken = async || client.clone().get_features(get(["A"])).await.is_ok();
        eventually("the place to be free again", is_taken).await;
        // Nothing that was shed was done.
        let found = rows(&mut client, get(["A", "LEFT"])).await;
        assert_eq!((found[0].status(), found[1].revision), (RowStatus::Found, 0));
    }
}
