//! What is no call of gRPC is not executed, and whoever speaks another protocol is answered in it.

use bytes::Bytes;
use h2::client::Builder;
use http::{Method, Request, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// Begins a request of this method and these content types, sends a whole message without the request's end, and gives the
/// answer. An answer to what is refused must not wait for the end.
async fn answer(raw: &Raw, method: &Method, path: &str, types: &[&str], body: Bytes) -> http::Response<String> {
    let mut head = Request::builder().method(method).uri(format!("http://localhost{path}")).header("te", "trailers");
    for of in types {
        head = head.header("content-type", *of);
    }
    let head = head.header("origin", "https://elsewhere").body(()).unwrap();
    let mut send = raw.send.clone().ready().await.unwrap();
    let (answer, mut stream) = send.send_request(head, false).unwrap();
    // It may be refused before this is sent.
    let _ = stream.send_data(body, false);
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("no answer before the end").unwrap();
    let (head, mut body) = answer.into_parts();
    let mut text = Vec::new();
    if head.status != StatusCode::OK {
        while let Some(data) = body.data().await {
            text.extend(data.unwrap());
        }
    }
    http::Response::from_parts(head, String::from_utf8(text).unwrap())
}

const NOT_GRPC: [&[&str]; 9] = [
    &["text/plain"],
    &["text/plain;charset=UTF-8"],
    &["application/x-www-form-urlencoded"],
    &["multipart/form-data; boundary=x"],
    &["application/json"],
    &["application/grpc+json"],
    &["application/grpc-web+proto"],
    &[],
    &["application/grpc", "text/plain"],
];

#[tokio::test(flavor = "multi_thread")]
async fn only_a_post_of_grpc_is_executed_with_and_without_tls() {
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    for settings in [Vec::new(), secret.settings()] {
        let is_tls = !settings.is_empty();
        let server = Binary::start(&borrowed(&settings));
        eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
        let raw = match is_tls {
            true => raw::over(authority.connect(server.port, &["h2"]).await.unwrap(), &Builder::new()).await,
            false => raw::connect(server.port, &Builder::new()).await,
        };
        let mut client = match is_tls {
            true => Client::new(authority.channel(server.port).await),
            false => server.client().await,
        };
        const PATH: &str = "/featurestore.v1.FeatureStoreService/";
        for method in ["UpsertFeatures", "DeleteFeatures", "GetFeatures", "Info", "BulkUpsert", "Nothing"] {
            let body = match method {
                "UpsertFeatures" => raw::framed(&upsert(record("forged", [("n", double(1.0))]))),
                "BulkUpsert" => raw::framed(&chunk(1, [record("forged", [("n", double(1.0))])])),
                _ => Bytes::new(),
            };
            let path = format!("{PATH}{method}");
            for types in NOT_GRPC {
                let answer = answer(&raw, &Method::POST, &path, types, body.clone()).await;
                assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{method} as {types:?}");
                assert!(answer.body().contains("application/grpc"), "{answer:?}");
                assert!(!answer.headers().keys().any(|name| name.as_str().starts_with("access-control")));
            }
            for other in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
                let answer = answer(&raw, &other, &path, &["application/grpc"], body.clone()).await;
                assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{other} of {method}");
                assert_eq!(answer.headers()["allow"], "POST");
            }
        }
        assert_eq!(row(&mut client, get(["forged"])).await.status(), RowStatus::NotFound);

        // As clients write it, and as some proxies do.
        for types in [&["application/grpc+proto"], &["Application/GRPC"], &["application/grpc; charset=utf-8"]] {
            let path = format!("{PATH}BulkUpsert");
            let body = raw::framed(&chunk(1, [record("taken", [])]));
            assert_eq!(answer(&raw, &Method::POST, &path, types, body).await.status(), StatusCode::OK, "{types:?}");
        }
        eventually("them to be written", async || row(&mut client, get(["taken"])).await.status() == RowStatus::Found)
            .await;

        let metrics = server.metrics().await;
        for (what, count) in [("content_type", 6 * NOT_GRPC.len()), ("method", 6 * 5)] {
            let line = format!("featurestore_not_grpc_total{{what=\"{what}\"}} {count}");
            assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_takes_looks_and_calls_of_health_only() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let raw = raw::connect(server.admin_port, &Builder::new()).await;
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    let health = || raw::framed(&tonic_health::pb::HealthCheckRequest::default());
    for types in NOT_GRPC {
        let answer = answer(&raw, &Method::POST, CHECK, types, health()).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{types:?}");
    }
    let refused = answer(&raw, &Method::GET, CHECK, &["application/grpc"], health()).await;
    assert_eq!(
        (refused.status(), &refused.headers()["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    for path in ["/metrics", "/livez", "/readyz", "/nothing"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let refused = answer(&raw, &method, path, &["text/plain"], Bytes::new()).await;
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(refused.headers()["allow"], "GET, HEAD");
        }
    }
    assert_eq!(server.admin_health(SERVICE).await, Some(ServingStatus::Serving));

    for (method, has_body) in [("GET", true), ("HEAD", false)] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.admin_port)).await.unwrap();
        let request = format!("{method} /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let said = say(&mut stream, request.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("content-length: 3\r\n"), "{said}");
        assert_eq!(said.ends_with("\r\n\r\nok\n"), has_body, "{said}");
    }
    let mut stream = TcpStream::connect(("127.0.0.1", server.admin_port)).await.unwrap();
    let said = say(&mut stream, HELLO).await;
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "TLS to the admin port: {said:?}");
}

