//! Calls beyond the bound are shed before any work; the health service never is.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    client::*,
    server::{Server, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_the_bound_is_shed_with_when_to_try_again_and_health_is_still_told() {
    let server = Server::start(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]).await;
    let mut client = server.client().await;
    let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
    for is_abandoned in [false, true] {
        // The only place is held by a stream as long as it is open, and not only until its answer begins.
        let (send, messages) = mpsc::channel(1);
        send.send(chunk(1, [record("A", [])])).await.unwrap();
        let mut answers = client.bulk_upsert(ReceiverStream::new(messages)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().written, 1);

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
            drop(answers);
            drop(send);
        } else {
            drop(send);
            assert!(answers.message().await.unwrap().is_none());
        }
        let is_taken = async || client.clone().get_features(get(["A"])).await.is_ok();
        eventually("the place to be free again", is_taken).await;
        // Nothing that was shed was done.
        let found = rows(&mut client, get(["A", "LEFT"])).await;
        assert_eq!((found[0].status(), found[1].revision), (RowStatus::Found, 0));
    }
}
