//! A passed deadline is DEADLINE_EXCEEDED, told by the server itself: these calls go through a client that knows nothing
//! of timeouts, as tonic's own would answer before the server does.

use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use pb::feature_store_service_client::FeatureStoreServiceClient;
use tonic::{Code, Request, body::Body};

use crate::harness::{
    client::*,
    redis::RedisServer,
    server::{Pair, Server, eventually},
};

type PlainClient = FeatureStoreServiceClient<Http<HttpConnector, Body>>;

fn plain_client(server: &Server) -> PlainClient {
    let http = Http::builder(TokioExecutor::new()).http2_only(true).build_http();
    FeatureStoreServiceClient::with_origin(http, server.url().parse().unwrap())
}

fn within<T>(timeout: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

fn assert_passed<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, what: &str) {
    let refused = Refusal::of(&answer.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"), "{what}");
}

/// While Redis is frozen every command to it waits for the timeout of L1, which is 500 ms here.
fn frozen(pair: &Pair) -> &RedisServer {
    let redis = pair.redis.as_ref().unwrap();
    redis.freeze();
    redis
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_deadline_has_passed_is_deadline_exceeded() {
    for pair in [Pair::new(true, false), Pair::real()] {
        let server = pair.serve().await;
        let mut plain = plain_client(&server);
        let format = ResponseFormat::MatrixFloat64.into();
        let matrix = GetFeaturesRequest { format, feature_names: vec!["a".into()], ..strong(["A"]) };
        for request in [get(["A"]), get(["A", "B"]), strong(["A"]), strong(["A", "B"]), matrix] {
            let what = format!("{} {request:?}", pair.name());
            let redis = frozen(&pair);
            let answer = plain.get_features(within("50m", request.clone())).await;
            redis.thaw();
            assert_passed(answer, &what);
            // It is about that call alone.
            plain.get_features(within("1H", request)).await.expect(&what);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_l2_cannot_do_in_the_time_that_a_client_leaves_it_is_no_outage() {
    let pair = Pair::new(false, true);
    let server = pair.serve().await;
    let mut plain = plain_client(&server);
    for request in [strong(["A"]), strong(["A", "B"])] {
        assert_passed(plain.get_features(within("1n", request.clone())).await, "strong");
        plain.get_features(within("1H", request)).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_deadline_has_passed_may_have_happened_and_is_repeated_by_its_request_id() {
    for pair in [Pair::new(true, false), Pair::real()] {
        let server = pair.serve().await;
        let (mut client, mut plain) = (server.client().await, plain_client(&server));
        let create = FeatureRecord { if_revision: Some(0), ..record("A", [("a", double(1.0))]) };
        let write = UpsertFeaturesRequest { request_id: "write".into(), ..upsert(create) };
        let redis = frozen(&pair);
        let answer = plain.upsert_features(within("50m", write.clone())).await;
        redis.thaw();
        assert_passed(answer, &pair.name());
        let again = plain.upsert_features(within("1H", write)).await.unwrap().into_inner();
        assert_eq!(again.outcome(), WriteOutcome::Written, "{}", pair.name());
        let read = row(&mut client, get(["A"])).await;
        assert_eq!((read.revision, read.status()), (again.revision, RowStatus::Found), "{}", pair.name());

        // A call that is given up is not a write that is: it is detached.
        frozen(&pair);
        let answer = plain.delete_features(within("50m", delete(["A"]))).await;
        redis.thaw();
        assert_passed(answer, &pair.name());
        let gone = async || row(&mut client.clone(), get(["A"])).await.status() == RowStatus::NotFound;
        eventually("the delete to happen", gone).await;
        assert!(row(&mut client, get(["A"])).await.revision > again.revision, "{}", pair.name());

        // A bulk stream has its client's deadline too.
        frozen(&pair);
        let records = tokio_stream::iter([chunk(1, [record("BULK", [("a", double(1.0))])])]);
        let mut answers = plain.bulk_upsert(within("50m", records)).await.unwrap().into_inner();
        let answer = answers.message().await;
        redis.thaw();
        assert_passed(answer, &pair.name());
        let there = async || row(&mut client.clone(), get(["BULK"])).await.status() == RowStatus::Found;
        eventually("the bulk write to happen", there).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_cannot_be_read_is_refused() {
    let server = Pair::embedded().serve().await;
    let mut plain = plain_client(&server);
    for bad in ["1", "m", "1x", "123456789S", "-1S"] {
        let status = plain.get_features(within(bad, get(["A"]))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad}");
    }
}

#[cfg(feature = "mongodb")]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_frozen_mongodb_50_ms_is_told_so_about_then() {
    let backends = crate::harness::backends::Backends::start();
    let server = backends.serve(&[]).await;
    let mut plain = plain_client(&server);
    plain.get_features(within("1H", get(["A"]))).await.unwrap();
    backends.mongod.signal("STOP");
    let start = std::time::Instant::now();
    let answer = plain.get_features(within("50m", get(["B"]))).await;
    let took = start.elapsed();
    backends.mongod.signal("CONT");
    assert_passed(answer, "a miss");
    assert!((50..500).contains(&took.as_millis()), "{took:?}");
    server.stop().await;
}