/// How the hello of a TLS client begins.
const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on, for some hundred bytes";
const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// Says something, and gives what is answered until the server ends the connection, which must not be a reset.
async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), words: &[u8]) -> String {
    stream.write_all(words).await.unwrap();
    let mut said = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the connection stays");
    end.expect("the connection was reset");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_answered_with_what_this_port_speaks() {
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    let (tls, plain) = (Binary::start(&borrowed(&secret.settings())), Binary::start(&[]));
    for server in [&tls, &plain] {
        eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    }
    let connect = async |port| TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // A body that nobody reads must not take the answer away.
    let posted = [b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 30000\r\n\r\n", &[b'x'; 30_000][..]].concat();
    for request in [HTTP1, &posted] {
        let said = say(&mut connect(plain.port).await, request).await;
        assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n") && said.contains("speaks gRPC over HTTP/2"), "{said}");
        let said = say(&mut connect(tls.port).await, request).await;
        assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n") && said.contains("speaks TLS"), "{said}");
        for protocols in [&["h2"][..], &[]] {
            let said = say(&mut authority.connect(tls.port, protocols).await.unwrap(), request).await;
            assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{protocols:?}: {said}");
        }
    }
    let said = say(&mut connect(plain.port).await, HELLO).await;
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n") && said.contains("not TLS"), "{said}");
    let error = authority.connect(plain.port, &["h2"]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "a client of TLS says that this is no TLS: {error}");

    // A client of gRPC that does not know of TLS, or of ALPN.
    let said = async |raw: Raw| {
        let (answer, _) =
            raw.send.clone().ready().await.unwrap().send_request(raw::head("Info").body(()).unwrap(), true).unwrap();
        tonic::Status::from_header_map(answer.await.unwrap().headers()).unwrap()
    };
    let status = said(raw::connect(tls.port, &Builder::new()).await).await;
    assert!(status.code() == Code::Unavailable && status.message().contains("speaks TLS"), "{status:?}");
    let status = said(raw::over(authority.connect(tls.port, &[]).await.unwrap(), &Builder::new()).await).await;
    assert!(status.code() == Code::Unavailable && status.message().contains("ALPN"), "{status:?}");

    another_is_served(&plain).await;
    for (server, counts) in [
        (&plain, &[("http1", 2), ("tls", 2), ("plaintext", 0)][..]),
        (&tls, &[("plaintext", 3), ("http1", 2), ("no_alpn", 3)][..]),
    ] {
        let metrics = server.metrics().await;
        for (what, count) in counts {
            let line = format!("featurestore_not_grpc_total{{what=\"{what}\"}} {count}");
            assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_says_which_protocol_is_wrong() {
    use crate::harness::tools;
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    let (tls, plain) = (Binary::start(&borrowed(&secret.settings())), Binary::start(&[]));
    for server in [&tls, &plain] {
        eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    }
    let call = format!("{SERVICE}/Info");
    let (tls, plain) = (&tls.address(), &plain.address());
    if let Some(ended) = tools::grpcurl(&["-insecure", "-connect-timeout", "5", plain, &call]).await {
        assert!(!ended.success && ended.errors.contains("does not look like a TLS handshake"), "{ended:?}");
    }
    // It needs the proto, as it would ask by reflection on another connection.
    let proto = ["-import-path", "proto", "-proto", "featurestore/v1/featurestore.proto"];
    let plaintext = [&["-plaintext", "-connect-timeout", "5"], &proto[..], &[tls, &call]].concat();
    if let Some(ended) = tools::grpcurl(&plaintext).await {
        assert!(!ended.success && ended.errors.contains("speaks TLS"), "{ended:?}");
    }
}
