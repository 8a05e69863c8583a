//! Streams that say nothing, and messages that never end: they keep nothing that others need.

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Builder, ResponseFuture},
};
use http::Request;

use super::*;
use crate::access::{TokensFile, entry};

const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
const BULK: &str = "/featurestore.v1.FeatureStoreService/BulkUpsert";
/// Of reflection: over all connections, and of one.
const MAX: usize = 128;
const SHARE: usize = 16;

type Open = (ResponseFuture, SendStream<Bytes>);

async fn open(raw: &Raw, path: &str, token: Option<&str>) -> Open {
    let mut head = Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
    if let Some(token) = token {
        head = head.header("authorization", format!("Bearer {token}"));
    }
    let mut send = raw.send.clone().ready().await.unwrap();
    send.send_request(head.header("te", "trailers").body(()).unwrap(), false).unwrap()
}

/// Waits for the end of an answer.
async fn code((answer, _request): Open) -> Code {
    tokio::time::timeout(PATIENCE, raw::finish(answer)).await.expect("it does not end").unwrap().0
}

async fn metric(server: &Binary, series: &str) -> f64 {
    let metrics = server.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_of_reflection_keep_no_call_out_and_end() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "32")]);
    server.until_serving().await;
    let open_streams = async || metric(&server, "featurestore_streams_in_flight{kind=\"reflection\"}").await as usize;
    let (mut held, mut streams) = (Vec::new(), Vec::new());
    for connection in 0..MAX / SHARE {
        let raw = raw::connect(server.port, &Builder::new()).await;
        for path in REFLECTION.into_iter().cycle().take(SHARE) {
            streams.push(open(&raw, path, None).await);
        }
        eventually("them to be open", async || open_streams().await == (connection + 1) * SHARE).await;
        assert_eq!(code(open(&raw, REFLECTION[0], None).await).await, Code::ResourceExhausted, "beyond the share");
        held.push(raw);
    }
    let raw = raw::connect(server.port, &Builder::new()).await;
    let refused = open(&raw, REFLECTION[1], None).await;
    assert_eq!(code(refused).await, Code::ResourceExhausted, "beyond all");
    assert_eq!(metric(&server, "featurestore_streams_shed_total{kind=\"reflection\"}").await as usize, MAX / SHARE + 1);

    // No other call, and no stream of another kind, notices them.
    assert_eq!(metric(&server, "featurestore_calls_in_flight").await, 0.0);
    another_is_served(&server).await;
    let mut client = server.client().await;
    let (answers, ended) = bulk(&mut client, [chunk(1, [record("a", [])])]).await;
    assert_eq!((answers.len(), ended.map(|status| status.code())), (1, None));

    for stream in streams {
        assert_eq!(code(stream).await, Code::Unavailable, "a silent one ends");
    }
    eventually("their places to be free", async || open_streams().await == 0).await;
    drop(held);
    if let Some(ended) = crate::harness::tools::grpcurl(&["-plaintext", &server.address(), "list"]).await {
        assert!(ended.unwrap().contains(SERVICE), "reflection is served again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_no_kind_hold_up_a_drain() {
    let mut server = Binary::start(&[("FEATURESTORE_DRAIN_TIMEOUT", "10min")]);
    server.until_serving().await;
    let raw = raw::connect(server.port, &Builder::new()).await;
    let mut streams = Vec::new();
    for path in REFLECTION.into_iter().chain([BULK]) {
        streams.push(open(&raw, path, None).await);
        // One that has sent the beginning of a message.
        let mut begun = open(&raw, path, None).await;
        begun.1.send_data(Bytes::from_static(b"\0\0\0\x01"), false).unwrap();
        streams.push(begun);
    }
    let mut watch = open(&raw, "/grpc.health.v1.Health/Watch", None).await;
    watch.1.send_data(raw::framed(&tonic_health::pb::HealthCheckRequest::default()), true).unwrap();
    streams.push(watch);
    for kind in ["bulk", "reflection", "watch"] {
        let series = format!("featurestore_streams_in_flight{{kind=\"{kind}\"}}");
        eventually("it to be open", async || metric(&server, &series).await >= 1.0).await;
    }
    server.signal("TERM");
    for stream in streams {
        // A Watch is told NOT_SERVING and ended; all others learn why.
        let code = code(stream).await;
        assert!(matches!(code, Code::Unavailable | Code::Ok), "{code:?}");
    }
    assert_eq!(server.exit_code(PATIENCE), 0, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_begun_and_never_ended_do_not_keep_the_bytes_of_all() {
    const BEGUN: usize = 3 << 20;
    let settings =
        [("FEATURESTORE_LIMITS_MAX_BYTES_IN_FLIGHT", "32MiB"), ("FEATURESTORE_LIMITS_MAX_RESPONSE_BYTES", "4MiB")];
    let server = Binary::start(&settings);
    server.until_serving().await;
    let in_flight = async || metric(&server, "featurestore_bytes_in_flight").await as usize;
    let (mut connections, mut begun) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let raw = raw::connect(server.port, &Builder::new()).await;
        for _ in 0..2 {
            let mut stream = open(&raw, BULK, None).await;
            let head = [&[0][..], &(4_u32 << 20).to_be_bytes()[..]].concat();
            stream.1.send_data([head, vec![0; BEGUN]].concat().into(), false).unwrap();
            begun.push(stream);
        }
        begun.push(open(&raw, BULK, None).await);
        connections.push(raw);
    }
    eventually("them to be held", async || in_flight().await > 7 * BEGUN).await;
    for (number, stream) in begun.into_iter().enumerate() {
        if number % 3 == 2 {
            // This one has begun no message, so it may take its time.
            let waiting = tokio::time::timeout(Duration::from_millis(100), raw::finish(stream.0)).await;
            assert!(waiting.is_err(), "{waiting:?}");
        } else {
            assert_eq!(code(stream).await, Code::DeadlineExceeded);
        }
    }
    eventually("all bytes to be given back", async || in_flight().await == 0).await;
    another_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_is_refused_before_a_byte_is_held() {
    let tokens = TokensFile::new(&[entry("reader", &["reader"], "read = [\"*\"]"), entry("nobody", &["nobody"], "")]);
    let server = Binary::start(&[("FEATURESTORE_AUTH_TOKENS_FILE", &tokens.path())]);
    eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    let raw = raw::connect(server.port, &Builder::new()).await;
    let (reader, nobody) = ("reader", "nobody");
    let path = |method: &str| format!("/featurestore.v1.FeatureStoreService/{method}");
    let denied = [
        ("BulkUpsert", reader, Code::PermissionDenied),
        ("UpsertFeatures", reader, Code::PermissionDenied),
        ("DeleteFeatures", reader, Code::PermissionDenied),
        ("GetFeatures", nobody, Code::PermissionDenied),
        ("BulkUpsert", nobody, Code::PermissionDenied),
    ];
    for (method, token, expected) in denied {
        // Not one byte of the request's message was sent.
        let answer = code(open(&raw, &path(method), Some(token)).await).await;
        assert_eq!(answer, expected, "{method}");
    }
    for path in [&path("BulkUpsert"), REFLECTION[0]] {
        assert_eq!(code(open(&raw, path, None).await).await, Code::Unauthenticated, "{path}");
    }
    assert_eq!(metric(&server, "featurestore_bytes_in_flight").await, 0.0);
    assert_eq!(metric(&server, "featurestore_streams_in_flight{kind=\"bulk\"}").await, 0.0);
}
