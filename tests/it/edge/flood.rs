//! More calls than the server takes.

use h2::client::Builder;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_shed_with_when_to_try_again_while_health_and_the_calls_before_it_go_on() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "4")]);
    server.until_serving().await;
    let mut client = server.client().await;
    let mut streams = Vec::new();
    for stream in 0..3 {
        let (send, messages) = mpsc::channel(1);
        send.send(chunk(1, [record(&format!("stream {stream}"), [])])).await.unwrap();
        let mut answers = client.bulk_upsert(ReceiverStream::new(messages)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().written, 1);
        streams.push((send, answers));
    }
    let mut flood = JoinSet::new();
    for caller in 0..40 {
        let mut client = if caller % 10 == 0 { server.client().await } else { client.clone() };
        flood.spawn(async move {
            let mut shed = 0;
            for call in 0..25 {
                match client.upsert_features(upsert(record(&format!("{caller}-{call}"), []))).await {
                    Ok(_) => {}
                    Err(status) => {
                        let refused = Refusal::of(&status);
                        let told = (refused.code, refused.reason.as_str(), refused.retry);
                        assert_eq!(told, (Code::ResourceExhausted, "TOO_BUSY", true), "{status:?}");
                        shed += 1;
                    }
                }
            }
            shed
        });
    }
    let mut sequence = 1;
    while !flood.is_empty() && sequence < 20 {
        sequence += 1;
        assert_eq!(server.health(SERVICE).await, Some(ServingStatus::Serving));
        for (stream, (send, answers)) in streams.iter_mut().enumerate() {
            send.send(chunk(sequence, [record(&format!("stream {stream}"), [])])).await.unwrap();
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!((answer.sequence, answer.written), (sequence, 1));
        }
    }
    let shed: usize = flood.join_all().await.into_iter().sum();
    println!("{shed} of 1000 calls were shed; {sequence} chunks of each stream were answered");
    assert!(shed > 100, "{shed}");
    drop(streams);
    eventually("all places to be free", async || another(&server, "calls_in_flight").await == 0.0).await;
    another_is_served(&server).await;
}

async fn another(server: &Binary, gauge: &str) -> f64 {
    let metrics = server.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("featurestore_{gauge} ")));
    value.unwrap_or_else(|| panic!("no {gauge} in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_begun_and_never_ended_does_not_keep_its_place() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]);
    server.until_serving().await;
    let raw = raw::connect(server.port, &Builder::new()).await;
    let (answer, _body, _last) = raw.begin_only("GetFeatures", &get(["a"])).await;
    // Not seen by another call: that could take the only place itself just then.
    eventually("the place to be taken", async || another(&server, "calls_in_flight").await == 1.0).await;
    let mut client = server.client().await;
    assert!(client.get_features(get(["a"])).await.is_err());
    let (code, _) = tokio::time::timeout(PATIENCE, raw::finish(answer)).await.unwrap().unwrap();
    assert_eq!(code, Code::DeadlineExceeded);
    client.get_features(get(["a"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_health_are_bounded_and_a_check_never_is() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    const MAX_WATCHES: usize = 1024;
    const SHARE: usize = 128;
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut watches = Vec::new();
    for connection in 0..=MAX_WATCHES / SHARE {
        let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
        let expected = if connection < MAX_WATCHES / SHARE { SHARE } else { 0 };
        for _ in 0..expected {
            let watch = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await;
            watches.push(watch.unwrap().into_inner());
        }
        // Beyond the connection's share, and at last beyond all.
        let refused = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap_err();
        let refused = Refusal::of(&refused);
        assert_eq!((refused.code, refused.retry), (Code::ResourceExhausted, true));
    }
    assert_eq!(server.health(SERVICE).await, Some(ServingStatus::Serving));
    drop(watches);
    let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
    eventually("a place to be free again", async || {
        HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.is_ok()
    })
    .await;
}
